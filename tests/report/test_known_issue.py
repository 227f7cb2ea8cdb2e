"""The table of known issues accepts what it describes, to the last difference, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.base.number_runs import numbers_of, runs_text
from harness.compare.difference import Difference, Kind, TensorUnread, Unaccounted
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection
from harness.load.target import Parallelism
from harness.report.known_issue import (
    Judgement,
    KnownIssue,
    Load,
    Raised,
    Sign,
    Verdict,
    expected_issues,
    judge,
    note,
    sign_of,
    table,
)
from harness.report.maps import map_of, with_missing
from harness.report.message import known_text
from harness.report.renderings import session_from
from harness.report.report import Frame, Report, SessionRow, Status
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES
from tests.support.differences import a_difference, unread
from tests.support.known_issue import FAILURES, ISSUE, LOAD, VERSIONS, failed, pinned_versions
from tests.support.reports import a_report, an_environment

LOADS = {scenario.id: scenario.load() for scenario in SCENARIOS}
RECORDED = session_from(FAILURES).rows
STACKS = ("0.21", "0.22", "0.26", "0.32")
replaced = msgspec.structs.replace


def judged(row: SessionRow) -> Judgement:
    return judge(row.report, LOADS[row.scenario], KNOWN_ISSUES)


def copied(row: SessionRow) -> SessionRow:
    return msgspec.convert(msgspec.to_builtins(row), SessionRow)


# What runs left, and the same with one thing changed.


def recorded(rows: Sequence[SessionRow] = RECORDED) -> pytest.MarkDecorator:
    ids = [f"{row.report.known_issue} {row.report.environment.stack}" for row in rows]
    return pytest.mark.parametrize("row", rows, ids=ids)


@recorded()
def test_what_a_run_left_is_known(row: SessionRow) -> None:
    judgement = judged(row)
    assert judgement.verdict is Verdict.KNOWN, judgement.remainder
    assert ", ".join(issue.id for issue in judgement.issues) == row.report.known_issue


def test_every_row_was_seen() -> None:
    seen = {name for row in RECORDED for name in row.report.known_issue.split(", ")}
    unseen = {row.id for row in KNOWN_ISSUES} - seen
    assert unseen == {"no-fp8-out-of-tree"}  # of torch-xla on stacks that no nightly run has


Tamper = Callable[[Report], None]


def put(report: Report, differences: Sequence[Difference], causes: Sequence[Cause]) -> None:
    """Have ``report`` hold these differences, and be whole: diagnoses, map and count agree."""
    report.differences = list(differences)
    report.diagnoses = [
        Diagnosis(
            cause=cause, summary="s", evidence="e", next_step="n", first=causes.index(cause),
            covers=causes.count(cause),
            members=runs_text(n for n, other in enumerate(causes) if other is cause),
        )
        for cause in dict.fromkeys(causes)
    ]  # fmt: skip
    report.maps = [
        map_of(
            old.part, old.layers, old.experts, partial(_every, old.experts),
            [d for d in differences if d.part is old.part],
        )
        for old in report.maps
    ]  # fmt: skip


def _every(experts: int, layer: int) -> range:
    return range(experts)


def causes_of(report: Report) -> list[Cause]:
    found = {n: d.cause for d in report.diagnoses for n in numbers_of(d.members)}
    return [found[n] for n in range(len(report.differences))]


def fewer(report: Report) -> None:
    put(report, report.differences[1:], causes_of(report)[1:])


def more(report: Report) -> None:
    """The last difference once more."""
    causes = causes_of(report)
    put(report, [*report.differences, report.differences[-1]], [*causes, causes[-1]])


def stray(report: Report) -> None:
    """A tensor beside, with the cause of those that are expected."""
    causes = causes_of(report)
    tensor = unread("model.stray.weight")
    put(report, [*report.differences, tensor], [*causes, causes[0]])


def half(report: Report) -> None:
    count = len(report.differences) // 2
    put(report, report.differences[:count], causes_of(report)[:count])


def changing(**given: Any) -> Tamper:
    """The first difference with other fields."""

    def tamper(report: Report) -> None:
        first, *others = report.differences
        put(report, [replaced(first, **given), *others], causes_of(report))

    return tamper


def another_name(report: Report) -> None:
    field = {TensorUnread: "tensor", Unaccounted: "name"}.get(
        type(report.differences[0]), "parameter"
    )
    changing(**{field: "model.other.weight"})(report)


def of_expert(*, layer: int, expert: int, projection: Projection = Projection.DOWN) -> Tamper:
    """The first difference as one of this matrix, of the part's first layer or of its next."""

    def tamper(report: Report) -> None:
        first, *others = report.differences
        layers = next(m.layers for m in report.maps if m.part is first.part)
        found = a_difference(
            Kind.BITS, part=first.part, layer=layers[layer % len(layers)], expert=expert,
            projection=projection, parameter=first.parameter,
        )  # fmt: skip
        put(report, [found, *others], causes_of(report))

    return tamper


