"""Every fault of the table is detected and diagnosed on the real stack; the table is a document.

``pytest tests/test_faults.py --write-docs`` writes what this run saw to ``docs/faults.md``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.family import Part
from harness.load import LoadProcess
from harness.report import Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.target import Target
from harness.verification import VerifyRequest
from tests.fault_catalogue import FAULTS
from tests.faults import EXPERTS, Fault

#: Where the faults are planted: the recipe and the part of it that is loaded.
FAMILIES: dict[str, tuple[str, Part]] = {
    "Qwen3-VL-MoE": ("qwen3-vl-moe", Part.DECODER),
    "Qwen3.5": ("qwen3.5-moe", Part.DECODER),
    "Qwen3.5-MTP fused": ("qwen3.6-mtp", Part.MTP),
    "Qwen3.5-MTP per expert": ("qwen3.5-mtp", Part.MTP),
}
PER_EXPERT = "Qwen3.5-MTP per expert"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("twelve")
    return {
        family: write_checkpoint(recipe, base / recipe, experts=EXPERTS).path
        for family, (recipe, _) in FAMILIES.items()
    }


def verified(fault: Fault, path: Path, part: Part, process: LoadProcess, target: Target) -> Report:
    request = VerifyRequest(
        checkpoint=str(path), reference=str(path), target=target, parts=(part,), hook=fault.hook
    )
    answer = process.run(
        "tests.jobs:verify_with_fault", msgspec.json.encode((request, fault.name)), timeout=300
    )
    return msgspec.json.decode(answer, type=Report)


def cases() -> list[tuple[Fault, str]]:
    return [
        (fault, family)
        for fault in FAULTS
        for family in FAMILIES
        if not (fault.fused_only and family == PER_EXPERT)
    ]


@pytest.mark.parametrize(
    ("fault", "family"), cases(), ids=[f"{fault.name}-{family}" for fault, family in cases()]
)
def test_fault(
    fault: Fault, family: str, checkpoints: dict[str, Path], load_process: LoadProcess,
    target: Target,
) -> None:  # fmt: skip
    part = FAMILIES[family][1]
    report = verified(fault, checkpoints[family], part, load_process, target)
    if not fault.causes:
        assert report.status is Status.EQUAL
        return
    assert report.status is not Status.EQUAL, "not detected"
    seen = {diagnosis.cause for diagnosis in report.diagnoses}
    assert seen, "no diagnosis"
    assert seen <= set(fault.causes), [d.summary for d in report.diagnoses]
