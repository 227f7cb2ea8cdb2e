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
from harness.load.stack import PACKAGES
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

    A night of several stacks has a folder for each, whose name is the stack's: what ``latest`` or
    ``nightly`` stood for changes from night to night, and the course is theirs.

    Nights are ordered by the time their session began; sessions without one, of schema 1, by
    their path, before all others.

    Raises:
        BadInput: no session.json was found, or a file is none.
    """
    found: dict[tuple[str, str, str], list[Night]] = {}
    for path, session in sorted(_sessions(directory), key=lambda pair: (pair[1].began, pair[0])):
        name, stack = _night_and_stack(path)
        for row in session.rows:
            environment = row.report.environment
            key = (row.scenario, stack or environment.stack, environment.target)
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


def _night_and_stack(path: str) -> tuple[str, str]:
    """The night, and the stack where the night has folders of stacks."""
    parts = Path(path).parts
    return (parts[0], parts[1]) if len(parts) == 2 else (path, "")


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


def changes_text(found: Iterable[Course]) -> str:
    """What changed in the last night, as Markdown: each outcome, and the releases that moved."""
    all_courses = list(found)
    newest = max((c.nights[-1] for c in all_courses), key=lambda night: (night.began, night.name))
    ran = [c for c in all_courses if c.nights[-1].name == newest.name]
    if not any(len(course.nights) > 1 for course in ran):
        return "#### Since the last night\n\nThis is the first night.\n"
    lines = [line for line in map(_since, ran) if line]
    moved: dict[str, dict[str, tuple[str, str]]] = {}
    for course in ran:
        if len(course.nights) > 1:
            before, after = course.nights[-2:]
            moved.setdefault(course.stack, {}).update(_moved(before.versions, after.versions))
    lines = sorted(lines, key=_place_of) or ["- no outcome changed"]
    lines += [f"- `{stack}` moved: {_moves(each)}" for stack, each in moved.items() if each]
    gone = sorted({c.stack for c in all_courses} - {c.stack for c in ran})
    lines += [f"- `{stack}` did not come to its scenarios" for stack in gone]
    return "\n".join(["#### Since the last night", "", *map(one_line, lines), ""])


#: What a changed outcome is called, the worst first.
_NEWS = ("new failure", "fails otherwise", "first seen failing", "fixed")


def _place_of(line: str) -> int:
    return next(n for n, word in enumerate(_NEWS) if f"**{word}**" in line)


def _since(course: Course) -> str:
    """A line where the outcome changed with the last night; empty where it did not."""
    last = course.nights[-1]
    before = course.nights[-2] if len(course.nights) > 1 else None
    if before is None:
        word = "" if last.status is Status.EQUAL else "first seen failing"
    elif before.outcome == last.outcome:
        word = ""
    elif last.status is Status.EQUAL:
        word = "fixed"
    else:
        word = "new failure" if before.status is Status.EQUAL else "fails otherwise"
    was = f", was {_words(before)}" if before else ""
    told = f"`{course.scenario}` on `{course.stack}`, {course.target}: {_words(last)}{was}"
    return f"- **{word}** {told}" if word else ""


#: Versions that moved, told by name; the rest is counted.
_MOST_MOVED = 8


def _moves(moved: dict[str, tuple[str, str]]) -> str:
    """Versions that moved, those under test first."""
    first = [name for name in PACKAGES if name in moved]
    names = [*first, *(name for name in moved if name not in first)]
    told = [f"{name} {moved[name][0]} → {moved[name][1]}" for name in names[:_MOST_MOVED]]
    more = len(names) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


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
    moved = _moves(change.versions) or "same versions"
    return f"{change.after.name}: {_words(change.after)}; {moved}"
