"""Fixtures of the harness's own tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from harness.families.experts import ReferencePart, reference_parts
from harness.families.known_families import recipes
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.target import Implementation, Target
from harness.load.targets.known_targets import served_by
from harness.synthetic.writer import write_checkpoint
from harness.verification import digest_cache
from scenarios.urls import gcs_url, s3_url
from tests.support import registered as registered  # its jobs, for every loading process
from tests.support.reports import a_report

pytest_plugins = ["pytester", "tests.support.s3"]
__all__ = ["gcs_url", "s3_url"]  # fixtures; the scenarios have their own of the same kind

# The same examples every time; a slow machine is no fault of what is tested. The nightly run takes
# more of them: --hypothesis-profile=nightly.
for _profile, _examples in (("same-everywhere", 300), ("nightly", 20_000)):
    hypothesis.settings.register_profile(
        _profile,
        max_examples=_examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("same-everywhere")

_NUMBERS = itertools.count()
WriteTiny = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--write-docs`` renews the tables in ``docs/`` that a run is the source of."""
    parser.addoption("--write-docs", action="store_true", help="renew the tables in docs/")


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Nested sessions keep their order, and do not take themselves for a worker of this one."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
    return pytester


@pytest.fixture(autouse=True)
def kept_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test compares with digests that another, or the user, has kept."""
    place = tmp_path_factory.getbasetemp() / f"kept-{os.getpid()}-{next(_NUMBERS)}"
    monkeypatch.setattr(digest_cache, "place", lambda: place)


@pytest.fixture(scope="session")
def target(moe_target: Target) -> Target:
    """The plugin's, with vLLM's models: what upstream chooses is a scenario's."""
    return served_by(moe_target, Implementation.VLLM)


@pytest.fixture(scope="session")
def load_processes(moe_load_processes: LoadProcesses) -> LoadProcesses:
    """The plugin's, under a shorter name."""
    return moe_load_processes


@pytest.fixture(scope="session")
def load_process(moe_load_process: LoadProcess) -> LoadProcess:
    """The plugin's, under a shorter name."""
    return moe_load_process


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny checkpoint of every recipe. Not to be changed: copy one first."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(name, base / name).path for name in recipes()}


@pytest.fixture(params=sorted(recipes()))
def recipe(request: pytest.FixtureRequest) -> str:
    """Every recipe in turn."""
    return str(request.param)


@pytest.fixture
def decoder(tiny_checkpoints: dict[str, Path]) -> ReferencePart:
    """The decoder of the tiny Qwen3-VL-MoE checkpoint."""
    return reference_parts(ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"]))[0]


@pytest.fixture
def tiny_report(tmp_path: Path) -> Path:
    """The file of a report that is equal."""
    a_report().write(tmp_path / "given.json")
    return tmp_path / "given.json"
