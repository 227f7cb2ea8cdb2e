"""What a table says of a report: the same figures on a terminal, in Markdown, JUnit and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.filesize import decimal

from harness.report.report import Report, Skipped


def figures(report: Report) -> dict[str, str]:
    """The columns of a report, by their names: how much was compared, how it differs, how long."""
    experts = sum(tally.experts for tally in report.tallies)
    parameters = sum(tally.parameters for tally in report.parameters)
    return {
        "experts compared": _of(report.experts_compared, experts)
        + _left_out(tally.left_out for tally in report.tallies),
        "parameters": _of(report.parameters_compared, parameters)
        + _left_out(tally.left_out for tally in report.parameters),
        "bytes compared": decimal(report.all_bytes_compared),
        "differences": str(len(report.differences)),
        "load": seconds(report.timings.load),
        "compare": seconds(report.timings.compare),
    }


def sums(reports: Sequence[Report]) -> dict[str, str]:
    """The same columns over several reports."""
    return {
        "experts compared": str(sum(report.experts_compared for report in reports)),
        "parameters": str(sum(report.parameters_compared for report in reports)),
        "bytes compared": decimal(sum(report.all_bytes_compared for report in reports)),
        "differences": str(sum(len(report.differences) for report in reports)),
        "load": seconds(sum(report.timings.load for report in reports)),
        "compare": seconds(sum(report.timings.compare for report in reports)),
    }


def issue(report: Report) -> str:
    """The known issue of a report, for a table's cell; empty without one."""
    return f"mended: {report.mended_issue}" if report.mended_issue else report.known_issue


def notes(reports: Sequence[Report], skipped: Iterable[Skipped]) -> list[str]:
    """The lines below a table: known issues, what was not there to compare, what did not run."""
    return [
        *_issue_lines(reports), *_absent_lines(reports), *_kept_lines(reports),
        *_skipped_lines(skipped),
    ]  # fmt: skip


def _issue_lines(reports: Iterable[Report]) -> Iterator[str]:
    """One line for each known issue: its id, its owner, and how many scenarios it makes fail."""
    found: Counter[tuple[str, str, str]] = Counter()
    for report in reports:
        if report.known_issue:
            found[report.known_issue, report.issue_owner, ""] += 1
        if report.mended_issue:
            found[report.mended_issue, report.issue_owner, report.environment.overlay] += 1
    for (name, owner, overlay), number in found.items():
        told = f"known issue {name}" + (f", owner {owner}" if owner else "")
        told += f", does not happen with {overlay}" if overlay else ""
        yield f"{told}: {counted(number, 'scenario')}"


def _absent_lines(reports: Iterable[Report]) -> Iterator[str]:
    """A line where draft models are announced and not there."""
    for part, number in Counter(part for report in reports for part in report.absent).items():
        yield (
            f"left out: the draft model ({part}), which config.json announces and no file holds: "
            f"{counted(number, 'scenario')}"
        )


def _kept_lines(reports: Iterable[Report]) -> Iterator[str]:
    """A line where digests of a run before were compared with."""
    if number := sum(report.digests is not None and report.digests.kept for report in reports):
        yield f"compared with digests kept by a run before: {counted(number, 'scenario')}"


def _skipped_lines(skipped: Iterable[Skipped]) -> Iterator[str]:
    """One line for each reason why scenarios were skipped."""
    for reason, number in Counter(one.reason for one in skipped).items():
        yield f"{counted(number, 'scenario')} skipped: {reason}"


def counted(number: int, noun: str) -> str:
    """``1 scenario``, ``2 scenarios``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seconds(value: float) -> str:
    """Seconds with a tenth."""
    return f"{value:.1f} s"


def _of(compared: int, total: int) -> str:
    return f"{compared}/{total}"


def _left_out(numbers: Iterable[int]) -> str:
    left = sum(numbers)
    return f", {left} left out" if left else ""
