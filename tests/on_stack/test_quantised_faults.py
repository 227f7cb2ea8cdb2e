"""Damage to the files of quantised releases is found after a real load, and named.

One load a format shows all of it: a copy that is damaged in many matrices is loaded, and compared
with the release as it was. ``pytest tests/on_stack/test_quantised_faults.py --write-docs`` writes
what each kind was called to ``docs/formats.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.app.plugin import TargetOf
from harness.base.number_runs import numbers_of
from harness.base.writing import write
from harness.compare.difference import BitsDiffer
from harness.explain.causes import Cause
from harness.families.experts import ExpertKey
from harness.families.formats.format import UNCHANGED
from harness.families.formats.known_formats import formats
from harness.load.process import LoadProcesses
from harness.load.target import Parallelism
from harness.report.report import Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from scenarios.formats import recipe_of
from tests.support.quantised_damage import KINDS, ZERO_BIAS, DamagedRelease, Planted

#: Every format that any release takes loads onto this mesh.
MESH = "expert=2,model=2"
REFUSED = ("ct-int8", "ct-int4-zeros", "gptq")
WAYS = [
    (name, kept)
    for name, each in formats().items()
    for kept in ((False, True) if each.can_be_kept else (False,))
    if name not in REFUSED
]
#: Of all damage to a release, this share is to have its own name.
NAMED = 0.9

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
BEGIN = "<!-- damage: written by tests/on_stack/test_quantised_faults.py -->"
END = "<!-- end of damage -->"
Row = dict[str, str]


def label(name: str, kept: bool) -> str:
    return f"`{name}`, kept" if kept else f"`{name}`"


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Iterator[dict[str, Row]]:
    """What this run saw, by format; with --write-docs it is the table of the document."""
    rows: dict[str, Row] = {}
    yield rows
    if request.config.getoption("--write-docs"):
        assert len(rows) == len(WAYS), "the table needs a run of all formats, in one process"
        before, rest = DOCUMENT.read_text().split(BEGIN)
        text = f"{before}{BEGIN}\n{table(rows)}{END}{rest.split(END)[1]}"
        write(DOCUMENT, text.encode())


def table(rows: dict[str, Row]) -> str:
    head = ["format", *KINDS]
    lines = [head, ["---"] * len(head)]
    lines += [[way, *(row.get(kind, "n/a") for kind in KINDS)] for way, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "kept"), WAYS, ids=[f"{n}-unchanged" if kept else n for n, kept in WAYS]
)
def test_damage_is_found_and_named(
    name: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    moe_target_of: TargetOf, load_processes: LoadProcesses, seen: dict[str, Row],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.setenv(UNCHANGED, str(int(kept)))
    sound = write_checkpoint(
        recipe_of(name), tmp_path / "sound", shapes="tiny:blocks", quantised=name
    ).path
    release = DamagedRelease(sound, tmp_path / "damaged")
    planted, biases = release.damage(), release.zero_biases()
    report = verify(
        release.path, moe_target_of(parallelism=Parallelism.TENSOR, mesh=MESH), reference=sound,
        stream_options={UNCHANGED: str(int(kept))}, processes=load_processes,
    )  # fmt: skip
    assert report.status is Status.DIFFERENT, report.failure
    called = causes_of(report)
    assert set(called) == {each.key for each in planted} | set(biases)
    row = {kind: cell([p for p in planted if p.kind == kind], called) for kind in KINDS}
    row = {kind: words for kind, words in row.items() if words}
    if biases:
        assert {called[name] for name in biases} == {Cause.NARROWED}  # "a part of it is zero"
        row[ZERO_BIAS] = _counted([called[name] for name in biases])
    right = sum(called[each.key] is each.cause for each in planted)
    assert right >= NAMED * len(planted), row
    seen[label(name, kept)] = row
    if not request.config.getoption("--write-docs"):
        lines = table({label(name, kept): row}).splitlines()
        assert lines[-1] in DOCUMENT.read_text().splitlines(), "run with --write-docs"


def causes_of(report: Report) -> dict[ExpertKey | str, Cause]:
    """What every difference was called: of an expert's matrix, or of any other tensor."""
    found: dict[ExpertKey | str, Cause] = {}
    for diagnosis in report.diagnoses:
        for number in numbers_of(diagnosis.members):
            difference = report.differences[number]
            if difference.key:
                found[difference.key] = diagnosis.cause
            else:
                assert isinstance(difference, BitsDiffer)
                assert difference.source
                found[difference.source.tensor] = diagnosis.cause
    return found


def cell(planted: list[Planted], called: dict[ExpertKey | str, Cause]) -> str:
    return _counted([called[each.key] for each in planted]) if planted else ""


def _counted(causes: list[Cause]) -> str:
    """``10 scale``, or ``8 scale, 2 code``."""
    return ", ".join(f"{count} `{cause}`" for cause, count in Counter(causes).most_common())
