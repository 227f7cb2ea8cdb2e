"""Two hosts on this machine, real loads: a fault on the second is found, and placed there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare.difference import Kind
from harness.explain.causes import Cause
from harness.load.process import LoadProcesses
from harness.load.targets.known_targets import meshed, target_on
from harness.report.message import failure_text
from harness.report.report import Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.differences import elements
from tests.support.slice_jobs import FAULT

SECOND_HOST = {"cpu:2048", "cpu:2049", "cpu:2050", "cpu:2051"}


@pytest.fixture
def with_fault(
    load_processes: LoadProcesses,
    tiny_checkpoints: dict[str, Path],
    request: pytest.FixtureRequest,
) -> Report:
    job = "tests.support.slice_jobs:verify_with_fault_on_host_1"
    return verify(
        tiny_checkpoints["qwen3-vl-moe"],
        target_on("emulated", 8, hosts=2),
        stream_options={FAULT: request.param},
        processes=load_processes.doing(job),
    )


@pytest.mark.parametrize("with_fault", ["spoiled"], indirect=True)
def test_experts_spoiled_on_the_second_host(with_fault: Report) -> None:
    assert with_fault.status is Status.DIFFERENT
    assert {d.device_name for d in with_fault.differences} <= SECOND_HOST
    assert {(d.layer, d.expert, d.projection) for d in with_fault.differences} == {
        (1, expert, "down_proj") for expert in (2, 5, 6, 7)
    }
    assert [(d.cause, d.summary) for d in with_fault.diagnoses] == [
        (Cause.EXPERTS_EXCHANGED, "experts 2 and 5 of decoder layer 1 are exchanged"),
        (Cause.BIT_FLIP, "one bit of decoder layer 1 expert 6 down_proj is flipped"),
        (Cause.UNWRITTEN, "expert 7 of decoder layer 1 was never written"),
    ]
    flipped = next(d for d in with_fault.differences if d.expert == 6)
    assert (elements(flipped).index, flipped.shard, flipped.device_name) == ((3, 25), 4, "cpu:2048")
    assert [(part.status, part.differences) for part in with_fault.hosts] == [
        (Status.EQUAL, 0),
        (Status.DIFFERENT, 4),
    ]


@pytest.mark.parametrize("with_fault", ["shard lost"], indirect=True)
def test_a_shard_and_a_device_nobody_looked_at(with_fault: Report) -> None:
    assert with_fault.status is Status.DIFFERENT
    kinds = {(d.kind, d.device_name) for d in with_fault.differences}
    assert (Kind.SHARDING, "cpu:2048") in kinds
    assert (Kind.UNCHECKED, "cpu:2051") in kinds
    assert Cause.UNCHECKED in {d.cause for d in with_fault.diagnoses}


@pytest.mark.parametrize(
    ("with_fault", "what"),
    [("killed", "the load's process ended with signal SIGKILL"), ("raised", "RuntimeError")],
    indirect=["with_fault"],
)
def test_a_host_that_fails_is_named_and_ends_the_others(with_fault: Report, what: str) -> None:
    assert with_fault.status is Status.LOAD_FAILED
    assert with_fault.failure is not None
    assert (with_fault.failure.host, with_fault.failure.error) == (1, what)
    assert "the load under test failed on host 1" in failure_text(with_fault)
    assert with_fault.experts_compared == 0


#: FP8 experts load on a mesh of all axes alone (known issue fp8-experts-on-explicit-axes).
FP8_MESH = "expert=2,model=2"


@pytest.fixture(scope="module")
def fp8_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8") / "c"
    return write_checkpoint("qwen3-vl-moe", out, shapes="tiny:blocks", quantised="fp8").path


def test_two_hosts_find_of_an_fp8_release_what_one_does(
    load_processes: LoadProcesses, fp8_release: Path
) -> None:
    alone, both = (
        verify(
            fp8_release,
            meshed("emulated", FP8_MESH, hosts=hosts),
            processes=load_processes,
        )
        for hosts in (1, 2)
    )
    assert (alone.status, both.status) == (Status.EQUAL, Status.EQUAL), failure_text(both)
    assert [len(part.devices) for part in both.hosts] == [2, 2]
    assert both.experts_compared == alone.experts_compared == 16
    assert [t.bytes_compared for t in both.tallies] == [t.bytes_compared for t in alone.tallies]
    assert [t.compared for t in both.parameters] == [t.compared for t in alone.parameters]


def test_what_is_wrong_of_an_fp8_release_on_the_second_host(
    load_processes: LoadProcesses, fp8_release: Path
) -> None:
    report = verify(
        fp8_release,
        meshed("emulated", FP8_MESH, hosts=2),
        stream_options={FAULT: "requantised wrongly"},
        processes=load_processes.doing("tests.support.slice_jobs:verify_with_fault_on_host_1"),
    )
    assert [(part.status, part.differences) for part in report.hosts] == [
        (Status.EQUAL, 0),
        (Status.DIFFERENT, 3),
    ]
    assert {d.device_name for d in report.differences} == {"cpu:2048"}
    scale, code, linear = report.differences
    assert (scale.layer, scale.expert, scale.projection) == (1, 4, "gate_proj")
    assert (code.layer, code.expert, code.projection) == (1, 6, "down_proj")
    assert (linear.layer, linear.parameter.rpartition("layers.")[2]) == (
        0,
        "0.self_attn.o_proj.weight",
    )
    assert [elements(d).count for d in (code, linear)] == [1, 1]
    assert elements(code).index == (3, 257)  # its part of F begins with 256
    causes = [(d.cause, d.first) for d in report.diagnoses]
    assert causes == [(Cause.SCALE, 0), (Cause.CODE, 1), (Cause.SCALE, 2)]
