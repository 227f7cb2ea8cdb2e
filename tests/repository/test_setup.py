"""The choice of a stack, and what its requirement files may name."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.pipelines import script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    return script("setup")


@pytest.mark.parametrize(
    ("running", "stack"), [((3, 11), "0.26"), ((3, 12), "0.32"), ((3, 13), "0.32")]
)
def test_the_default_is_the_newest_that_runs(
    setup: ModuleType, running: tuple[int, int], stack: str
) -> None:
    assert setup.choose("", running) == stack


def test_a_python_without_a_stack(setup: ModuleType) -> None:
    with pytest.raises(setup.SetupError, match=r"no stack runs on Python 3\.9.*Try: make PYTHON="):
        setup.choose("", (3, 9))


def test_an_unknown_stack(setup: ModuleType) -> None:
    with pytest.raises(setup.SetupError, match=r"unknown stack '0\.99'.*0\.21 \(Python 3\.11\)"):
        setup.choose("0.99")


def test_an_interpreter_that_is_nowhere(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"needs Python 3\.99; none was found on PATH"):
        setup.find_python("3.99", "/bin/false")


def test_requirements_are_pinned_and_name_no_host(setup: ModuleType) -> None:
    for stack in setup.stacks():
        for line in (ROOT / "ci" / "stacks" / f"{stack}.txt").read_text().splitlines():
            assert re.fullmatch(r"(#.*|[\w.-]+==[\w.+!-]+)", line), line
            assert "://" not in line


def vllm_checkout(at: Path, version: str) -> Path:
    (at / "vllm").mkdir(parents=True)
    (at / "vllm" / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    return at


@pytest.mark.parametrize(
    ("version", "stack"),
    [("0.21.0", "0.21"), ("0.22.1", "0.22"), ("0.24.0", "0.22"), ("0.26.2", "0.26")],
)
def test_the_nearest_stack_of_a_checkout(
    setup: ModuleType, tmp_path: Path, version: str, stack: str
) -> None:
    assert setup.choose(f"path:{vllm_checkout(tmp_path / 'c', version)}") == stack


def test_a_checkout_older_than_every_stack(setup: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match=r"vLLM 0\.9\.1, older than every stack"):
        setup.choose(f"path:{vllm_checkout(tmp_path / 'c', '0.9.1')}")


def test_a_checkout_without_a_version(setup: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match=r"cannot be told.*git fetch --tags"):
        setup.choose(f"path:{tmp_path}")
