"""The choice of a stack, and what its requirement files may name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


STACKS = ROOT / "ci" / "stacks"
CUDA = sorted((STACKS / "cuda").glob("*.txt"))


def pins(path: Path) -> dict[str, str]:
    """The versions a requirements file pins, by package."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def loose(path: Path) -> list[str]:
    """The lines of a requirements file that pin nothing, or name a host."""
    lines = path.read_text().splitlines()
    pinned = re.compile(r"(#.*|[\w.-]+==[\w.+!-]+)")
    return [line for line in lines if not pinned.fullmatch(line) or "://" in line]


@pytest.mark.parametrize("path", [*sorted(STACKS.glob("*.txt")), *CUDA], ids=lambda path: path.stem)
def test_requirements_are_pinned_and_name_no_host(path: Path) -> None:
    assert loose(path) == []


@pytest.mark.parametrize("line", ["jax>=0.11", "jax", "--index-url https://x/y", "# of https://x"])
def test_a_loose_line_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "0.32.txt").write_text(f"jaxlib==0.11.2\n{line}\n")
    assert loose(tmp_path / "0.32.txt") == [line]


def contradicting(cuda: Path, stack: Path) -> set[str]:
    """What the requirements for a GPU pin otherwise than their stack does."""
    ours, its = pins(cuda), pins(stack)
    return {name for name in ours.keys() & its.keys() if ours[name] != its[name]}


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.stem)
def test_the_cuda_plugin_is_of_the_stacks_own_jax(path: Path) -> None:
    """JAX takes a plugin of its own version only; one environment has both files."""
    stack = STACKS / path.name
    assert contradicting(path, stack) == set()
    plugins = {name: found for name, found in pins(path).items() if name.startswith("jax-cuda")}
    assert {"jax-cuda13-plugin", "jax-cuda13-pjrt"} == set(plugins)
    assert set(plugins.values()) == {pins(stack)["jax"]}


def test_a_plugin_of_another_jax_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cuda.txt").write_text("jax==0.11.3\nnumpy==2.3.5\n")
    (tmp_path / "stack.txt").write_text("jax==0.11.2\nnumpy==2.3.5\n")
    assert contradicting(tmp_path / "cuda.txt", tmp_path / "stack.txt") == {"jax"}


@pytest.mark.parametrize(
    ("stack", "target", "chosen"),
    [("", "gpu", "0.32"), ("0.32", "gpu", "0.32"), ("0.26", "emulated", "0.26")],
)
def test_the_stack_of_a_target(setup: ModuleType, stack: str, target: str, chosen: str) -> None:
    assert setup.chosen(stack, target) == chosen


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ("0.21", r"stack 0\.21 has no requirements for a GPU\. Expected: one of 0\.32\. Try: make"),
        ("0.26", r"stack 0\.26 has no requirements for a GPU.*TARGET=gpu STACK=0\.32"),
        ("0.99", r"unknown stack '0\.99'"),
    ],
)
def test_a_stack_that_has_nothing_for_gpus(setup: ModuleType, stack: str, message: str) -> None:
    with pytest.raises(setup.SetupError, match=message):
        setup.choose_gpu(stack)


def test_a_checkout_too_old_for_gpus(setup: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match=r"stack 0\.26 has no requirements for a GPU"):
        setup.chosen(f"path:{vllm_checkout(tmp_path / 'c', '0.26.2')}", "gpu")


def test_the_environment_for_gpus_is_one_of_its_own(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the pins of its stack and those for a GPU; the stack's own stays as it is."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(setup, "environment", lambda *args, **kept: calls.append((*args, kept)))
    setup.made("0.32", "gpu")
    setup.made("0.32", "emulated")
    (at, python, *gpu), (other, _, *emulated) = calls
    assert (at.name, python) == (".venv-0.32-gpu", "3.12")
    assert at != other
    assert gpu == [STACKS / "0.32.txt", STACKS / "cuda" / "0.32.txt", {"project": True}]
    assert emulated == [STACKS / "0.32.txt", {"project": True}]


@pytest.mark.parametrize("target", ["emulated", "gpu", "tpu"])
def test_the_installed_stack_is_the_running_one(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", "--target", target, "installed"])
    assert setup.main() == 0
    assert capsys.readouterr().out == f"{sys.prefix}\n"


def test_what_cannot_run_on_a_gpu_is_said(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", "--target", "gpu", "0.26"])
    assert setup.main() == 2
    assert "setup: stack 0.26 has no requirements for a GPU" in capsys.readouterr().err


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
