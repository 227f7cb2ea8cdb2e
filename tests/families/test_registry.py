"""Families that a file or a package brings, and what is refused of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.families import known_families as registry
from harness.families.known_families import bring, families, family_named, recipes

#: A family that is Qwen3-MoE under other names.
WELL = """
from __future__ import annotations

from dataclasses import dataclass, replace

from harness.families.family import Recipe
from harness.families.qwen3_moe import FAMILY as OTHER


@dataclass(frozen=True)
class Note:
    text: str = "dataclasses look their module up"


FAMILY = replace(
    OTHER, name="outside", architecture="OutsideForCausalLM",
    recipes=(Recipe("outside", "A family from outside"),),
)
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test brings goes with it."""
    yield
    registry.forget()


def written(path: Path, text: str = WELL, name: str = "outside.py") -> Path:
    (path / name).write_text(text)
    return path / name


def test_a_file_brings_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert bring(["outside.py"]) == (str(tmp_path / "outside.py"),)
    assert families()[-1].name == "outside"
    assert "outside" in recipes()
    assert os.listdir(tmp_path) == ["outside.py"]


def test_a_file_may_be_brought_again(tmp_path: Path) -> None:
    file = written(tmp_path)
    bring([file, file])
    first = family_named("outside")
    bring([file])
    assert family_named("outside") is first
    written(tmp_path, WELL.replace('name="outside"', 'name="changed"'))
    bring([file])
    assert [f.name for f in families()].count("changed") == 1
    assert "outside" not in [f.name for f in families()]


BAD = {
    "no Python": ("def def", "not a family file: it is not Python: invalid syntax"),
    "null bytes": ("FAMILY = 1\0", "not a family file: it is not Python"),
    "no FAMILY": ("OTHER = 1", "not a family file: it has no FAMILY"),
    "not a family": ("FAMILY = 1", "not a family file: its FAMILY is a int, not a Family"),
    "raises": ("1 / 0", "not a family file: it raises ZeroDivisionError: division by zero"),
    "an import": ("import no_such_module", "not a family file: it raises ModuleNotFoundError"),
    "ends": ("raise SystemExit(0)", "not a family file: it raises SystemExit: 0"),
    "a name": (
        WELL.replace('name="outside"', 'name="qwen3-moe"'),
        "not a family file: its name is taken: qwen3-moe",
    ),
    "an architecture": (
        WELL.replace("OutsideFor", "Qwen3MoeFor"),
        "not a family file: its architecture is described already: Qwen3MoeForCausalLM, by",
    ),
    "a recipe": (
        WELL.replace('Recipe("outside"', 'Recipe("qwen3.6-mtp"'),
        "not a family file: its recipe's name is taken: qwen3.6-mtp, by qwen3.5-moe",
    ),
    "no name": (
        WELL.replace('name="outside"', 'name=""'),
        "not a family file: its name is '', not a word",
    ),
    "no text": (
        WELL.replace('name="outside"', "name=3"),
        "not a family file: its name is 3, not a word",
    ),
    "a shape that raises": (
        WELL.replace("recipes=", "tiny=None, recipes="),
        "not a family file: its FAMILY does not describe a model: AttributeError",
    ),
    "a configuration that raises": (
        WELL.replace("recipes=", "write_config=lambda *_: 1 / 0, recipes="),
        "not a family file: its FAMILY does not describe a model: ZeroDivisionError",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_no_family_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    before = families()
    with pytest.raises(BadInput) as raised:
        bring([file])
    assert raised.value.what.startswith(message)
    assert raised.value.where == str(file)
    assert "docs/own-family.md" in raised.value.hint
    assert families() == before


@pytest.mark.parametrize("kind", ["absent", "a directory", "without end", "large", "no text"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("f\udcff.py" if kind == "no text" else "f.py")
    if kind == "a directory":
        file.mkdir()
    elif kind == "without end":
        os.mkfifo(file)
    elif kind == "large":
        file.write_bytes(b"#" * (registry.MOST_BYTES + 1))
    with pytest.raises(BadInput, match=r"cannot be read|more than"):
        bring([file])


def test_one_that_was_mended_is_taken(tmp_path: Path) -> None:
    file = written(tmp_path, "def def")
    with pytest.raises(BadInput):
        bring([file])
    written(tmp_path)
    bring([file])
    assert families()[-1].name == "outside"


def test_two_files_of_one_family_are_refused(tmp_path: Path) -> None:
    files = [written(tmp_path), written(tmp_path, name="twice.py")]
    with pytest.raises(BadInput, match="its name is taken: outside"):
        bring(files)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that packages are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def register(site: Path, entry: str) -> None:
    """What an installer leaves of a package with an entry point for a family."""
    installed = site / "outside-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[harness.families]\noutside = {entry}\n")
    registry.forget()


def test_a_package_brings_a_family(site: Path) -> None:
    written(site, name="outside_package.py")
    register(site, "outside_package:FAMILY")
    try:
        assert families()[-1].name == "outside"
    finally:
        sys.modules.pop("outside_package", None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("harness.families.qwen3_moe:FAMILY", "its name is taken: qwen3-moe"),
        ("harness.families.family:Family", "its FAMILY is a type"),
        ("no_such_package:FAMILY", "it raises ModuleNotFoundError"),
    ],
    ids=["a name that is taken", "a class", "an import"],
)
def test_what_a_package_brings_wrongly_is_refused(site: Path, entry: str, message: str) -> None:
    register(site, entry)
    with pytest.raises(BadInput, match=message) as raised:
        families()
    assert raised.value.where == entry


def test_the_command_line_brings_it(tmp_path: Path) -> None:
    file = str(written(tmp_path))
    shown = CliRunner().invoke(main, ["families", "--family", file])
    assert "outside\n  architecture  OutsideForCausalLM\n" in shown.stdout
    out = str(tmp_path / "checkpoint")
    shown = CliRunner().invoke(main, ["checkpoint", "outside", out, "--family", file])
    assert (shown.exit_code, shown.stdout.split(":")[0]) == (0, "A family from outside")


@pytest.mark.parametrize("command", [["families"], ["checkpoint", "o", "O"], ["verify", "/none"]])
def test_the_command_line_refuses_it(tmp_path: Path, command: list[str]) -> None:
    file = str(written(tmp_path, "FAMILY = 1"))
    shown = CliRunner().invoke(main, [*command, "--family", file])
    assert shown.exit_code == 2
    assert "its FAMILY is a int" in shown.stderr


@pytest.mark.slow
def test_pytest_brings_it(tmp_path: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from harness.families.known_families import recipes

        def test_known():
            assert "outside" in recipes()
        """
    )
    file = written(tmp_path)
    pytester.runpytest_subprocess(f"--moe-family={file}").assert_outcomes(passed=1)
    file.write_text("FAMILY = 1")
    ran = pytester.runpytest_subprocess(f"--moe-family={file}")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["*its FAMILY is a int*"])
