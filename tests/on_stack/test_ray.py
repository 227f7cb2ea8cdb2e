"""Two nodes of a real Ray cluster on this machine: real loads, compared where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.explain.causes import Cause
from harness.load.process import LoadProcesses
from harness.load.target import Parallelism
from harness.load.targets.known_targets import target_on
from harness.report.message import failure_text
from harness.report.report import Status
from harness.verification.verify import verify
from tests.support.ray_jobs import FAULT
from tests.support.ray_nodes import ray_nodes

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.mark.parametrize(
    ("recipe", "parallelism", "experts", "others"),
    [
        ("qwen3-vl-moe", Parallelism.TENSOR, 16, [62]),
        ("qwen3.6-mtp", Parallelism.EXPERT, 24, [59, 16]),
    ],
    ids=["GMM_TP", "GMM_EP and MTP"],
)
def test_hosts_of_a_ray_cluster_hold_what_one_host_does(
    cluster: Any,
    load_processes: LoadProcesses,
    tiny_checkpoints: dict[str, Path],
    recipe: str,
    parallelism: Parallelism,
    experts: int,
    others: list[int],
) -> None:
    target = target_on("emulated", 8, parallelism, hosts=2, on=f"ray:{cluster.address}")
    report = verify(tiny_checkpoints[recipe], target, processes=load_processes, timeout=1200)
    assert report.failure is None, failure_text(report)
    assert [(part.number, len(part.devices)) for part in report.hosts] == [(0, 4), (1, 4)]
    assert report.environment.entry.startswith("tpu_inference.executors.ray_distributed_executor")
    assert report.experts_compared == experts
    assert [tally.compared for tally in report.parameters] == others
    assert {d.cause for d in report.diagnoses} <= {Cause.UNWRITTEN}, failure_text(report)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("worker dies while streaming", "the worker's process died"),
        ("worker dies while comparing", "the worker's process died"),
        ("node dies while streaming", "the node died"),  # the last: the node stays away
    ],
)
def test_a_host_that_dies_is_named(
    cluster: Any,
    load_processes: LoadProcesses,
    tiny_checkpoints: dict[str, Path],
    fault: str,
    what: str,
) -> None:
    report = verify(
        tiny_checkpoints["qwen3-vl-moe"],
        target_on("emulated", 8, hosts=2, on=f"ray:{cluster.address}"),
        stream_options={FAULT: fault},
        processes=load_processes.doing("tests.support.ray_jobs:verify_with_fault"),
        timeout=1200,
    )
    assert report.status is Status.LOAD_FAILED
    assert report.failure is not None
    assert (report.failure.host, report.failure.error) == (1, what), failure_text(report)
    assert "host 1, Ray node" in report.failure.message