def another_projection(report: Report) -> None:
    wanted = report.differences[0].projection is Projection.GATE
    of_expert(layer=0, expert=0, projection=Projection.UP if wanted else Projection.GATE)(report)


def another_kind(report: Report) -> None:
    first, *others = report.differences
    found = a_difference(
        Kind.VALUES, part=first.part, layer=first.layer, expert=first.expert,
        projection=first.projection, parameter=first.name,
    )  # fmt: skip
    put(report, [found, *others], causes_of(report))


def another_cause(report: Report) -> None:
    _, *causes = causes_of(report)
    put(report, report.differences, [Cause.BIT_FLIP, *causes])


def no_cause(report: Report) -> None:
    report.diagnoses = [
        replaced(diagnosis, members=runs_text(numbers_of(diagnosis.members)[:-1]))
        for diagnosis in report.diagnoses
    ]


def other_part(report: Report) -> None:
    put(report, [replaced(d, part=Part.MTP) for d in report.differences], causes_of(report))
    report.tallies = [replaced(t, part=Part.MTP) for t in report.tallies]
    report.parameters = [replaced(t, part=Part.MTP) for t in report.parameters]
    report.maps = [replaced(m, part=Part.MTP) for m in report.maps]


def equal_in_word(report: Report) -> None:
    report.status = Status.EQUAL


DIFFERENT = [row for row in RECORDED if row.report.status is Status.DIFFERENT]
TAMPERED = {
    "one fewer": fewer,
    "half of them": half,
    "one more": more,
    "a stray tensor": stray,
    "another parameter": another_name,
    "another layer": of_expert(layer=1, expert=7),
    "another expert": of_expert(layer=0, expert=3),
    "another projection": another_projection,
    "another kind": another_kind,
    "another cause": another_cause,
    "no cause": no_cause,
    "another part": other_part,
    "called equal": equal_in_word,
}


@recorded(DIFFERENT)
@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_other_differences_are_unexpected(row: SessionRow, tamper: Tamper) -> None:
    spoiled = copied(row)
    tamper(spoiled.report)
    judgement = judged(spoiled)
    assert judgement.verdict is Verdict.UNEXPECTED
    assert judgement.remainder


def failing(**given: Any) -> Tamper:
    """The failure with other fields."""

    def tamper(report: Report) -> None:
        assert report.failure is not None
        report.failure = replaced(report.failure, **given)

    return tamper


def told(**given: Any) -> Tamper:
    """The diagnosis with other fields."""

    def tamper(report: Report) -> None:
        report.diagnoses = [replaced(d, **given) for d in report.diagnoses]

    return tamper


def prefixed(report: Report) -> None:
    """The message with words before and after, that a search would pass over."""
    assert report.failure is not None
    failing(message=f"Out of memory: {report.failure.message}\nand more")(report)


def elsewhere(report: Report) -> None:
    """Raised in another function."""
    assert report.failure is not None
    frames = report.failure.frames
    last = Frame("jax/elsewhere.py", 1, "elsewhere", "raise")
    failing(frames=(*frames[:-1], last))(report)


def second_cause(report: Report) -> None:
    report.diagnoses = [*report.diagnoses, replaced(report.diagnoses[0], cause=Cause.BIT_FLIP)]


def beside(report: Report) -> None:
    report.differences = [unread()]


def one_arrived(report: Report) -> None:
    """Of the first part one expert more, or one fewer, is known not to have come."""
    first, *others = report.maps
    lost = range(1, first.experts) if "m" in first.states[Projection.UP][0] else range(1)
    empty = map_of(first.part, first.layers, first.experts)
    everywhere = {layer: range(first.experts) for layer in first.layers}
    missing = (everywhere if len(lost) > 1 else {}) | {first.layers[0]: lost}
    report.maps = [with_missing(empty, missing), *others]


