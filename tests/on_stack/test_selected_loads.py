"""Loads of which a selection is compared, or that go by digests, or to another mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import TargetUnavailable
from harness.compare.digest_comparison import Method
from harness.compare.selection import Selection
from harness.families.family import Part
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.target import Target
from harness.load.targets.known_targets import target_named
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.flips import FLIPS, with_one_byte_flipped


def test_a_real_load_by_digests(
    tiny_checkpoints: dict[str, Path],
    target: Target,
    load_processes: LoadProcesses,
    tmp_path: Path,
) -> None:
    recipe = "qwen3-vl-moe"
    path, flip = tiny_checkpoints[recipe], FLIPS[recipe][:2]
    reference = with_one_byte_flipped(path, tmp_path / "reference", *flip)
    reports = [
        verify(path, target, reference=reference, method=method, processes=load_processes)
        for method in (Method.READBACK, Method.DIGESTS)
    ]
    assert [report.status for report in reports] == [Status.DIFFERENT] * 2
    assert reports[0].differences == reports[1].differences
    assert reports[0].tallies == reports[1].tallies
    assert "--compare digests" in reports[1].repeat


def test_the_report_counts_what_was_left_out(
    tiny_checkpoints: dict[str, Path], target: Target, load_processes: LoadProcesses
) -> None:
    selection = Selection(layers="0,-1", experts="0-1,-1")
    report = verify(
        tiny_checkpoints["qwen3.6-mtp"], target, selection=selection, processes=load_processes
    )
    assert report.status is Status.EQUAL
    assert {t.part: (t.experts_compared, t.experts, t.left_out) for t in report.tallies} == {
        Part.DECODER: (6, 16, 10),
        Part.MTP: (3, 8, 5),
    }
    assert "--layers=0,-1 --experts=0-1,-1" in report.repeat


@pytest.mark.parametrize("family", ["qwen3-vl-moe", "qwen3.5-moe"])
def test_a_load_of_fewer_layers(
    tmp_path: Path, family: str, target: Target, load_processes: LoadProcesses
) -> None:
    path = write_checkpoint(family, tmp_path / "c", layers=4).path
    report = verify(path, target, num_layers=2, processes=load_processes)
    assert (report.status, report.failure) == (Status.EQUAL, None)
    (tally,) = report.tallies
    assert (tally.layers, tally.experts_compared) == (2, 16)
    assert "--num-layers 2" in report.repeat


def test_the_count_of_devices_cannot_change_once_xla_is_alive(
    target: Target, load_process: LoadProcess
) -> None:
    with pytest.raises(TargetUnavailable, match="XLA is alive with 5 CPU devices") as raised:
        load_process.run("tests.support.jobs:load_eight_with_five_alive", b"", target, timeout=120)
    assert raised.value.expected == "9, with 8 of the mesh"


def test_two_targets_of_a_session_live_in_two_processes(load_process: LoadProcess) -> None:
    """The same parent: each load sees the number of devices its target asked for."""
    counts = {
        devices: load_process.run(
            "tests.support.jobs:count_devices", b"", target_named("emulated", devices), timeout=120
        )
        for devices in (2, 8)
    }
    assert counts == {2: b"3", 8: b"9"}
