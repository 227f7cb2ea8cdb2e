"""Engines that cannot be asked, or whose workers are no mesh; the engines here only answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from harness.base.errors import HarnessError, InternalError, TargetUnavailable
from harness.families.family import Part
from harness.load.engines import EngineWorker
from harness.load.extension import run_on
from harness.load.targets.known_targets import target_on
from harness.verification.engine_side import describe
from harness.verification.running import verify_engine

VERSIONS = {"vllm": "0.26.0", "moe-load-harness": "1"}


def worker(host: int, hosts: int, **versions: str) -> EngineWorker:
    target = replace(target_on("emulated", 4 * hosts, hosts=hosts), host=host)
    return EngineWorker(
        model="/m", parts=(Part.DECODER,), target=target, versions=VERSIONS | versions
    )


class Engine:
    def __init__(self, *workers: EngineWorker) -> None:
        self._workers = workers

    def collective_rpc(self, method: Any, args: tuple[str, str] = ("", "")) -> list[str]:
        return [msgspec.json.encode(each).decode() for each in self._workers]


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        ([worker(0, 1), worker(0, 1)], "2 workers, whose meshes are over 1 processes"),
        ([worker(0, 2)], "1 workers, whose meshes are over 2 processes"),
        ([worker(0, 2), worker(0, 2)], "2 workers, whose meshes are over 2 processes"),
        (
            [worker(0, 2), worker(1, 2, vllm="0.32.0")],
            "worker 1 has other versions than worker 0: {'vllm': ('0.26.0', '0.32.0')}",
        ),
    ],
    ids=["two meshes", "a worker too few", "one of them twice", "other versions"],
)
def test_workers_of_more_than_one_mesh_are_refused(workers: list[EngineWorker], told: str) -> None:
    with pytest.raises(TargetUnavailable) as raised:
        verify_engine(Engine(*workers))
    assert told in str(raised.value)


class Lacking:
    """An engine in another process, which takes no functions."""

    def collective_rpc(self, method: Any, args: tuple[str, str] = ("", "")) -> list[str]:
        if isinstance(method, str):
            raise NotImplementedError(f"Method {method!r} is not implemented.")
        raise TypeError("Object of type function is not serializable")


def test_an_engine_without_the_extension_is_told_of_it() -> None:
    with pytest.raises(TargetUnavailable, match="workers cannot be asked") as raised:
        verify_engine(Lacking())
    assert 'worker_extension_cls="harness.Extension"' in raised.value.hint


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(TargetUnavailable, match="workers cannot be asked") as raised:
        verify_engine("http://127.0.0.1:9")
    assert "VLLM_SERVER_DEV_MODE=1" in raised.value.hint


def test_an_error_of_the_engines_own_passes() -> None:
    class Broken:
        def collective_rpc(self, method: Any, args: Any = ()) -> list[str]:
            raise RuntimeError("the engine is dead")

    with pytest.raises(RuntimeError, match="the engine is dead"):
        verify_engine(Broken())


def test_what_is_sent_can_name_no_module() -> None:
    with pytest.raises(InternalError, match="no function 'os:system'"):
        run_on(object(), "os:system", "true")


def test_a_worker_of_another_platform_is_refused() -> None:
    with pytest.raises(HarnessError, match="has no model on JAX's devices"):
        describe(object(), "")
