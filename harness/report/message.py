"""The one place that turns differences, diagnoses and failures into text."""

from __future__ import annotations

from collections.abc import Iterator

from harness.base.foreign import one_line, several_lines
from harness.compare.difference import (
    BitsDiffer,
    DeliveredAgain,
    Difference,
    DigestDiffers,
    DtypeDiffers,
    PaddingWritten,
    ShapeDiffers,
    ShardMisplaced,
    Subject,
    TensorUnread,
    Unaccounted,
    Unequal,
)
from harness.compare.words import device_words, reference_words, source_words
from harness.devices.expert_layout import is_expert_array
from harness.report.figures import counted
from harness.report.known_issue import Judgement, Verdict
from harness.report.report import DigestsUsed, Report, Status

_LABEL = 11
_SHOWN_DIAGNOSES = 20
_SHOWN_FRAMES = 12
_SHOWN_TENSORS = 5
#: Characters of a line or of a failure's message, and of the whole text.
_PART, _TEXT = 8000, 60_000

#: What a report of experts only says of all else.
EXPERTS_ALONE = "experts only: no other tensor or parameter was looked at"

#: Where all of a report is that a text cut short.
WHOLE_REPORT = "the JSON report (pytest --reports DIR, or harness verify --json FILE)"


def failure_text(report: Report, purpose: str = "") -> str:
    """What a user reads when a report is not plainly equal; empty for one that is.

    Args:
        report: to be told.
        purpose: what its scenario is there to catch, if it has one.
    """
    if report.status is Status.EQUAL:
        return ""
    if report.status is Status.EXPERTS_EQUAL:
        lines = [_experts_alone(report)]
    else:
        lines = list(_load_failure(report) if report.failure else _differences(report))
    lines += [""]
    lines += _field("purpose", purpose) if purpose else []
    lines += _field("scope", EXPERTS_ALONE) if report.experts_only else []
    lines += _field("checkpoint", report.checkpoint)
    if report.reference != report.checkpoint:
        lines += _field("reference", report.reference)
    if report.digests:
        lines += _field("reference" if report.digests.kept else "", digests_words(report.digests))
    lines += _field("cache", report.cache) if report.cache else []
    lines += _field("stack", _stack(report))
    lines += _field("repeat", report.repeat)
    return several_lines("\n".join(one_line(line, _PART) for line in lines), _TEXT)


def digests_words(digests: DigestsUsed) -> str:
    """What a digest file was made of, and what of the checkpoint was read all the same."""
    of = f" of {digests.revision}" if digests.revision else ""
    read = f"{counted(len(digests.read), 'tensor')} of the checkpoint read besides"
    read += f": {', '.join(digests.read[:_SHOWN_TENSORS])}" if digests.read else ""
    read += ", …" if len(digests.read) > _SHOWN_TENSORS else ""
    kept = " kept by a run before (--no-cache: the weights themselves)" if digests.kept else ""
    return f"digests{of}{kept}, definition {digests.definition}; {read}"


def _experts_alone(report: Report) -> str:
    """The headline of experts that are equal where nothing else was looked at."""
    return (
        f"{report.family}: experts only: {counted(report.experts_compared, 'expert')} compared, "
        "no difference; this says nothing of the rest of the checkpoint"
    )


def known_text(judgement: Judgement) -> str:
    """What the table of known issues has to say before a failure; empty when nothing."""
    verdict, issues, remainder = judgement
    remainder = one_line(remainder)
    names = ", ".join(issue.id for issue in issues)
    if verdict is Verdict.KNOWN:
        return "\n".join(f"known issue {issue.summary}" for issue in issues) + "\n\n"
    if verdict is Verdict.OUT_OF_DATE:
        return (
            f"known issue {names} did not happen: the scenario is equal. End its row's releases "
            "in scenarios/known_issues.py, or narrow what it is of\n\n"
        )
    if verdict is Verdict.UNEXPECTED and names:
        return f"not as known issue {names} says: {remainder}\n\n"
    return f"{remainder}\n\n" if remainder else ""


def _stack(report: Report) -> str:
    versions = report.environment.versions
    named = ("vllm", "tpu-inference", "runai-model-streamer", "jax")
    text = ", ".join(f"{name} {versions.get(name, '?')}" for name in named)
    overlay = f"; {report.environment.overlay}" if report.environment.overlay else ""
    return f"{text}{overlay}; {report.environment.target}"


def _field(label: str, text: str) -> list[str]:
    return [f"   {label:<{_LABEL}}{text}"]


