"""The stack is imported before the first fork, and an import that touches a device is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.load import LoadProcess, LoadProcessError
from harness.overlay import Overlay
from harness.target import Target


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    """The installed tpu_inference, whose import makes a backend at its end."""
    spec = find_spec("tpu_inference")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (installed,) = spec.submodule_search_locations
    package = tmp_path / "tpu_inference"
    package.mkdir()
    for path in Path(installed).iterdir():
        (package / path.name).symlink_to(path)
    (package / "__init__.py").unlink()
    code = Path(installed, "__init__.py").read_text()
    (package / "__init__.py").write_text(f"{code}\nimport jax\njax.devices()\n")
    return Overlay({"tpu_inference": package})


def test_an_import_that_touches_a_device_is_refused(target: Target, overlay: Overlay) -> None:
    with (
        LoadProcess(target, overlay) as process,
        pytest.raises(LoadProcessError, match="the loading process ended") as raised,
    ):
        process.run("tests.idle_jobs:echo", b"", target, timeout=60)
    assert "importing the stack touched a device" in raised.value.details


def test_the_installed_stack_touches_none(load_process: LoadProcess, target: Target) -> None:
    answer = load_process.run("tests.jobs:backends_alive", b"", target, timeout=60)
    assert json.loads(answer) == [False, True]


def test_what_imports_write_goes_with_the_process(
    load_process: LoadProcess, target: Target
) -> None:
    """torch writes a module for itself, and would remove it at an exit that never comes."""
    written = load_process.run("tests.jobs:written_by_an_import", b"", target, timeout=60)
    assert Path(written.decode()).parent == load_process.scratch
