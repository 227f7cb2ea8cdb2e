"""What the harness brings into an engine: nothing, where no load of its own is under way."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from harness.load import inside
from harness.load.inside import BEGIN, MULTIHOST, LoadSession
from harness.load.targets.known_targets import target_named


@pytest.fixture
def registrations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the plugin registers, one entry a loader; of the stack there are empty modules alone."""
    made: list[str] = []
    loader = ModuleType("vllm_model_loader")
    loader.RunaiIncrementalModelLoader = type("Loader", (), {})  # type: ignore[attr-defined]
    register = ModuleType("model_loader")
    register.register_model_loader = (  # type: ignore[attr-defined]
        lambda name: lambda made_of: made.append(f"{name} {made_of.__name__}")
    )
    monkeypatch.setitem(sys.modules, "tpu_inference.models.vllm.vllm_model_loader", loader)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader", register)
    monkeypatch.setattr(inside, "current", None)
    return made


def begin() -> LoadSession:
    """A session, as a worker that the harness started begins one."""
    return LoadSession(target_named("emulated"), [])


def test_an_engine_of_somebody_else_is_left_alone(
    registrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BEGIN, raising=False)
    inside.plugin()
    assert (registrations, inside.current) == ([], None)


def test_a_worker_that_the_harness_started_registers_the_recorder_once(
    registrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BEGIN, f"{__name__}:begin")
    inside.plugin()
    inside.plugin()
    assert registrations == ["runai_streamer TimedLoader"]
    assert BEGIN not in os.environ  # what the worker starts is no worker of the harness


def test_a_process_is_alone_while_its_configuration_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MULTIHOST, "ray")
    with inside.alone():
        assert MULTIHOST not in os.environ
    assert os.environ[MULTIHOST] == "ray"