def shallower(report: Report) -> None:
    """Of a checkpoint with one layer fewer; of one with none, of the first part."""
    first, *others = report.maps
    layers = first.layers[:-1]
    experts = first.experts * len(layers)
    states = {projection: rows[:-1] for projection, rows in first.states.items()}
    report.maps = [replaced(first, layers=layers, states=states), *others]
    report.tallies = [
        replaced(t, layers=len(layers), experts=experts) if t.part is first.part else t
        for t in report.tallies
    ]


FAILED = [row for row in RECORDED if row.report.failure]
FAILING = {
    "another error": failing(error="builtins.OSError"),
    "another message": failing(message="no"),
    "words around the message": prefixed,
    "another place": elsewhere,
    "another cause": told(cause=Cause.ZEROS),
    "another call": told(evidence="vllm/other.py:1 called weight_loader() of a Linear"),
    "no cause": lambda report: report.diagnoses.clear(),
    "a second cause": second_cause,
    "a difference beside": beside,
    "other experts that never arrived": one_arrived,
    "fewer layers": shallower,
    "called equal": equal_in_word,
}


@recorded(FAILED)
@pytest.mark.parametrize("tamper", FAILING.values(), ids=FAILING.keys())
def test_another_failure_is_unexpected(row: SessionRow, tamper: Tamper) -> None:
    spoiled = copied(row)
    tamper(spoiled.report)
    judgement = judged(spoiled)
    assert judgement.verdict is Verdict.UNEXPECTED
    assert judgement.remainder


def test_an_unexpected_report_says_what_remains() -> None:
    (row,) = [row for row in DIFFERENT if row.scenario == "vl-square"][:1]
    spoiled = copied(row)
    stray(spoiled.report)
    fewer(spoiled.report)
    text = known_text(judged(spoiled))
    assert "not as known issue orientation-guessed says" in text
    assert "1 unexplained: decoder model.stray.weight: unread [transposed]" in text
    assert "1 expected and not there: decoder layer 0 expert 0 gate_proj w13_weight" in text


# Two issues at once, and a selection of experts.

SIGN = Sign(Cause.BIT_FLIP, Kind.UNREAD, Part.DECODER, parameter="first")
FIRST = replace(ISSUE, id="first", raised=None, differs=lambda load: [SIGN])
SECOND = replace(FIRST, id="second", differs=lambda load: [SIGN._replace(parameter="second")])


def different(*names: str) -> Report:
    found = [unread(name) for name in names]
    report = a_report(
        status=Status.DIFFERENT,
        environment=an_environment(stack="0.21", versions=VERSIONS),
        maps=[map_of(Part.DECODER, [0], 8, lambda layer: range(8))],
    )
    put(report, found, [Cause.BIT_FLIP] * len(found))
    return report


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (("first", "second"), Verdict.KNOWN),
        (("second", "first"), Verdict.KNOWN),
        (("first",), Verdict.UNEXPECTED),
        (("first", "second", "third"), Verdict.UNEXPECTED),
        (("first", "first", "second"), Verdict.UNEXPECTED),
    ],
)
def test_a_report_is_the_union_of_its_issues(names: Sequence[str], verdict: Verdict) -> None:
    report = different(*names)
    judgement = judge(report, LOAD, [FIRST, SECOND])
    assert judgement.verdict is verdict
    note(report, judgement)
    assert report.known_issue == ("first, second" if verdict is Verdict.KNOWN else "")


def test_a_checkout_may_mend_one_of_two() -> None:
    report = different("second")
    report.environment = replaced(report.environment, overlay="vllm /pull (0123abc)")
    judgement = judge(report, LOAD, [FIRST, SECOND])
    assert judgement == Judgement(Verdict.KNOWN, (SECOND,))


def test_a_load_that_was_to_raise_and_differs_is_unexpected() -> None:
    judgement = judge(different("first"), LOAD, [FIRST, ISSUE])
    assert judgement.verdict is Verdict.UNEXPECTED
    assert "was to raise" in judgement.remainder


