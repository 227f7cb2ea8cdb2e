"""The stack is imported before the first fork, and an import that touches a device is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.base.errors import InternalError, TargetUnavailable
from harness.families.known_families import families
from harness.load.child import JOBS
from harness.load.overlay import Overlay
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.job import VerifyRequest
from harness.verification.outcomes import outcomes
from tests.support.reports import a_report


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
        pytest.raises(TargetUnavailable, match="importing the stack touched a device") as raised,
    ):
        process.run("tests.support.idle_jobs:echo", b"", target, timeout=60)
    assert raised.value.where == "the loading process of emulated"


STUBS = (
    "torch", "jax", "vllm.engine.arg_utils", "tpu_inference.models.vllm.vllm_model_wrapper",
    "tpu_inference.worker.tpu_worker", "jax._src.xla_bridge", "vllm.v1.executor.uniproc_executor",
    *(module for family in families() for module in family.upstream_modules),
)  # fmt: skip


@pytest.fixture
def stubs(tmp_path: Path) -> Overlay:
    """A stack of empty modules, which is imported at once."""
    for name in STUBS:
        path = tmp_path
        for part in name.split("."):
            path /= part
            path.mkdir(exist_ok=True)
            (path / "__init__.py").touch()
    (tmp_path / "jax/_src/xla_bridge/__init__.py").write_text(
        "backends_are_initialized = lambda: False"
    )
    packages = ("torch", "jax", "vllm", "tpu_inference")
    return Overlay({name: tmp_path / name for name in packages})


def test_a_job_that_cannot_be_imported_is_the_harnesss_own_failure(
    stubs: Overlay, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the load's, not a difference; and it is not tried again."""
    monkeypatch.setitem(JOBS, "verify", "tests.absent:verify")
    with LoadProcess(target, stubs) as process:
        for _ in range(2):
            with pytest.raises(InternalError, match=r"No module named 'tests\.absent'") as raised:
                process.run("verify", b"", target, timeout=60)
            monkeypatch.setattr("subprocess.Popen", None)
    assert raised.value.exit_code == 5


def test_what_compares_and_does_not_compile_is_the_harnesss_own_failure(
    stubs: Overlay, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's module says what to do once for all loads, after the stack's import."""
    (stubs.packages["vllm"] / "job.py").write_text("def prepare(): raise TypeError('as planted')")
    monkeypatch.setitem(JOBS, "verify", "vllm.job:verify")
    with (
        LoadProcess(target, stubs) as process,
        pytest.raises(InternalError, match="not the load under test: TypeError: as planted"),
    ):
        process.run("verify", b"", target, timeout=60)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise ImportError('as planted')", "ImportError: as planted"),
        ("import os; os._exit(3)", ""),
        ("import sys; sys.exit('as planted')", "as planted"),
    ],
)
def test_a_stack_that_cannot_be_imported_is_a_load_that_failed(
    code: str, outcome: str, stubs: Overlay, target: Target
) -> None:
    (stubs.packages["vllm"] / "__init__.py").write_text(code)
    request = VerifyRequest(checkpoint="", reference="", target=target, parts=())
    unfinished = a_report(status=Status.LOAD_FAILED)
    with LoadProcesses(stubs) as processes:
        (report,) = outcomes(request, unfinished, [target], processes, 60)
    assert report.failure is not None
    assert report.failure.error == "the loading process ended"
    assert outcome in report.failure.log_tail
    assert report.exit_code == 3


def test_the_installed_stack_touches_none(load_process: LoadProcess, target: Target) -> None:
    answer = load_process.run("tests.support.jobs:backends_alive", b"", target, timeout=60)
    assert json.loads(answer) == [False, True]


def test_what_imports_write_goes_with_the_process(
    load_process: LoadProcess, target: Target
) -> None:
    """torch writes a module for itself, and would remove it at an exit that never comes."""
    written = load_process.run("tests.support.jobs:written_by_an_import", b"", target, timeout=60)
    assert Path(written.decode()).parent == load_process.scratch
