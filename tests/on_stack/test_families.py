"""Every family on the real stack: one bit flipped in each kind of tensor, and each is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare.difference import BitsDiffer
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.verify import verify
from scenarios.catalogue import SCENARIOS
from tests.support.differences import as_a
from tests.support.flips import KINDS, element_to_flip, with_bytes_flipped

_SCENARIOS = {scenario.id: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("name", KINDS)
def test_one_bit_of_each_kind_of_tensor(
    name: str, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    scenario = _SCENARIOS[name]
    path, _ = scenario.checkpoint(tmp_path)
    flips = {tensor: element_to_flip(Path(path), tensor) for tensor in KINDS[name]}
    report = verify(
        path, target, reference=with_bytes_flipped(Path(path), tmp_path / "flipped", flips),
        stream_options=scenario.stream_options, processes=load_processes,
    )  # fmt: skip
    assert report.status is Status.DIFFERENT
    differences = [as_a(BitsDiffer, difference) for difference in report.differences]
    of_tensor = {d.source.tensor: d for d in differences if d.source}
    assert set(of_tensor) == set(KINDS[name])
    counts = {difference.count for difference in differences}
    assert counts <= {1, target.devices}  # one element, on one device or on each
    told = [diagnosis.summary for diagnosis in report.diagnoses]
    for tensor, difference in of_tensor.items():
        words = str(difference.key or tensor)
        assert any(words in summary for summary in told), (tensor, told)
