"""Text of others: what becomes of it on the terminal, in JSON, XML, Markdown, HTML and errors."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.app.cli import main
from harness.audit.feeding import Recording
from harness.audit.run import Outcome, RunRow
from harness.audit.run_table import run_json, run_text
from harness.base.errors import BadInput, HarnessError, InternalError
from harness.base.foreign import LINE, TEXT, one_line, presentable, several_lines
from harness.compare.difference import Kind, Subject
from harness.explain.causes import Cause, Diagnosis
from harness.families.experts import TensorSlice
from harness.report.history import courses, print_courses
from harness.report.junit import junit_xml
from harness.report.markdown import cell, markdown
from harness.report.message import failure_text
from harness.report.page import page
from harness.report.renderings import session_from
from harness.report.report import (
    Broken,
    Failure,
    Frame,
    Report,
    Session,
    SessionRow,
    Skipped,
    Status,
)
from harness.report.terminal import closing_table
from tests.support.differences import a_difference
from tests.support.pages import all_equal, canary, rank_shift

#: What no reader may get, by what it does.
HOSTILE = {
    "escape sequence": "a\x1b[2J\x1b]0;title\x07b",
    "C0": "".join(map(chr, range(32))),
    "C1": "\x7f\x80\x85\x9b\x9f",
    "backspaces": "equal\b\b\b\b\bother",
    "line breaks": "a\nb\r\nc\rd\x0be\x0cf\u2028g\u2029h",
    "direction": "\u202eexe.txt\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
    "invisible": "a\u200bb\ufeffc\u00add\U000e0041\u2060",
    "half a character": "\udcff\ud800",
    "not a character": "\ufffe\uffff\U0010ffff\ufdd0",
    "markup": "[bold]|`*_</script><img src=x>]]>&\"'<!--@a~~$x$",
    "a megabyte": "m" * 1_000_000,
    "a megabyte of controls": "\x1b[31m" * 200_000,
    "a megabyte of lines": "line\n" * 200_000,
}
rows = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def unprintable(text: str, allowed: str = "\n\t") -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
    return {c for c in set(text) if unicodedata.category(c) in kinds} - set(allowed)


@rows
def test_a_line(text: str) -> None:
    shown = one_line(text)
    assert unprintable(shown, allowed="") == set()
    assert len(shown) <= LINE
    assert one_line(shown) == shown


@rows
def test_several_lines(text: str) -> None:
    shown = several_lines(text)
    assert unprintable(shown) == set()
    assert len(shown) <= TEXT
    assert several_lines(shown) == shown


@pytest.mark.parametrize(
    ("text", "line", "lines"),
    [
        ("model.layers.0.weight", "model.layers.0.weight", "model.layers.0.weight"),
        ("Größe ≠ 重み", "Größe ≠ 重み", "Größe ≠ 重み"),
        ("a\tb\r\nc", r"a\tb\r\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J", r"\x1b[2J", r"\x1b[2J"),
        ("\udcff\u202e\U000e0041", r"\udcff\u202e\U000e0041", r"\udcff\u202e\U000e0041"),
    ],
)
def test_what_becomes_of_it(text: str, line: str, lines: str) -> None:
    assert (one_line(text), several_lines(text)) == (line, lines)


def test_both_ends_stay_and_what_is_left_out_is_counted() -> None:
    shown = one_line(f"begin{'x' * 10_000_000}end")
    assert shown.startswith("beginx")
    assert shown.endswith("xend")
    assert " … 9998008 characters left out … " in shown


def hostile(text: str, status: Status = Status.DIFFERENT) -> Session:
    """A session with ``text`` in every field that anybody else fills."""
    report = all_equal().rows[0].report
    differences = [
        a_difference(Kind.UNACCOUNTED, subject=Subject.ARRAY, name=text, file=text, reason=text),
        a_difference(
            Kind.VALUES, parameter=text, source=TensorSlice(text, text, text), reference=text,
            device=text, pattern=text,
        ),
        a_difference(Kind.REPLICAS, parameter=text, reference_device=text, device_name=text),
        a_difference(Kind.MISSING, parameter=text, expected=text),
        a_difference(Kind.UNREAD, tensor=text, file=text),
    ]  # fmt: skip
    first = Diagnosis(
        cause=Cause.UNWRITTEN, summary=text, evidence=text, next_step=text, first=0, covers=1,
        members="0",
    )  # fmt: skip
    call = msgspec.structs.replace(report.calls[0], call=text, source=text, site=text)
    environment = msgspec.structs.replace(
        report.environment, stack=text, target=text, versions={"vllm": text}, overlay=text
    )
    report = msgspec.structs.replace(
        report, status=status, differences=differences, diagnoses=[first], calls=[call],
        environment=environment, checkpoint=text, reference=f"{text}x", family=text, repeat=text,
        known_issue=text,
    )  # fmt: skip
    if status is Status.LOAD_FAILED:
        frame = Frame(file=text, line=1, function=text, text=text)
        report.failure = Failure(error=text, message=text, frames=(frame,), log_tail=text)
        report.differences, report.diagnoses = [], []
    row = SessionRow(scenario=text, report=report, failed=True, why=text, purpose=text)
    return Session(
        complete=False, unfinished=[text], began=text, rows=[row], options=[text],
        broken=[Broken(test=text, phase=text, message=text, error=text)],
        skipped=[Skipped(scenario=text, reason=text)],
    )  # fmt: skip


def table(session: Session) -> str:
    file = io.StringIO()
    closing_table([(r.scenario, r.report) for r in session.rows], file, session.skipped)
    return file.getvalue()


RENDERINGS: dict[str, Callable[[Session], str]] = {
    "text": lambda session: failure_text(session.rows[0].report, session.rows[0].purpose),
    "table": table,
    "json": lambda session: session.to_json().decode(),
    "report's json": lambda session: session.rows[0].report.to_json().decode(),
    "junit": lambda session: junit_xml(session).decode(),
    "markdown": markdown,
    "page": lambda session: page(session).decode(),
}


@pytest.mark.slow
@rows
@pytest.mark.parametrize("rendering", RENDERINGS.values(), ids=RENDERINGS)
@pytest.mark.parametrize("status", [Status.DIFFERENT, Status.LOAD_FAILED])
def test_a_rendering(text: str, rendering: Callable[[Session], str], status: Status) -> None:
    shown = rendering(hostile(text, status))
    assert unprintable(shown) == set()
    assert len(shown) < 500_000


@pytest.mark.slow
@rows
def test_what_is_rendered_can_be_read(text: str) -> None:
    session = hostile(text)
    (root,) = ET.fromstring(junit_xml(session))
    assert len(root) == 4
    assert json.loads(session.to_json())["rows"][0]["scenario"] == one_line(text)
    html = page(session).decode()
    assert html.count("</script>") == page(hostile("harmless")).decode().count("</script>")
    assert "<img" not in html
    lines = markdown(session).split("\n")
    (row,) = [line for line in lines if line.startswith("| ") and not line.startswith("| scen")]
    assert row.count("|") == lines[[x.startswith("|:--") for x in lines].index(True)].count("|")


@rows
def test_a_cell_is_one_line_without_markup(text: str) -> None:
    assert not re.search(r"[<>|`*_\[\]\\@~$\n]", cell(text))
    assert len(cell(text)) < 6000


@pytest.mark.slow
def test_runs_of_numbers_are_never_cut() -> None:
    session = rank_shift()
    report = session.rows[0].report
    runs = ",".join(str(2 * n) for n in range(5000))
    report.diagnoses[0] = msgspec.structs.replace(report.diagnoses[0], members=runs)
    report.maps[0].states = {p: ["1e1d" * 5000] for p in report.maps[0].states}
    report.calls[0] = msgspec.structs.replace(report.calls[0], experts=runs)
    assert presentable(session) == session


@pytest.mark.slow
def test_presentable_changes_no_report_of_ours() -> None:
    for session in (canary(), rank_shift()):
        assert presentable(session) == session


def test_credentials_go_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret" * 20)
    report = all_equal().rows[0].report
    for before in range(1300, 1600, 7):
        report.family = "x" * before + "planted-secret" * 20 + "y" * 2000
        assert "planted-secret" not in presentable(report).family
        told = str(BadInput(report.family, where="w", expected="e", hint="h"))
        assert "planted-secret" not in told


@rows
@pytest.mark.parametrize("kind", [BadInput, InternalError])
def test_an_error_is_one_paragraph(text: str, kind: type[HarnessError]) -> None:
    hint = text.replace("\n", " ")
    paragraph = str(kind(text, where=text, expected=text, hint=hint))
    assert unprintable(paragraph, allowed="") == set()
    assert len(paragraph) < 5 * LINE


def test_details_have_lines_and_are_cut() -> None:
    error = InternalError("w", where="w", expected="e", hint="report this\n  a\x1b\n  b")
    assert str(error) == "w (w). Expected: e. Try: report this.\n  a\\x1b\n  b"
    long = InternalError("w", where="w", expected="e", hint="h\n" + "a\n" * 10**6)
    assert len(str(long)) < 2 * TEXT


@pytest.mark.slow
@rows
def test_history_and_reports_that_are_read(text: str, tmp_path: Path) -> None:
    content = msgspec.to_builtins(hostile(text))
    folder = tmp_path / "night"
    folder.mkdir()
    encoded = json.dumps(content).encode()  # halves of characters as escapes, as JSON allows
    (folder / "session.json").write_bytes(encoded)
    if text == HOSTILE["half a character"]:
        with pytest.raises(BadInput, match="not a session"):
            courses(tmp_path)
        return
    shown = io.StringIO()
    print_courses(courses(tmp_path), Console(file=shown, width=140))
    assert unprintable(shown.getvalue()) == set()
    assert len(shown.getvalue()) < 500_000
    session = session_from(folder / "session.json")
    assert unprintable("".join(strings(msgspec.to_builtins(session)))) == set()
    printed = CliRunner().invoke(main, ["history", str(tmp_path), "--json"])
    assert (printed.exit_code, unprintable(printed.output)) == (0, set())


def strings(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [s for item in content.items() for s in strings(item)]
    if isinstance(content, list | tuple):
        return [s for item in content for s in strings(item)]
    return [content] if isinstance(content, str) else []


@pytest.mark.slow
@rows
def test_a_merge_of_hostile_sessions(text: str, tmp_path: Path) -> None:
    session = hostile(text, Status.LOAD_FAILED)
    session.write(tmp_path / "session.json")
    ended = CliRunner().invoke(
        main, ["merge", str(tmp_path / "session.json"), "--output", str(tmp_path / "m.json")]
    )
    assert ended.exit_code in (2, 3), ended.output
    assert unprintable(ended.output) == set()
    assert len(ended.output) < 500_000


@rows
def test_an_audit_of_models(text: str) -> None:
    recording = Recording(error=text)
    row = RunRow(model=text, outcome=Outcome.NOT_BUILT, why=text, recording=recording)
    for shown in (run_text([row]), run_json([row]).decode()):
        assert unprintable(shown) == set()
        assert len(shown) < 500_000


@pytest.mark.slow
@rows
def test_a_report_is_written(text: str, tmp_path: Path) -> None:
    report = hostile(text).rows[0].report
    report.write(tmp_path / "r.json")
    assert msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=Report).family == one_line(
        text
    )
