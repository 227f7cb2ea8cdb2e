"""The commands that read reports: ``report``, ``merge``, ``history`` and ``schema``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
from rich.console import Console

from harness.base.bounds import require_seconds
from harness.base.errors import BadInput
from harness.base.foreign import one_line, several_lines
from harness.base.writing import deliver, require_writable
from harness.report.history import changes_text, courses, print_courses
from harness.report.merge import merged_session
from harness.report.message import failure_text
from harness.report.renderings import json_schema, rendered, session_from
from harness.report.report import Session
from harness.report.terminal import closing_table

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@click.argument("file", metavar="JSON", type=_FILE)
@click.option("--markdown", type=_FILE, help="Write a step summary or annotation.")
@click.option("--junit", type=_FILE, help="Write one case per scenario.")
@click.option("--html", type=_FILE, help="Write a page with every map of experts.")
def report_command(
    file: Path, markdown: Path | None, junit: Path | None, html: Path | None
) -> None:
    """Render a report, or a session of reports, from its JSON.

    Without an option it prints the Markdown summary.
    """
    wanted = {"summary.md": markdown, "junit.xml": junit, "report.html": html}
    for path in wanted.values():
        require_writable(path)
    session = session_from(file)
    with ExitStack() as rest:  # what can't be written keeps nothing else from being
        for name, path in wanted.items():
            if path:
                rest.callback(deliver, path, rendered(session, name))
    if not any(wanted.values()):
        click.echo(rendered(session, "summary.md"), nl=False)


@click.command("merge")
@click.argument("files", metavar="JSON...", nargs=-1, required=True, type=_FILE)
@click.option("--wait", default=0.0, help="Seconds to wait for missing files.")
@click.option("--output", type=_FILE, required=True, help="Write the merged session here.")
def merge_command(files: tuple[Path, ...], wait: float, output: Path) -> None:
    """Merge the sessions that the hosts of a slice wrote, one file per host.

    A host without a file has failed. Exits with 0 if all is as expected; 1 on differences, or if a
    test broke off, did not end or never ran; 3 if a host failed.
    """
    if wait:
        require_seconds(wait, "--wait")
    require_writable(output)
    session = merged_session([session_from(file) for file in _there(files, wait)])
    try:
        deliver(output, session.to_json())
    finally:
        _print(session)
    codes = [max(1, row.report.exit_code) for row in session.rows if row.failed]
    sys.exit(max(codes, default=int(any(_beside_reports(session)))))


def _print(session: Session) -> None:
    if session.rows:
        closing_table([(row.scenario, row.report) for row in session.rows])
    for row in session.rows:
        if row.failed:
            told = f"{one_line(row.scenario)}: {several_lines(row.why)}"
            click.echo(failure_text(row.report) or told)
    for text in _beside_reports(session):
        click.echo(text)


def _beside_reports(session: Session) -> list[str]:
    """What went wrong that no report shows."""
    texts = [f"{broken.test} broke off in {broken.phase}: {broken.message}"
             for broken in session.broken]  # fmt: skip
    texts += [f"{test} did not end" for test in session.unfinished]
    if not (session.complete or session.unfinished):
        texts.append("a session did not end")
    texts += [] if session.rows else ["no scenario was verified"]
    return [one_line(text) for text in texts]


def _there(files: Sequence[Path], seconds: float) -> list[Path]:
    """The files that are there, at once or after a wait."""
    deadline = time.monotonic() + seconds
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(min(1.0, seconds))
    if found := [file for file in files if file.exists()]:
        return found
    raise BadInput(
        "no host wrote a report",
        where=", ".join(map(str, files)),
        expected="the sessions pytest --reports writes on each host",
        hint="pytest scenarios --target=tpu --hosts=N --reports DIR on every host",
    )


@click.command("history")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
@click.option("--changes", is_flag=True, help="Print, as Markdown, what changed in the last night.")
def history_command(directory: Path, as_json: bool, changes: bool) -> None:
    """Show since when each scenario fails, and at which upstream versions it changed.

    DIRECTORY holds one folder for each night, written by pytest scenarios --reports.
    """
    found = courses(directory)
    if changes:
        click.echo(changes_text(found), nl=False)
    elif as_json:
        nights = [msgspec.to_builtins(c) | _derived(c) for c in found]
        click.echo(json.dumps(nights, indent=2))
    else:
        terminal = sys.stdout.isatty()
        print_courses(found, Console(width=None if terminal else 140, highlight=False))


def _derived(course: object) -> dict[str, object]:
    return {name: msgspec.to_builtins(getattr(course, name)) for name in _DERIVED}


_DERIVED = ("failing_since", "changes")


@click.command("schema")
def schema_command() -> None:
    """Print the JSON schema of the reports."""
    click.echo(json.dumps(json_schema(), indent=2))


COMMANDS = (report_command, merge_command, history_command, schema_command)
