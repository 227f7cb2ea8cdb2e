from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.base.errors import BadInput
from harness.load.overlay import Overlay, overlay_from
from harness.load.process import LoadProcess
from harness.load.target import Target


def checkout(at: Path, name: str, requirements: str = "") -> Path:
    """A checkout with an empty package and the requirements file it states."""
    (at / name).mkdir(parents=True)
    (at / name / "__init__.py").touch()
    if requirements:
        file = at / ("requirements/common.txt" if name == "vllm" else "requirements.txt")
        file.parent.mkdir(exist_ok=True)
        file.write_text(requirements)
    return at


def test_the_name_of_a_stack_is_no_overlay() -> None:
    assert overlay_from("0.26").packages == overlay_from("").packages == {}


def test_both_checkouts(tmp_path: Path) -> None:
    vllm = checkout(tmp_path / "a", "vllm")
    tpu = checkout(tmp_path / "b", "tpu_inference")
    overlay = overlay_from(f"path:{vllm},{tpu}")
    assert overlay.packages == {"vllm": vllm / "vllm", "tpu_inference": tpu / "tpu_inference"}


def test_the_option_asks_for_the_same(tmp_path: Path) -> None:
    vllm = checkout(tmp_path / "a", "vllm")
    tpu = checkout(tmp_path / "b", "tpu_inference")
    for option in (f"path:{vllm}", f"path:{vllm},{tpu}"):
        overlay = overlay_from(option)
        assert overlay_from(overlay.option) == overlay
    assert overlay_from("0.26").option == ""
    alone = overlay_from(f"path:,{tpu}")
    assert alone == Overlay({"tpu_inference": tpu / "tpu_inference"})
    assert overlay_from(alone.option) == alone


def test_the_commit_is_told(tmp_path: Path) -> None:
    vllm = checkout(tmp_path / "vllm-checkout", "vllm")
    assert "no commit" in str(overlay_from(f"path:{vllm}"))
    author = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(vllm), *command], check=True)
    head = subprocess.run(
        ["git", "-C", str(vllm), "rev-parse", "--short=12", "HEAD"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert f"({head})" in str(overlay_from(f"path:{vllm}"))
    (vllm / "vllm" / "__init__.py").write_text("changed = 1\n")
    assert f"({head}-dirty)" in str(overlay_from(f"path:{vllm}"))


@pytest.mark.parametrize(
    ("requirements", "match"),
    [
        ("numpy==1.0  # old\n", r"numpy==1\.0, installed is 2"),
        ("no-such-distribution>=3\n", "no-such-distribution>=3 is not installed"),
    ],
)
def test_a_checkout_that_does_not_fit_the_pins(
    tmp_path: Path, requirements: str, match: str
) -> None:
    vllm = checkout(tmp_path / "c", "vllm", requirements)
    with pytest.raises(BadInput, match=match):
        overlay_from(f"path:{vllm}")


def test_requirements_that_are_met_or_overridden_fit(tmp_path: Path) -> None:
    text = "numpy\n\n-r other.txt\ntorch==1.0\nno-such; sys_platform == 'never'\n"
    assert overlay_from(f"path:{checkout(tmp_path / 'c', 'vllm', text)}").packages


@pytest.mark.parametrize(
    ("option", "match"),
    [("path:/nowhere", "no package vllm in the checkout"), ("path:a,b,c", "3 checkouts")],
)
def test_no_checkout(option: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        overlay_from(option)


def test_only_the_packages_of_a_checkout_are_laid_over(tmp_path: Path) -> None:
    at = checkout(tmp_path / "c", "vllm")
    (at / "tests").mkdir()
    linked = overlay_from(f"path:{at}").link_into(tmp_path / "overlay")
    assert [path.name for path in linked.iterdir()] == ["vllm"]


@pytest.mark.slow
def test_the_loading_process_imports_the_overlay(target: Target, tmp_path: Path) -> None:
    """A broken package laid over the installed one breaks the import, and the error says so."""
    at = checkout(tmp_path / "c", "vllm")
    (at / "vllm" / "__init__.py").write_text("raise ImportError('laid over')\n")
    from harness.load.process import LoadProcessError

    with (
        LoadProcess(target, Overlay({"vllm": at / "vllm"})) as process,
        pytest.raises(LoadProcessError, match="the loading process ended") as raised,
    ):
        process.run("tests.support.idle_jobs:echo", b"", target, timeout=60)
    assert "laid over" in raised.value.details
