"""How a command ends when what goes wrong is neither the checkpoint's fault nor upstream's.

Never with 1, which says that the device differs; never with a traceback; and no report is lost.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.app.cli import main
from harness.report.report import Report, Session, SessionRow, Status, report_from_json
from harness.synthetic.writer import write_checkpoint
from tests.support.differences import unread
from tests.support.reports import a_report

#: Runs the real command with a report that is given instead of a load.
COMMAND = """
import sys, harness.app.cli
from pathlib import Path
from harness.report.report import report_from_json
given = Path(sys.argv.pop(1)).read_bytes()
harness.app.cli.verify = lambda *_, **__: report_from_json(given)
sys.argv[0] = "harness"
harness.app.cli.main()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test, in this process and in those it starts."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place


def report() -> Report:
    """A report long enough for a pipe to break and a small disk to be full."""
    lost = unread()
    return a_report(
        status=Status.DIFFERENT,
        differences=[lost],
        repeat="harness verify /c",
        reference="r" * 60_000,
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    report().write(tmp_path / "given.json")
    return tmp_path / "given.json"


def verified(given: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, str(given), "verify", "/c", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, check=False, text=True, timeout=60, **streams)


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def kept(temporary: Path, name: str) -> Path:
    (found,) = temporary.glob(f"harness-kept-*/{name}")
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    return found


#: By command: its arguments, and what of it raises.
COMMANDS = {
    "verify": (["verify", "/c"], "harness.app.cli.verify"),
    "checkpoint": (["checkpoint", "qwen3.5-moe", "OUT"], "harness.app.cli.write_checkpoint"),
    "digest": (["digest", "/c", "-o", "OUT"], "harness.app.cli.write_digests"),
    "audit": (["audit"], "harness.app.cli.audit"),
    "audit-run": (["audit-run"], "harness.app.cli.run_audit"),
    "families": (["families"], "harness.app.cli.overview"),
    "doctor": (["doctor"], "harness.app.cli.installed_versions"),
    "bisect": (
        ["bisect", "--good", "1", "--bad", "2", "--scenario", "vl-fused"],
        "harness.app.bisect_command.versions_of",
    ),
    "report": (["report", "FILE"], "harness.app.report_commands.session_from"),
    "merge": (
        ["merge", "/dev/null", "--output", "OUT"],
        "harness.app.report_commands.session_from",
    ),
    "history": (["history", "DIR"], "harness.app.report_commands.courses"),
    "schema": (["schema"], "harness.app.report_commands.json_schema"),
}


def test_every_command_has_a_row() -> None:
    assert set(COMMANDS) == set(main.commands)


@pytest.mark.parametrize(
    "error", [KeyError("\x1b[2J"), OSError(5, "broken"), RecursionError("deep")], ids=repr
)
@pytest.mark.parametrize(("arguments", "raises"), COMMANDS.values(), ids=COMMANDS)
def test_what_nobody_foresaw_is_5_with_a_paragraph(
    arguments: list[str],
    raises: str,
    error: Exception,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(raises, fail)
    monkeypatch.chdir(temporary.parent)
    ended = ran(*arguments)
    assert ended.exit_code == 5
    paragraph, details = ended.stderr.splitlines()
    assert paragraph.startswith("error: the harness failed, not the load under test: ")
    assert type(error).__name__ in paragraph
    assert "\x1b" not in ended.stderr
    file = Path(details.removeprefix("details: "))
    assert file == kept(temporary, "details.txt")
    assert "Traceback" in file.read_text()
    assert "raise error" in file.read_text()


def test_details_have_no_credentials(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("planted-secret")

    monkeypatch.setattr("harness.app.cli.verify", fail)
    ended = ran("verify", "/c")
    assert "planted-secret" not in ended.output + kept(temporary, "details.txt").read_text()


@pytest.mark.parametrize("asked", [False, True], ids=["text", "text and --json"])
def test_a_reader_who_leaves_is_no_verdict(given: Path, asked: bool) -> None:
    options: list[object] = []
    if asked:  # a link of this test's own, like /dev/stdout: a fault here must not break that
        link = given.with_name("stdout")
        link.symlink_to("/proc/self/fd/1")
        options = ["--json", link]
    a_report(status=Status.EQUAL).write(given)
    reading, writing = os.pipe()
    os.close(reading)
    ended = verified(given, *options, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == (5 if options else 0)


def test_a_reader_of_both_who_leaves(given: Path) -> None:
    a_report(status=Status.EQUAL).write(given)
    reading, writing = os.pipe()
    os.close(reading)
    ended = verified(given, stdout=writing, stderr=writing)
    os.close(writing)
    assert ended.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_streams_that_are_closed(given: Path, tmp_path: Path, closed: str) -> None:
    code = tmp_path / "command.py"
    code.write_text(COMMAND)
    out = tmp_path / "out.json"
    command = f"exec {sys.executable} {code} {given} verify /c --json {out} {closed}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert report_from_json(out.read_bytes()) == report_from_json(given.read_bytes())


def test_an_encoding_that_lacks_characters(given: Path) -> None:
    content = json.loads(given.read_text())
    content["family"] = "Größe ≠"
    given.write_text(json.dumps(content))
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    ended = verified(given, env=environment, encoding="latin-1")
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert r"Größe \u2260" in ended.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    at = tmp_path / "disk"
    at.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(at)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    yield at
    subprocess.run(["umount", str(at)], check=True)


def test_a_full_disk_loses_no_report(given: Path, small_disk: Path, temporary: Path) -> None:
    ended = verified(given, "--json", small_disk / "out.json")
    assert ended.returncode == 5
    assert "the device differs from the reference" in ended.stdout
    assert "the output could not be written: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    found = kept(temporary, "out.json")
    assert str(found) in ended.stderr
    assert found.read_bytes() == given.read_bytes()
    assert list(small_disk.iterdir()) == []


def test_a_full_standard_output_loses_no_report(
    given: Path, small_disk: Path, temporary: Path
) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(2**16))
    with (small_disk / "out.txt").open("wb") as out:
        ended = verified(given, stdout=out, stderr=subprocess.PIPE)
    assert ended.returncode == 5
    assert "standard output" in ended.stderr
    assert kept(temporary, "report.json").read_bytes() == given.read_bytes()


def test_where_no_file_may_grow_the_text_is_still_there(given: Path) -> None:
    limits = (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    ended = verified(
        given,
        "--json",
        given.with_name("out.json"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    assert ended.returncode == 5
    assert "the device differs from the reference" in ended.stdout
    assert "File too large" in ended.stderr


@pytest.mark.parametrize("command", ["report", "merge", "audit"])
def test_a_full_disk_under_the_other_commands(
    command: str, given: Path, small_disk: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.app.cli.audit", lambda *_: SimpleNamespace(exit_code=1))
    monkeypatch.setattr("harness.app.cli.rendered", lambda *_: b"finding\n" * 10_000)
    out = small_disk / "out"
    session = given.with_name("session.json")
    row = SessionRow(
        scenario="vl", report=report_from_json(given.read_bytes()), failed=True, why="w" * 15_000
    )
    Session(complete=True, rows=[row] * 5).write(session)
    arguments = {
        "report": ["report", session, "--html", out, "--junit", given.with_name("j.xml")],
        "merge": ["merge", session, session, "--output", out],
        "audit": ["audit", "--all", "--format", "json", "--output", out],
    }
    ended = ran(*arguments[command])
    assert ended.exit_code in ((2,) if command == "merge" else (5,)), ended.output
    if command != "merge":
        assert kept(temporary, "out").stat().st_size > 16_000
    if command == "report":
        assert given.with_name("j.xml").exists()


def test_a_checkpoint_on_a_full_disk(small_disk: Path) -> None:
    ended = ran("checkpoint", "qwen3.5-moe", small_disk / "out")
    assert ended.exit_code == 5
    assert "the checkpoint could not be written: No space left on device" in ended.stderr
    assert list(small_disk.iterdir()) == []


#: Places of output that are refused at once.
PLACES: dict[str, Callable[[Path], Path]] = {
    "a directory": lambda directory: directory,
    "no parent": lambda directory: directory / "absent" / "out",
    "below a file": lambda directory: Path(__file__) / "out",
    "read-only": lambda directory: Path("/proc/self/out"),  # for root, too
    "name too long": lambda directory: directory / ("n" * 256),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "/c", "--json"],
        ["audit", "--output"],
        ["audit-run", "--output"],
        ["report", "absent.json", "--html"],
        ["report", "absent.json", "--junit"],
        ["report", "absent.json", "--markdown"],
        ["merge", "absent.json", "--output"],
    ],
    ids=" ".join,
)
def test_a_place_for_output_is_tried_first(
    arguments: list[str],
    place: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it began before the place was tried")

    for name in ("cli.verify", "cli.audit", "cli.run_audit", "report_commands.session_from"):
        monkeypatch.setattr(f"harness.app.{name}", fail)
    ended = ran(*arguments, place(tmp_path))
    assert (ended.exit_code, "Traceback" in ended.output) == (2, False), ended.output


@pytest.mark.parametrize("place", ["no parent", "below a file", "read-only", "name too long"])
def test_a_checkpoints_place_is_tried_first(place: str, tmp_path: Path) -> None:
    ended = ran("checkpoint", "qwen3.5-moe", PLACES[place](tmp_path))
    assert ended.exit_code == (0 if place == "no parent" else 2), ended.output


def test_a_path_that_is_no_text_is_bad_input(tmp_path: Path) -> None:
    place = tmp_path / "c\udcff"
    write_checkpoint("qwen3.5-moe", place)
    ended = ran("verify", place)
    assert (ended.exit_code, "text in UTF-8" in ended.stderr) == (2, True), ended.output
    (tmp_path / "link").symlink_to(place)
    ended = ran("verify", tmp_path / "link")
    assert (ended.exit_code, "a path that is not UTF-8" in ended.stderr) == (2, True), ended.output