def test_experts_that_were_left_out_are_not_expected() -> None:
    signs = [Sign(Cause.ZEROS, Kind.BITS, Part.DECODER, 0, e, Projection.UP, "w") for e in (1, 2)]
    row = replace(FIRST, differs=lambda load: signs)
    report = different()
    found = a_difference(Kind.BITS, layer=0, expert=1, parameter="a.w", projection=Projection.UP)
    put(report, [found], [Cause.ZEROS])
    assert sign_of(found, Cause.ZEROS) == signs[0]
    assert judge(report, LOAD, [row]).verdict is Verdict.UNEXPECTED
    report.tallies = [replaced(t, experts_compared=2, left_out=6) for t in report.tallies]
    report.maps = [map_of(Part.DECODER, [0], 8, lambda layer: range(2), [found])]
    assert judge(report, LOAD, [row]).verdict is Verdict.KNOWN


# Releases, targets, checkouts, checkpoints of the user's own.


@pytest.mark.parametrize(
    ("vllm", "verdict"),
    [
        ("0.21.0", Verdict.KNOWN),
        ("0.20.2", Verdict.KNOWN),
        ("0.21.1.dev34+g0123abc", Verdict.KNOWN),
        ("0.21.0rc1", Verdict.KNOWN),
        ("0.21.0+tpu", Verdict.KNOWN),
        ("0.22.0", Verdict.UNEXPECTED),
        ("0.22.0rc1", Verdict.UNEXPECTED),
        ("0.22.1.dev3", Verdict.UNEXPECTED),
        ("", Verdict.UNEXPECTED),
        ("of tomorrow", Verdict.UNEXPECTED),
    ],
)
def test_a_row_is_of_its_releases(vllm: str, verdict: Verdict) -> None:
    assert judge(failed(vllm), LOAD, [ISSUE]).verdict is verdict


@pytest.mark.parametrize("build", ["0.22.0rc1", "0.22.0.dev1", "0.22.0+cpu", "0.22.0", "0.21.9"])
def test_no_build_falls_between_two_ranges(build: str) -> None:
    before, after = (replace(ISSUE, releases=(each,)) for each in ("vllm<0.22", "vllm>=0.22"))
    assert [row.is_of({"vllm": build}, "tpu") for row in (before, after)].count(True) == 1


def names(
    scenario: str, vllm: str, tpu_inference: str, target: str = "emulated"
) -> tuple[str, ...]:
    versions = {"vllm": vllm, "tpu-inference": tpu_inference}
    found = expected_issues(LOADS[scenario], versions, target, KNOWN_ISSUES)
    return tuple(row.id for row in found)


@pytest.mark.parametrize(
    ("scenario", "vllm", "tpu_inference", "known"),
    [
        ("vl-fused", "0.25.0", "0.25.0", ()),
        ("vl-3-devices", "0.25.0", "0.25.0", ("heads-over-three-devices",)),
        ("vl-fused", "0.21.0", "0.22.1", ("positional-ids-qwen3-vl-moe",)),
        ("vl-vision-first", "0.22.0", "0.21.0", ("fused-vision-qkv",)),
        ("vl-fused", "0.33.0rc1", "0.33.0.dev20261101", ("untied-head-unwritten",)),
        ("mtp-s3", "0.25.0", "0.25.0", ("draft-model-from-a-store",)),
        ("vl-square", "0.27.1", "0.27.0", ("orientation-guessed",)),
        (
            "vl-square",
            "0.27.1",
            "0.28.0",
            ("orientation-guessed",),
        ),
        ("vl-square", "0.27.1", "0.29.0", ("untied-head-unwritten", "orientation-guessed")),
        ("vl-tied", "0.32.0", "0.32.0", ()),
    ],
)
def test_pairs_that_no_stack_pins(
    scenario: str, vllm: str, tpu_inference: str, known: tuple[str, ...]
) -> None:
    assert names(scenario, vllm, tpu_inference) == known


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("target", ["emulated", "torch-xla"])
def test_one_row_ends_a_load(stack: str, target: str) -> None:
    """On the pinned pairs: of those that raise, the earliest; and never two that differ."""
    for scenario in SCENARIOS:
        found = expected_issues(scenario.load(), pinned_versions(stack), target, KNOWN_ISSUES)
        assert len(found) <= 1, scenario.id


