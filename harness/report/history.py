"""Many nights at once: since when a scenario fails, and at which upstream versions it changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.base.errors import BadInput
from harness.base.foreign import one_line, presentable
from harness.report.report import SCHEMA, Report, Session, Status, believed, content_of


class Night(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario in one session: when, how it ended, why, and on what."""

    name: str
    began: str
    status: Status
    causes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def outcome(self) -> tuple[Status, tuple[str, ...]]:
        """What makes two nights alike: failing in another way is a change."""
        return self.status, self.causes


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario's outcome changed between two nights; ``versions`` are those that changed too."""

    before: Night
    after: Night
    versions: dict[str, tuple[str, str]]


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario on one stack and target over all nights, oldest first."""

    scenario: str
    stack: str
    target: str
    nights: list[Night]

    @property
    def failing_since(self) -> Night | None:
        """The first night of the failure that lasts to the last night; None when that is equal."""
        since = None
        for night in reversed(self.nights):
            if night.status is Status.EQUAL:
                break
            since = night
        return since

    @property
    def changes(self) -> list[Change]:
        """Every change of outcome, with the versions that changed with it."""
        pairs = zip(self.nights, self.nights[1:], strict=False)
        return [
            Change(before=a, after=b, versions=_moved(a.versions, b.versions))
            for a, b in pairs
            if a.outcome != b.outcome
        ]


def courses(directory: Path) -> list[Course]:
    """The courses of all sessions under ``directory``: ``session.json``, one folder a night.

    Nights are ordered by the time their session began; sessions without one, of schema 1, by
    their path, before all others.

    Raises:
        BadInput: no session.json was found, or a file is none.
    """
    found: dict[tuple[str, str, str], list[Night]] = {}
    for name, session in sorted(_sessions(directory), key=lambda pair: (pair[1].began, pair[0])):
        for row in session.rows:
            environment = row.report.environment
            key = (row.scenario, environment.stack, environment.target)
            found.setdefault(key, []).append(_night(name, session.began, row.report))
    return [
        Course(scenario=scenario, stack=stack, target=target, nights=nights)
        for (scenario, stack, target), nights in found.items()
    ]


def _sessions(directory: Path) -> Iterable[tuple[str, Session]]:
    files = sorted(directory.rglob("session.json"))
    if not files:
        raise BadInput(
            "no session.json was found",
            where=str(directory),
            expected="session.json files, one folder for each night",
            hint="pytest scenarios --reports DIR/NIGHT",
        )
    return [(one_line(str(file.parent.relative_to(directory))), _read(file)) for file in files]


def _read(file: Path) -> Session:
    try:
        session = presentable(msgspec.json.decode(content_of(file), type=Session))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            f"not a session: {error}",
            where=str(file),
            expected=f"the JSON that pytest scenarios --reports writes, of schema {SCHEMA}",
            hint="move this file out of the directory",
        ) from error
    for row in session.rows:
        believed(row.report, f"{file}, {row.scenario}")
    return session


def _night(name: str, began: str, report: Report) -> Night:
    causes = tuple(sorted({str(diagnosis.cause) for diagnosis in report.diagnoses}))
    versions = dict(report.environment.versions)
    if report.environment.overlay:
        versions["overlay"] = report.environment.overlay
    return Night(name=name, began=began, status=report.status, causes=causes, versions=versions)


def _moved(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    names = sorted(before.keys() | after.keys())
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def print_courses(found: Iterable[Course], console: Console) -> None:
    """A table: how each scenario stands, since when, and what changed it."""
    table = Table(title="history", title_justify="left")
    for name in ("scenario", "stack", "nights", "last", "failing since", "changes"):
        table.add_column(name, overflow="fold")
    for course in found:
        last, since = course.nights[-1], course.failing_since
        table.add_row(*map(Text, (
            course.scenario, f"{course.stack} {course.target}",
            "".join("." if n.status is Status.EQUAL else "F" for n in course.nights),
            _words(last), since.name if since else "", "\n".join(map(_change, course.changes)),
        )))  # fmt: skip
    console.print(table)


def _words(night: Night) -> str:
    return f"{night.status} {', '.join(night.causes)}".strip()


def _change(change: Change) -> str:
    moved = [f"{name} {a} → {b}" for name, (a, b) in change.versions.items()]
    return f"{change.after.name}: {_words(change.after)}; {', '.join(moved) or 'same versions'}"
