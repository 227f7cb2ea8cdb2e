"""Whether releases can be imported together, tried on a toy target and toy packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.load import importable
from harness.load.importable import Importable, imported, told

Stack = Callable[..., Importable]


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    """Imports packages of a made-up ``site-packages``; ``worker`` is what the worker's file has."""
    packages = tmp_path / "site-packages"

    def of(worker: str | None = "class TPUWorker: ...", lower: str = "ACT = 1") -> Importable:
        (packages / "toy_vllm").mkdir(parents=True)
        (packages / "toy_vllm" / "__init__.py").write_text(lower)
        (packages / "toy_tpu").mkdir()
        (packages / "toy_tpu" / "__init__.py").write_text("from toy_vllm import ACT")
        if worker is not None:
            (packages / "toy_tpu" / "worker.py").write_text(worker)
        monkeypatch.syspath_prepend(str(packages))
        driver = SimpleNamespace(modules=("toy_vllm", "toy_tpu", "toy_tpu.worker"))
        monkeypatch.setattr(importable, "driver_named", lambda target: driver)
        target = SimpleNamespace(environment={})
        monkeypatch.setattr(importable, "target_on", lambda name: target)
        try:
            return imported(worker=("toy_tpu.worker", "TPUWorker"))
        finally:
            for name in [name for name in sys.modules if name.startswith("toy_")]:
                del sys.modules[name]

    return of


def test_a_pair_that_works(stack: Stack) -> None:
    assert stack() == Importable("works")


def test_a_name_that_is_not_there(stack: Stack) -> None:
    found = stack(lower="")
    assert found.verdict == "unimportable"
    assert found.why.startswith("toy_tpu asks for what is not there (toy_tpu/__init__.py:1): Impor")
    assert "cannot import name 'ACT' from 'toy_vllm'" in found.why
    assert "site-packages" not in found.why


@pytest.mark.parametrize("error", ["import nothing_of_that_name", "1 / 0", "raise SystemError(7)"])
def test_whatever_an_import_raises(stack: Stack, error: str) -> None:
    assert stack(lower=error).verdict == "unimportable"


@pytest.mark.parametrize(
    ("worker", "why"),
    [(None, "there is no module toy_tpu.worker"), ("", "toy_tpu.worker has no TPUWorker")],
)
def test_no_worker(stack: Stack, worker: str | None, why: str) -> None:
    found = stack(worker)
    assert found.verdict == "no-worker"
    assert why in found.why


def test_a_module_that_the_worker_wants_is_no_missing_worker(stack: Stack) -> None:
    assert stack("import nothing_of_that_name").verdict == "unimportable"


def test_an_error_of_no_package() -> None:
    assert told(KeyError("x")) == "KeyError: 'x'."
