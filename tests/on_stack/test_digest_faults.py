"""A digest file alone detects every fault of the catalogue; with weights at hand each is named.

Each is planted into one real load, which is compared twice: while no weights of the checkpoint can
be read, and then with them at hand, when it gets the cause that it has without a digest file.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.families.family import Part
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.report.report import Report, Status, believed
from harness.synthetic.writer import write_checkpoint
from harness.verification.digests import write_digests
from harness.verification.job import VerifyRequest
from tests.support.fault_catalogue import FAULTS
from tests.support.fault_table import cell, read_table
from tests.support.faults import EXPERTS, Fault

#: By the table's column, recipe and part that are loaded; all but one fault are of the first.
MODELS = {
    "Qwen3-VL-MoE": ("qwen3-vl-moe", Part.DECODER),
    "Qwen3.6-MTP": ("qwen3.6-mtp", Part.MTP),
}
DECODER = next(iter(MODELS))
TABLE = read_table(Path(__file__).parents[2] / "docs" / "faults.md")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By model, a checkpoint and its digest file."""
    base = tmp_path_factory.mktemp("digested")
    found = {}
    for model, (recipe, _) in MODELS.items():
        path = write_checkpoint(recipe, base / recipe, experts=EXPERTS).path
        write_digests(path, base / f"{recipe}.digests")
        found[model] = (path, base / f"{recipe}.digests")
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_by_digests(
    fault: Fault, files: dict[str, tuple[Path, Path]], load_process: LoadProcess, target: Target
) -> None:
    model = fault.only or DECODER
    path, digests = files[model]
    parts = tuple(Part) if fault.whole else (MODELS[model][1],)
    request = VerifyRequest(
        checkpoint=str(path), reference=str(path), digests=str(digests), target=target, parts=parts
    )
    answer = load_process.run(
        "tests.support.digest_jobs:verify_twice_by_digests",
        msgspec.json.encode((request, fault.name)), target, timeout=300,
    )  # fmt: skip
    alone, report = msgspec.json.decode(answer, type=tuple[Report, Report])
    assert (believed(alone, fault.name).status is not Status.EQUAL) is bool(fault.causes)
    assert alone.digests
    causes = list(dict.fromkeys(each.cause.value for each in report.diagnoses))
    said = cell(fault, believed(report, fault.name).status, causes)
    assert said == TABLE[fault.name, model], [
        *(each.evidence for each in report.diagnoses), report.failure,
    ]  # fmt: skip
