"""Silent-pass attempts that only a real load tells: none of them comes out equal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.compare.difference import Kind
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status, contradictions
from harness.synthetic.writer import write_checkpoint
from harness.verification.coverage import NOT_ASKED
from harness.verification.verify import verify
from tests.support.silent_passes import (
    FUSED_MTP,
    LAYERS,
    VL,
    Q,
    add_undescribed_draft,
    without_mtp,
)
from tests.support.silent_worlds import change_tensors, some

Tamper = Callable[[Path, Path], object]


def _added(name: str, *, to: int) -> Tamper:
    """Add a tensor to the checkpoint (0) or to the reference (1)."""
    return lambda *paths: change_tensors(paths[to], lambda t: t.update({name: some()}))


ATTEMPTS: list[tuple[str, str, Tamper, Kind]] = [
    ("layer-beyond", VL, _added(f"{LAYERS}.2.input_layernorm.weight", to=1), Kind.UNACCOUNTED),
    ("mtp-in-the-checkpoint", Q, _added("mtp.foo", to=0), Kind.UNACCOUNTED),
    ("mtp-in-the-reference", Q, _added("mtp.foo", to=1), Kind.UNACCOUNTED),
    (
        "scale-in-the-reference", Q,
        _added(f"{LAYERS}.0.input_layernorm.weight_scale_inv", to=1), Kind.UNACCOUNTED,
    ),
    ("reference-without-mtp", FUSED_MTP, lambda _, path: without_mtp(path), Kind.UNACCOUNTED),
    ("checkpoint-without-mtp", FUSED_MTP, lambda path, _: without_mtp(path), Kind.UNACCOUNTED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "tamper", "found"), [row[1:] for row in ATTEMPTS], ids=[row[0] for row in ATTEMPTS]
)
def test_no_silent_pass(
    recipe: str,
    tamper: Tamper,
    found: Kind,
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    target: Target,
    load_processes: LoadProcesses,
) -> None:
    copies = [shutil.copytree(tiny_checkpoints[recipe], tmp_path / name) for name in "cr"]
    tamper(*copies)
    report = verify(copies[0], target, reference=copies[1], processes=load_processes)
    assert report.status is Status.DIFFERENT, report.failure
    assert list(contradictions(report)) == []
    assert found in {difference.kind for difference in report.differences}


HONEST: dict[str, Callable[[Path], Path]] = {
    "mtp-fused": lambda at: write_checkpoint(FUSED_MTP, at / "c").path,
    "mtp-tied": lambda at: write_checkpoint(FUSED_MTP, at / "c", tied=True).path,
}


@pytest.mark.parametrize("honest", HONEST)
def test_what_is_honest_is_equal(
    honest: str, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    report = verify(HONEST[honest](tmp_path), target, processes=load_processes)
    assert report.status is Status.EQUAL
    (account,) = report.accounts
    assert (account.compared, account.left_alone) == (account.tensors, {})


def test_a_draft_model_that_its_family_does_not_describe(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    """GLM-4, as it is published: the decoder alone, and the draft's tensors are counted."""
    path = shutil.copytree(tiny_checkpoints["glm4-moe"], tmp_path / "c")
    before = len(ModelCheckpoint(path).entries)
    add_undescribed_draft(path)
    report = verify(path, target, parts=[Part.DECODER], processes=load_processes)
    assert report.status is Status.EQUAL, report.failure
    (account,) = report.accounts
    assert account.compared == before
    assert account.left_alone == {NOT_ASKED.format(part=Part.MTP): account.tensors - before}
