"""One table of options: click and pytest are told the same, and every name has a prefix."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from harness.app.cli import main
from harness.app.options import OF_PYTEST, PREFIX, SHARED, Option, as_pytest_has_them

ROOT = Path(__file__).parents[2]
VERIFY = {param.name: param for param in main.commands["verify"].params}
BY_NAME = {option.name: option for option in OF_PYTEST}


@pytest.mark.parametrize("option", SHARED, ids=lambda option: option.name)
def test_click_and_pytest_are_told_the_same(option: Option) -> None:
    ours, theirs = VERIFY[option.key], option.for_pytest()
    assert isinstance(ours, click.Option)
    assert ours.opts == [f"--{option.name}"]
    assert str(theirs["help"]).startswith(str(ours.help))
    assert (theirs.get("action") == "store_true") is ours.is_flag
    if not ours.is_flag:
        assert ours.default == theirs["default"]
    if isinstance(ours.type, click.Choice):
        assert tuple(ours.type.choices) == theirs["choices"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", 0, []),
        ("seed", 3, ["--moe-seed=3"]),
        ("max-bytes", None, []),
        ("devices", 0, ["--moe-devices=0"]),
        ("checksums", False, []),
        ("checksums", True, ["--moe-checksums"]),
        ("checkpoint", ["/a", "/b"], ["--moe-checkpoint=/a", "--moe-checkpoint=/b"]),
    ],
)
def test_a_value_is_typed_again(name: str, value: object, words: list[str]) -> None:
    assert BY_NAME[name].typed(value) == words


def section(text: str, title: str) -> list[str]:
    """The options of one group in what ``pytest --help`` prints."""
    return re.findall(r"^  (--\S+?)[ =]", text.split(f"{title}:")[1].split("\n\n")[0], re.M)


@pytest.mark.slow
def test_the_installed_plugin_brings_one_prefix_alone(pytester: pytest.Pytester) -> None:
    """Options, fixtures and markers: what a project has of its own is not ours to name."""
    text = pytester.runpytest_subprocess("--help").stdout.str()
    assert section(text, "MoE load verification") == [option.prefixed for option in OF_PYTEST]
    text = pytester.runpytest_subprocess("--fixtures").stdout.str()
    named = re.findall(r"^(\w+)(?: \[\w+ scope\])? -- \S*harness/app/plugin", text, re.M)
    assert "moe_verified" in named
    assert [name for name in named if not name.startswith(f"{PREFIX}_")] == []
    text = pytester.runpytest_subprocess("--markers").stdout.str()
    assert [m for m in re.findall(r"^@pytest\.mark\.(\w+)", text, re.M) if PREFIX in m] == [
        "moe_purpose"
    ]


@pytest.mark.slow
def test_a_checkout_has_the_short_names_too(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makepyfile(
        """
        def test_values(request):
            of = request.config.getoption
            assert of("moe_checkpoint") == ["/a", "/b"]
            assert (of("moe_seed"), of("--moe-layers"), of("moe_target")) == (3, "0", "emulated")
        """
    )
    asked = ("--checkpoint=/a", "--moe-checkpoint=/b", "--seed=3", "--layers=0")
    pytester.runpytest_subprocess(*asked).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0 hosts (--hosts). Try: --hosts 4.", "0 hosts (--moe-hosts). Try: --moe-hosts 4."),
        ("--layers, not --num-layers", "--moe-layers, not --moe-num-layers"),
        ("--moe-seed --mesh --seeds", "--moe-seed --mesh --seeds"),
    ],
)
def test_a_message_names_the_options_of_pytest(text: str, shown: str) -> None:
    assert as_pytest_has_them(text) == shown
