"""Real loads compared with a digest file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.compare.difference import DigestDiffers
from harness.explain.causes import Cause
from harness.families.family import Part, Storage
from harness.families.known_families import recipes
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.target import Target
from harness.report.report import Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.digests import write_digests
from harness.verification.job import VerifyRequest
from harness.verification.verify import verify
from tests.support.faults import EXPERTS
from tests.support.flips import with_one_byte_flipped
from tests.support.restored import restored

RECIPE = "qwen3.6-mtp"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("published")
    return write_checkpoint(RECIPE, base / RECIPE, experts=EXPERTS).path


@pytest.fixture(scope="module")
def digests(published: Path) -> Path:
    write_digests(published, published.parent / "digests")
    return published.parent / "digests"


@pytest.mark.parametrize(
    ("fault", "cause"), [("", None), ("two experts exchanged", Cause.EXPERTS_EXCHANGED)]
)
def test_weights_are_read_to_explain_alone(
    fault: str,
    cause: Cause | None,
    published: Path,
    digests: Path,
    load_process: LoadProcess,
    target: Target,
) -> None:
    request = VerifyRequest(
        checkpoint=str(published), reference=str(published), digests=str(digests), target=target,
        parts=tuple(Part),
    )  # fmt: skip
    answer = load_process.run(
        "tests.support.digest_jobs:verify_by_digests",
        msgspec.json.encode((request, fault)), target, timeout=300,
    )  # fmt: skip
    report, read = msgspec.json.decode(answer, type=tuple[Report, int])
    assert report.digests
    assert {d.cause for d in report.diagnoses} == ({cause} if cause else set())
    if cause is None:
        assert (report.status, read, report.digests.read) == (Status.EQUAL, 0, [])
    else:
        assert read > 0
        assert all("experts" in name for name in report.digests.read)


def test_a_checkpoint_saved_in_another_storage(
    published: Path, digests: Path, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    """Its own files were damaged besides: what was loaded is what they hold, and is not right."""
    family = recipes()[RECIPE][0]
    (naming,) = [n for n in family.namings if (n.part, n.storage) == (Part.MTP, Storage.PER_EXPERT)]
    saved = restored(published, tmp_path / "saved", {Part.MTP: naming})
    tensor = "mtp.layers.0.mlp.experts.5.down_proj.weight"
    damaged = with_one_byte_flipped(saved, tmp_path / "damaged", tensor, 37)
    report = verify(damaged, target, reference=digests, processes=load_processes)
    (difference,) = report.differences
    assert isinstance(difference, DigestDiffers)
    assert (difference.expert, difference.source.tensor) == (5, tensor)
    assert difference.device == difference.checkpoint
    assert [d.cause for d in report.diagnoses] == [Cause.FILE_DIFFERS]
