"""Many nights: since when a scenario fails, and what changed with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.explain.causes import Cause, Diagnosis
from harness.report.history import Course, changes_text, courses, print_courses
from harness.report.report import Report, Session, SessionRow, Status
from tests.support.differences import unread
from tests.support.pages import CANARY
from tests.support.reports import a_report, an_environment


def report(cause: Cause | None = None, *, vllm: str = "0.26.0", overlay: str = "") -> Report:
    found = [
        Diagnosis(cause=cause, summary="s", evidence="e", next_step="n", first=0, covers=1)
    ] if cause else []  # fmt: skip
    versions = {"vllm": vllm, "jax": "0.10.2"}
    return a_report(
        status=Status.DIFFERENT if cause else Status.EQUAL,
        diagnoses=found,
        differences=[unread()] * len(found),
        environment=an_environment(versions=versions, overlay=overlay),
    )


def night(directory: Path, name: str, began: str, **reports: Report) -> None:
    rows = [SessionRow(scenario=scenario, report=given) for scenario, given in reports.items()]
    (directory / name).mkdir(parents=True)
    Session(complete=True, began=began, rows=rows).write(directory / name / "session.json")


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """Four nights, whose folders sort otherwise than their times."""
    night(tmp_path, "d", "2026-05-01T03:00:00+00:00", vl=report(vllm="0.25.0"))
    night(tmp_path, "b", "2026-05-02T03:00:00+00:00", vl=report(Cause.ZEROS))
    night(tmp_path, "c", "2026-05-03T03:00:00+00:00", vl=report(Cause.ZEROS))
    night(tmp_path, "a", "2026-05-04T03:00:00+00:00", vl=report(Cause.ROLLED), new=report())
    return tmp_path


def of(found: list[Course], scenario: str) -> Course:
    (course,) = [one for one in found if one.scenario == scenario]
    return course


def test_nights_follow_their_time(nights: Path) -> None:
    assert [n.name for n in of(courses(nights), "vl").nights] == ["d", "b", "c", "a"]


def test_failing_since(nights: Path) -> None:
    since = of(courses(nights), "vl").failing_since
    assert since is not None
    assert since.name == "b"
    assert of(courses(nights), "new").failing_since is None


def test_changes_name_the_versions_that_moved(nights: Path) -> None:
    first, second = of(courses(nights), "vl").changes
    assert (first.after.name, first.versions) == ("b", {"vllm": ("0.25.0", "0.26.0")})
    assert (second.after.causes, second.versions) == (("rolled",), {})


def test_a_checkout_is_a_version(tmp_path: Path) -> None:
    night(tmp_path, "1", "2026-05-01", vl=report())
    night(tmp_path, "2", "2026-05-02", vl=report(Cause.ZEROS, overlay="vllm at abc"))
    (change,) = of(courses(tmp_path), "vl").changes
    assert change.versions == {"overlay": ("none", "vllm at abc")}


def test_mended_is_not_failing(tmp_path: Path) -> None:
    night(tmp_path, "1", "2026-05-01", vl=report(Cause.ZEROS))
    night(tmp_path, "2", "2026-05-02", vl=report())
    assert of(courses(tmp_path), "vl").failing_since is None
    assert len(of(courses(tmp_path), "vl").changes) == 1


def test_the_table(nights: Path) -> None:
    text = io.StringIO()
    print_courses(courses(nights), Console(file=text, width=160))
    assert ".FFF" in text.getvalue()
    assert "b: different zeros; vllm 0.25.0 → 0.26.0" in text.getvalue()


def test_a_session_of_an_earlier_schema_is_read(tmp_path: Path) -> None:
    """Without skips, options and purposes, as schema 3 was, and with a field no schema has."""
    (tmp_path / "old").mkdir()
    old = json.loads(CANARY.read_text()) | {"schema": 3, "of_another_schema": 1}
    assert not {"skipped", "options"} & old.keys()
    (tmp_path / "old" / "session.json").write_text(json.dumps(old))
    night(tmp_path, "new", "2027-05-01", **{"vl-fused": report()})
    (first, _, _, second) = courses(tmp_path)
    assert (first.scenario, first.stack, second.stack) == ("vl-fused", "0.21", "0.26")
    assert first.failing_since is not None


def test_what_changed_in_the_last_night(tmp_path: Path) -> None:
    """Worst first; of several stacks each by its folder, whatever it stood for."""
    moved = "0.33.0"
    first, second = "2026-05-01T03", "2026-05-02T03"
    night(tmp_path, f"{first}/nightly", first, a=report(), b=report(Cause.ZEROS), c=report())
    night(tmp_path, f"{first}/latest", first, a=report())
    night(
        tmp_path, f"{second}/nightly", second, a=report(Cause.ZEROS, vllm=moved),
        b=report(vllm=moved), c=report(vllm=moved), d=report(Cause.ROLLED, vllm=moved),
    )  # fmt: skip
    text = changes_text(courses(tmp_path))
    assert text.splitlines()[2:] == [
        "- **new failure** `a` on `nightly`, emulated, 4 devices: different zeros, was equal",
        "- **first seen failing** `d` on `nightly`, emulated, 4 devices: different rolled",
        "- **fixed** `b` on `nightly`, emulated, 4 devices: equal, was different zeros",
        "- `nightly` moved: vllm 0.26.0 → 0.33.0",
        "- `latest` did not come to its scenarios",
    ]
    shown = CliRunner().invoke(main, ["history", str(tmp_path), "--changes"])
    assert shown.output == text


def test_a_night_in_which_nothing_changed(tmp_path: Path) -> None:
    night(tmp_path, "1/latest", "2026-05-01", a=report(Cause.ZEROS))
    assert "This is the first night." in changes_text(courses(tmp_path))
    night(tmp_path, "2/latest", "2026-05-02", a=report(Cause.ZEROS))
    assert "- no outcome changed" in changes_text(courses(tmp_path))


def test_many_versions_that_moved_are_counted(tmp_path: Path) -> None:
    for number in "12":
        given = report()
        given.environment.versions.update({f"p{n:02}": number for n in range(30)}, jax=number)
        night(tmp_path, f"{number}/latest", f"2026-05-0{number}", a=given)
    line = changes_text(courses(tmp_path)).splitlines()[-1]
    assert line.startswith("- `latest` moved: jax 1 → 2, p00 1 → 2, ")
    assert line.endswith(" and 23 more")


def test_the_command(nights: Path) -> None:
    shown = CliRunner().invoke(main, ["history", str(nights)])
    assert shown.exit_code == 0
    assert ".FFF" in shown.output
    (course, _) = json.loads(CliRunner().invoke(main, ["history", str(nights), "--json"]).output)
    assert course["failing_since"]["name"] == "b"
    assert course["changes"][0]["versions"] == {"vllm": ["0.25.0", "0.26.0"]}


def test_no_session(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no session\.json was found"):
        courses(tmp_path)
    assert CliRunner().invoke(main, ["history", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 1}', "\udcff"])
def test_no_session_of_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "session.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match="not a session"):
        courses(tmp_path)
