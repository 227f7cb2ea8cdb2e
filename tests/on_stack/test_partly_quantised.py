"""Releases that are quantised in part, after real loads: what is compared of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.app.plugin import TargetOf
from harness.families.family import Part
from harness.load.process import LoadProcesses
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets.known_targets import served_by
from harness.report.report import Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.partly_quantised import (
    with_attention_quantised,
    with_its_own_quantisation_file,
    with_the_draft_in_bf16,
)

#: Every format that any release takes loads onto this mesh.
MESH = "expert=2,model=2"


@pytest.fixture
def mesh(moe_target_of: TargetOf) -> Target:
    return moe_target_of(parallelism=Parallelism.TENSOR, mesh=MESH)


def release(tmp_path: Path, recipe: str, name: str) -> Path:
    return write_checkpoint(recipe, tmp_path / name, shapes="tiny:blocks", quantised=name).path


def test_experts_alone_where_attention_is_quantised(
    tmp_path: Path, mesh: Target, load_processes: LoadProcesses
) -> None:
    path = with_attention_quantised(
        release(tmp_path, "qwen3-moe", "ct-fp8-channel"), tmp_path / "more"
    )
    report = verify(path, mesh, experts_only=True, processes=load_processes)
    assert report.status is Status.EXPERTS_EQUAL, report.failure
    assert [(tally.experts, tally.experts_compared) for tally in report.tallies] == [(16, 16)]


def test_modelopts_own_file(tmp_path: Path, mesh: Target, load_processes: LoadProcesses) -> None:
    path = with_its_own_quantisation_file(release(tmp_path, "qwen3-moe", "nvfp4"), tmp_path / "own")
    report = verify(path, mesh, processes=load_processes)
    assert report.status is Status.EQUAL, report.failure


def draft_in_bf16(name: str, tmp_path: Path, mesh: Target, processes: LoadProcesses) -> Report:
    target = served_by(mesh, Implementation.VLLM)  # which upstream takes for both or for none
    path = with_the_draft_in_bf16(release(tmp_path, "qwen3-next-mtp", name), tmp_path / "draft")
    return verify(path, target, processes=processes)


def test_a_draft_model_in_bf16(tmp_path: Path, mesh: Target, load_processes: LoadProcesses) -> None:
    report = draft_in_bf16("ct-int4", tmp_path, mesh, load_processes)
    assert report.status is Status.EQUAL, report.failure
    counts = [(tally.part, tally.experts, tally.experts_compared) for tally in report.tallies]
    assert counts == [(Part.DECODER, 16, 16), (Part.MTP, 8, 8)]


def test_upstream_cannot_leave_experts_of_nvfp4_in_bf16(
    tmp_path: Path, mesh: Target, load_processes: LoadProcesses
) -> None:
    """tpu-inference makes the method of unquantised experts without its mesh (0.26 and 0.32)."""
    report = draft_in_bf16("nvfp4", tmp_path, mesh, load_processes)
    assert report.status is Status.LOAD_FAILED
    assert report.failure
    assert report.failure.error == "TypeError"
    assert "VllmUnquantizedFusedMoEMethod.__init__() missing 1 required" in report.failure.message
