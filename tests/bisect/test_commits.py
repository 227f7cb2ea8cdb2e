"""Bisecting commits of a small clone, by git itself, with a pytest that reads the work tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from harness.app import bisect_command
from harness.app.cli import main
from harness.base.errors import BadInput
from harness.bisect.commits import Commits, commit_of_clone
from harness.bisect.search import Mark
from harness.bisect.walk import Notebook, Question, Tried, opened, save
from harness.explain.causes import Cause, Diagnosis
from harness.report.report import Report, Session, SessionRow, Status
from tests.support.differences import unread
from tests.support.pipelines import program
from tests.support.reports import a_report

COUNT, BAD_FROM, BROKEN = 12, 7, (5, 6)

FAKE_PYTEST = """#!{python}
import pathlib, sys
options = dict(option.split("=", 1) for option in sys.argv[1:] if "=" in option)
tree = pathlib.Path(options["--stack"].split(",")[-1].removeprefix("path:"))
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(tree, file=calls)
if (folder / "stop").exists():
    import os, signal
    if len((folder / "calls").read_text().splitlines()) == int((folder / "stop").read_text()):
        (folder / "stop").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit(1)
number = int((tree / "number").read_text())
if number in {broken}:
    sys.exit(4)
session = folder / ("bad" if number >= {bad_from} else "good")
(pathlib.Path(options["--reports"]) / "session.json").write_bytes(session.read_bytes())
"""


def report(bad: bool) -> Report:
    causes = [
        Diagnosis(
            cause=Cause.ZEROS, summary="s", evidence="e", next_step="n", first=0, covers=1,
            members="0",
        )
    ] if bad else []  # fmt: skip
    return a_report(
        status=Status.DIFFERENT if bad else Status.EQUAL, diagnoses=causes,
        differences=[unread()] if bad else [],
    )  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of :data:`COUNT` commits; from one on the scenario fails."""
    at = tmp_path / "clone"
    at.mkdir()
    git(at, "init", "-q", "-b", "main")
    for number in range(COUNT):
        (at / "number").write_text(str(number))
        git(at, "add", "number")
        git(at, "commit", "-q", "-m", f"commit {number}")
        git(at, "tag", f"v{number}")
    return at


def git(at: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    ran = subprocess.run(
        ["git", "-C", str(at), *identity, *words], check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """An environment whose pytest leaves a report as the work tree says."""
    at = tmp_path / "env" / "bin"
    at.mkdir(parents=True)
    text = FAKE_PYTEST.format(python=sys.executable, broken=BROKEN, bad_from=BAD_FROM)
    program(at / "pytest", text)
    for name, bad in (("good", False), ("bad", True)):
        row = SessionRow(scenario="vl-fused", report=report(bad), failed=bad)
        (at / name).write_bytes(Session(complete=True, rows=[row]).to_json())
    return at


def bisection(clone: Path, folder: Path, programs: Path, good: str, bad: str) -> Commits:
    asked = Question(
        package="tpu-inference", good=commit_of_clone(str(clone), good),
        bad=commit_of_clone(str(clone), bad), scenario="vl-fused", checkout=str(clone),
    )  # fmt: skip
    state = opened(folder, asked)
    save(folder, state)
    (folder / "programs").write_text(str(programs))
    return Commits(state, folder, programs, say=lambda line: None)


def calls(programs: Path) -> int:
    return len((programs / "calls").read_text().splitlines())


@pytest.mark.slow
def test_the_first_bad_commit(clone: Path, tmp_path: Path, programs: Path) -> None:
    """With commits before it that cannot be tried; the clone stays as it was."""
    commits = bisection(clone, tmp_path / "out", programs, "v0", f"v{COUNT - 1}")
    found = commits.found()
    assert git(clone, "show", "-s", "--format=%s", found.border.after) == f"commit {BAD_FROM}"
    assert git(clone, "show", "-s", "--format=%s", found.border.before) == "commit 4"
    assert (found.first, found.before.words) == (Mark.BAD, "equal")
    assert found.after.words == "different: zeros"
    assert (tmp_path / "out" / found.after.report).exists()
    state = commits.walk.state
    assert f"commit {BAD_FROM}" in state.dates[found.border.after]
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "rev-parse", "HEAD") == git(clone, "rev-parse", "main")
    commits.end()
    assert not (tmp_path / "out" / "tree").exists()


@pytest.mark.slow
def test_the_commit_that_mended_it(clone: Path, tmp_path: Path, programs: Path) -> None:
    (programs / "good").rename(programs / "kept")
    (programs / "bad").rename(programs / "good")
    (programs / "kept").rename(programs / "bad")
    found = bisection(clone, tmp_path / "out", programs, f"v{COUNT - 1}", "v0").found()
    assert git(clone, "show", "-s", "--format=%s", found.border.after) == f"commit {BAD_FROM}"
    assert found.first is Mark.GOOD


@pytest.mark.slow
def test_killed_and_continued(clone: Path, tmp_path: Path, programs: Path) -> None:
    (programs / "stop").write_text("4")  # both ends are tried by then, and one commit between
    folder = tmp_path / "out"
    first = bisection(clone, folder, programs, "v0", f"v{COUNT - 1}")
    with pytest.raises(Exception, match="git cannot bisect"):
        first.found()
    tried = calls(programs)
    known = len(opened(folder, first.question).trials)
    found = bisection(clone, folder, programs, "v0", f"v{COUNT - 1}").found()
    assert git(clone, "show", "-s", "--format=%s", found.border.after) == f"commit {BAD_FROM}"
    state = msgspec.json.decode((folder / "bisect.json").read_bytes(), type=Notebook)
    assert calls(programs) - tried == len(state.trials) - known


def test_commits_of_no_line(clone: Path, tmp_path: Path, programs: Path) -> None:
    git(clone, "checkout", "-q", "-b", "side", "v2")
    (clone / "number").write_text("11")
    git(clone, "commit", "-q", "-a", "-m", "aside")
    git(clone, "checkout", "-q", "main")
    with pytest.raises(BadInput, match="neither commit is an ancestor"):
        bisection(clone, tmp_path / "out", programs, "v3", "side").found()


@pytest.mark.parametrize("wanted", ["v99", "--all"])
def test_no_commit(clone: Path, wanted: str) -> None:
    with pytest.raises(BadInput, match="there is no commit"):
        commit_of_clone(str(clone), wanted)


@pytest.mark.slow
def test_the_command(
    clone: Path, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subprocess.CompletedProcess([], 0, stdout=f"{programs.parent}\n", stderr="")
    monkeypatch.setattr(bisect_command, "set_up", lambda *options: made)
    asked = ["bisect", "--good", "v0", "--bad", "main", "--checkout", str(clone)]
    out = ["--scenario", "vl-fused", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, [*asked, *out])
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("first bad  tpu-inference ")
    assert f"commit {BAD_FROM}): different: zeros" in lines[0]
    assert lines[2].startswith("last good  tpu-inference ")
    assert len([line for line in lines if line.startswith("skipped")]) == len(BROKEN)
    assert json.loads((tmp_path / "out" / "bisect.json").read_text())["dates"]


def test_what_a_trial_takes_from_another_commit(tmp_path: Path) -> None:
    """A state that a later version of the harness wrote has other fields, too."""
    asked = Question(package="vllm", good="1", bad="2", scenario="s")
    save(tmp_path, Notebook(question=asked, trials={"1": Tried(words="equal")}))
    content = json.loads((tmp_path / "bisect.json").read_text()) | {"more": 1}
    (tmp_path / "bisect.json").write_text(json.dumps(content))
    assert opened(tmp_path, asked).trials["1"].words == "equal"