@pytest.mark.parametrize(
    ("build", "of_it"),
    [("0.26.0", False), ("0.26.0.dev20260819", False), ("0.26.0.dev20260820", True),
     ("0.26.0.dev20260821", True), ("0.27.0rc1", True), ("0.27.0", True), ("0.25.0", False)],
)  # fmt: skip
def test_a_row_may_begin_with_the_build_of_a_day(build: str, of_it: bool) -> None:
    row = replace(ISSUE, releases=("tpu-inference>=0.26.0.dev20260820",))
    assert row.is_of({"vllm": "0.26.0", "tpu-inference": build}, "emulated") is of_it
    before = replace(ISSUE, releases=("tpu-inference<0.26.0.dev20260820",))
    assert before.is_of({"vllm": "0.26.0", "tpu-inference": build}, "emulated") is not of_it


def test_a_row_is_of_its_targets_only() -> None:
    elsewhere = failed()
    elsewhere.environment = replaced(elsewhere.environment, target="torch-xla, 4 devices")
    assert judge(elsewhere, LOAD, [ISSUE]) == Judgement(Verdict.UNEXPECTED)


def test_a_row_is_of_the_loads_it_says() -> None:
    assert judge(failed(), LOAD, [ISSUE]) == Judgement(Verdict.KNOWN, (ISSUE,))
    other = replace(LOAD, family="qwen3.5-moe")
    assert judge(failed(), other, [ISSUE]) == Judgement(Verdict.UNEXPECTED)


def equal_report(overlay: str = "") -> Report:
    environment = an_environment(stack="0.21", versions=VERSIONS, overlay=overlay)
    return a_report(environment=environment)


def test_a_failure_that_does_not_happen_is_out_of_date() -> None:
    judgement = judge(equal_report(), LOAD, [ISSUE])
    assert judgement[:2] == (Verdict.OUT_OF_DATE, (ISSUE,))
    told = known_text(judgement)
    assert told.startswith("fixed upstream: known issue an-issue did not happen")
    assert "with vllm 0.21.0, tpu-inference 0.21.0 (an-issue: seen on no other pair)" in told


def test_a_checkout_may_mend_it() -> None:
    mended = equal_report("vllm /pull (0123abc)")
    judgement = judge(mended, LOAD, [ISSUE])
    assert judgement.verdict is Verdict.MENDED
    note(mended, judgement)
    assert (mended.mended_issue, mended.issue_owner) == ("an-issue", "vllm")
    assert mended.known_issue == known_text(judgement) == ""
    still = failed()
    still.environment = mended.environment
    assert judge(still, LOAD, [ISSUE]).verdict is Verdict.KNOWN


def test_a_checkpoint_of_the_users_own() -> None:
    """It is no row's scenario: the failure alone decides, and equal is never out of date."""
    assert judge(failed(), None, [ISSUE]) == Judgement(Verdict.KNOWN, (ISSUE,))
    assert judge(equal_report(), None, [ISSUE]) == Judgement(Verdict.EQUAL)
    assert judge(failed("0.22.0"), None, [ISSUE]) == Judgement(Verdict.UNEXPECTED)
    other = failed()
    failing(message="no")(other)
    assert judge(other, None, [ISSUE]) == Judgement(Verdict.UNEXPECTED)
    assert judge(different("second"), None, [FIRST, SECOND]).issues == (SECOND,)
    assert judge(different("second", "third"), None, [FIRST, SECOND]).issues == ()


# The table.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("emulated", "abacus")}, "no target abacus"),
        ({"raised": None}, "an error, or it is differences"),
        ({"differs": lambda load: ()}, "an error, or it is differences"),
        ({"releases": ("vllm==",)}, "no requirement"),
        ({"releases": ("torch<3",)}, "no package under test"),
    ],
)
def test_a_row_that_says_too_little_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ISSUE, **changes)


@pytest.mark.parametrize("message", ["", ".*"])
def test_an_error_of_any_kind_is_refused(message: str) -> None:
    assert isinstance(ISSUE.raised, Raised)
    with pytest.raises(ValueError, match="any AssertionError would do"):
        replace(ISSUE, raised=replace(ISSUE.raised, message=message, at=""))