def _differences(report: Report) -> Iterator[str]:
    yield _headline(report)
    for number, diagnosis in enumerate(report.diagnoses[:_SHOWN_DIAGNOSES], start=1):
        yield ""
        yield f"{number}. {diagnosis.summary} [{diagnosis.cause}]"
        yield from _difference(report.differences[diagnosis.first])
        yield from _field("evidence", diagnosis.evidence)
        yield from _field("next step", diagnosis.next_step)
        if diagnosis.covers > 1:
            yield from _field("affects", f"{diagnosis.covers} differences, the first is shown")
    hidden = len(report.diagnoses) - _SHOWN_DIAGNOSES
    if hidden > 0:
        yield ""
        yield f"{counted(hidden, 'more cause')}: {WHOLE_REPORT} has all"


def _headline(report: Report) -> str:
    slices = {d.key for d in report.differences if d.key}
    experts = {key[:3] for key in slices}
    compared = report.experts_compared
    return (
        f"{report.family}: the device differs from the reference: "
        f"{counted(len(report.differences), 'difference')}, "
        f"{len(experts)} of {counted(compared, 'compared expert')} unequal, "
        f"{_unequal_parameters(report)}"
        f"{counted(len(report.diagnoses), 'cause')}"
    )


_OF_PARAMETERS = (
    BitsDiffer
    | DigestDiffers
    | ShapeDiffers
    | DtypeDiffers
    | ShardMisplaced
    | PaddingWritten
    | Unaccounted
)


def _unequal_parameters(report: Report) -> str:
    """How many of the other parameters are in other places, or hold other bits."""
    named = [d for d in report.differences if isinstance(d, _OF_PARAMETERS) and d.key is None]
    names = {d.name for d in named if not is_expert_array(d.parameter)}
    if not names:
        return ""
    return f"{counted(len(names), 'other parameter')} of {report.parameters_compared} unequal, "


def _difference(difference: Difference) -> Iterator[str]:
    yield from _field("where", _where(difference))
    source = f"  in {source_words(difference)}" if source_words(difference) else ""
    yield from _field("reference", f"{reference_words(difference)}{source}")
    holder = "" if difference.shard is None else f", shard {difference.shard}"
    holder += f" on {difference.device_name}" if difference.device_name else ""
    name = _held_in(difference)
    yield from _field("device", device_words(difference) + (f"  in {name}{holder}" if name else ""))
    # A report that was handed in may state no total.
    if isinstance(difference, Unequal) and difference.total:
        share = difference.count / difference.total
        yield from _field(
            "unequal", f"{difference.count} of {difference.total} elements ({share:.2%})"
        )


def _held_in(difference: Difference) -> str:
    """The array that is meant, or the tensor that the stack was given and the reference lacks."""
    match difference:
        case TensorUnread():
            return difference.tensor
        case Unaccounted(
            subject=Subject.TENSOR_NOT_IN_THE_REFERENCE | Subject.TENSOR_NOT_IN_THE_INDEX
        ):
            return difference.name
        case _:
            return difference.parameter


def _where(difference: Difference) -> str:
    at = str(list(difference.index)) if isinstance(difference, Unequal) and difference.index else ""
    if difference.key and at:
        return f"{difference.key}, first at [output, input] {at}"
    if isinstance(difference, DigestDiffers):
        return str(difference.key or difference.source.tensor)
    if isinstance(difference, DeliveredAgain):
        return f"{difference.key}: {difference.kind}"
    place = [str(difference.part)]
    place += [] if difference.layer is None else [f"layer {difference.layer}"]
    place += [] if difference.expert is None else [f"expert {difference.expert}"]
    first = f", first at {at}" if at else ""
    return f"{' '.join(place)}: {difference.kind}{first}"


def _load_failure(report: Report) -> Iterator[str]:
    failure = report.failure
    assert failure is not None
    on = "" if failure.host is None else f" on host {failure.host}"
    yield f"{report.family}: the load under test failed{on}, nothing was compared"
    yield from _field("error", failure.error)
    for line in several_lines(failure.message, _PART).splitlines():
        yield from _field("", line)
    for diagnosis in report.diagnoses:
        yield from _field("cause", f"{diagnosis.summary} [{diagnosis.cause}]")
        yield from _field("evidence", diagnosis.evidence)
        yield from _field("next step", diagnosis.next_step)
    for label, frame in zip(
        ["frames", *[""] * _SHOWN_FRAMES], failure.frames[-_SHOWN_FRAMES:], strict=False
    ):
        yield from _field(label, f"{frame.file}:{frame.line} in {frame.function}: {frame.text}")
    for label, line in zip(
        ["log", *[""] * 30],
        several_lines(failure.log_tail).strip().splitlines()[-30:],
        strict=False,
    ):
        yield from _field(label, line)
