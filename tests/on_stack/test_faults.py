"""Every fault of the table is detected and diagnosed on the real stack; the table is a document.

``pytest tests/on_stack/test_faults.py --write-docs`` writes what this run saw to
``docs/faults.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.report.report import Report, Status, believed
from harness.synthetic.writer import write_checkpoint
from harness.verification.job import VerifyRequest
from tests.support.fault_catalogue import FAULTS
from tests.support.fault_classes import CLASSES, ELSEWHERE, OF_FAMILIES
from tests.support.fault_table import NOT_APPLICABLE, cell, is_right, read_table, write_table
from tests.support.faults import EXPERTS, Fault

#: Where the faults are planted: the recipe and the part of it that is loaded. Each is stored in
#: another way, and goes through another loop of vLLM's.
FAMILIES: dict[str, tuple[str, Part]] = {
    "Qwen3-VL-MoE": ("qwen3-vl-moe", Part.DECODER),
    "Granite-MoE": ("granite-moe", Part.DECODER),
    "Mixtral": ("mixtral", Part.DECODER),
    "Qwen3.6-MTP": ("qwen3.6-mtp", Part.MTP),
}
PER_EXPERT = "Mixtral"

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("twelve")
    return {
        family: write_checkpoint(recipe, base / recipe, experts=EXPERTS).path
        for family, (recipe, _) in FAMILIES.items()
    }


def verified(fault: Fault, path: Path, part: Part, process: LoadProcess, target: Target) -> Report:
    parts = tuple(Part) if fault.whole else (part,)
    request = VerifyRequest(checkpoint=str(path), reference=str(path), target=target, parts=parts)
    argument = msgspec.json.encode((request, fault.name))
    answer = process.run("tests.support.jobs:verify_with_fault", argument, target, timeout=300)
    return believed(msgspec.json.decode(answer, type=Report), fault.name)


def cases() -> list[tuple[Fault, str]]:
    return [
        (fault, family)
        for fault in FAULTS
        for family in FAMILIES
        if fault.only in ("", family) and not (fault.fused_only and family == PER_EXPERT)
    ]


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], str]]:
    """What this run saw, by fault and family; with --write-docs it is the table of the document."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    if request.config.getoption("--write-docs"):
        assert len(cells) == len(cases()), "the table needs a run of all its faults, in one process"
        write_table(DOCUMENT, cells, list(FAMILIES))


@pytest.mark.parametrize(
    ("fault", "family"), cases(), ids=[f"{fault.name}-{family}" for fault, family in cases()]
)
def test_fault(
    fault: Fault, family: str, checkpoints: dict[str, Path], load_process: LoadProcess,
    target: Target, seen: dict[tuple[str, str], str], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    part = FAMILIES[family][1]
    report = verified(fault, checkpoints[family], part, load_process, target)
    causes = list(dict.fromkeys(diagnosis.cause.value for diagnosis in report.diagnoses))
    seen[fault.name, family] = said = cell(fault, report.status, causes)
    assert is_right(fault, report.status, causes), [
        *(d.summary for d in report.diagnoses),
        report.failure,
    ]
    if not request.config.getoption("--write-docs"):
        assert read_table(DOCUMENT)[fault.name, family] == said, "run with --write-docs"


def test_the_document_has_every_row(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-docs"):
        pytest.skip("the document is written when all of this session has run")
    every = {(fault.name, family) for fault, family in cases()}
    assert {case for case, text in read_table(DOCUMENT).items() if text != NOT_APPLICABLE} == every


def test_every_class_of_the_catalogue_is_planted_or_told_why_not() -> None:
    planted = {fault.catalogued for fault in FAULTS}
    assert not planted & set(ELSEWHERE)
    assert planted | set(ELSEWHERE) == {*CLASSES, *OF_FAMILIES}
    assert len(CLASSES) == 21
    text = DOCUMENT.read_text()
    assert all(f"| {name} |" in text for name in planted | set(ELSEWHERE))


@pytest.mark.parametrize(
    ("status", "causes", "right"),
    [
        (Status.DIFFERENT, ["bit-flip"], True),
        (Status.LOAD_FAILED, ["bit-flip"], True),
        (Status.EQUAL, [], False),
        (Status.DIFFERENT, [], False),
        (Status.DIFFERENT, ["bit-flip", "zeros"], False),
        (Status.DIFFERENT, ["unexplained"], False),
    ],
)
def test_what_counts_as_right(status: Status, causes: list[str], right: bool) -> None:
    fault = Fault("f", "corruption", lambda base: base, (Cause.BIT_FLIP,))
    assert is_right(fault, status, causes) is right
    harmless = Fault("f", "file order", lambda base: base, ())
    assert is_right(harmless, status, causes) is (status is Status.EQUAL)