def test_a_table_has_every_id_once() -> None:
    assert table([ISSUE]) == (ISSUE,)
    with pytest.raises(ValueError, match="with one id: an-issue"):
        table([ISSUE, ISSUE])


@pytest.mark.parametrize("row", KNOWN_ISSUES, ids=[row.id for row in KNOWN_ISSUES])
def test_every_row_is_of_some_scenario(row: KnownIssue) -> None:
    assert any(row.when(load) for load in LOADS.values())
    assert not all(row.when(load) for load in LOADS.values())


@pytest.mark.parametrize("text", [r.why for r in SCENARIOS] + [i.reason for i in KNOWN_ISSUES])
def test_every_why_stands_alone(text: str) -> None:
    assert not text.lower().startswith(("the same", "alike", "as above"))
    assert len(text.split()) > 4


def test_what_presumes_a_mesh_pins_it() -> None:
    for scenario in SCENARIOS:
        if scenario.shapes in ("tiny:experts", "tiny:intermediate"):
            assert (scenario.devices, scenario.parallelism is None) == (4, False), scenario.id


def test_an_axis_is_dropped_on_a_tpu_too() -> None:
    (row,) = [r for r in RECORDED if r.report.known_issue == "expert-axis-dropped"][:1]
    for devices, verdict in (
        ("('cpu', 1)", Verdict.KNOWN),
        ("('tpu', 0)", Verdict.KNOWN),
        ("('cpu', 1), ('cpu', 2)", Verdict.UNEXPECTED),
    ):
        given = copied(row)
        failing(message=f"the worker's mesh is [{devices}], not expert=4,2d")(given.report)
        assert judged(given).verdict is verdict


def test_a_load_is_what_the_session_makes_of_a_scenario() -> None:
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.id == "mtp-per-expert"]
    load = scenario.load(layers=1)
    assert (load.parts, list(load.layers[Part.DECODER])) == (tuple(Part), [0])
    assert isinstance(load, Load)
    assert load.parallelism is Parallelism.TENSOR


SHOWN = 5  # scenarios of a row; more are folded


def document() -> str:
    """The rows as ``docs/known-issues.md`` shows them."""
    names = ("issue", "of", "is", "releases", "targets", "scenarios", "looks like",
             "what happens", "threads")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in KNOWN_ISSUES:
        lines.append(
            f'| <a id="{row.id}"></a>`{row.id}` | {row.owner} | {row.nature.words} '
            f"| {', '.join(f'`{each}`' for each in row.releases)} | {', '.join(row.targets)} "
            f"| {folded(scenarios_of(row))} | {look(row)} | {row.reason} | {row.known_from} |"
        )
    return "\n".join(lines)


def scenarios_of(row: KnownIssue) -> tuple[str, ...]:
    """Those that show it, on a pinned stack."""
    return tuple(
        scenario
        for scenario, load in LOADS.items()
        if any(
            row in expected_issues(load, pinned_versions(stack), target, KNOWN_ISSUES)
            for stack in STACKS
            for target in row.targets
        )
    )


def look(row: KnownIssue) -> str:
    """The error, or how many differences each scenario has and of what causes."""
    if row.raised:
        return f"`{row.raised.error}` [{row.raised.cause}]"
    loads = [LOADS[scenario] for scenario in scenarios_of(row)]
    counts = sorted({row.signs(load).total() for load in loads})
    causes = dict.fromkeys(str(sign.cause) for load in loads for sign in row.signs(load))
    numbers = " or ".join(map(str, counts))
    plural = "" if counts == [1] else "s"
    return f"{numbers} difference{plural} [{', '.join(causes)}]"


def folded(scenarios: tuple[str, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in scenarios)
    if len(scenarios) <= SHOWN:
        return names
    html = ", ".join(f"<code>{name}</code>" for name in scenarios)
    return f"<details><summary>{len(scenarios)} scenarios</summary>{html}</details>"


@pytest.mark.slow
def test_the_document_has_every_row(request: pytest.FixtureRequest) -> None:
    path = Path(__file__).parents[2] / "docs" / "known-issues.md"
    mark = "<!-- table -->"
    before, written, after = path.read_text().split(mark)
    if request.config.getoption("--write-docs"):
        path.write_text(f"{before}{mark}\n{document()}\n{mark}{after}")
    else:
        assert written.strip() == document(), "run with --write-docs"
