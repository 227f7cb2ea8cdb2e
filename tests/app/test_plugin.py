"""The plugin as a user meets it, in a session of its own; the load is replaced by a report."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from harness.report.report import Session, Status, report_from_json
from tests.support.given_reports import CONFTEST, report

pytestmark = pytest.mark.slow

TEST = """
import msgspec
import pytest
@pytest.mark.parametrize("row", ["first", "second"])
def test_row(row, moe_verified, moe_expected):
    moe_expected(None, moe_verified("anywhere"), ())
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.format(report=str(pytester.path / "given.json")))
    pytester.makepyfile(TEST)
    return pytester


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_the_closing_table_and_the_reports(session: pytest.Pytester, workers: list[str]) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    result = session.runpytest_subprocess("--moe-reports", "out", *workers)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*MoE load verification*", "*first*8/8*equal*", "*2 scenarios*16*"]
    )
    for name in ("first", "second"):
        written = report_from_json((session.path / "out" / f"{name}.json").read_bytes())
        assert written.experts_compared == 8


def test_a_difference_fails_with_its_text(session: pytest.Pytester) -> None:
    report(Status.DIFFERENT).write(session.path / "given.json")
    result = session.runpytest_subprocess()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*the device differs from the reference*", "*DIFFERENT*"])


OF_ONES_OWN = """
def test_ours(moe_equal):
    assert moe_equal("anywhere").experts_compared == 8
"""


@pytest.mark.parametrize("status", [Status.EQUAL, Status.DIFFERENT])
def test_a_test_of_ones_own_fails_with_the_reports_text(
    session: pytest.Pytester, status: Status
) -> None:
    report(status).write(session.path / "given.json")
    session.makepyfile(OF_ONES_OWN)
    result = session.runpytest_subprocess()
    equal = status is Status.EQUAL
    result.assert_outcomes(passed=int(equal), failed=int(not equal))
    if not equal:
        result.stdout.fnmatch_lines(["*the device differs from the reference*", "*DIFFERENT*"])


def test_the_header_states_target_and_stack(session: pytest.Pytester) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    result = session.runpytest_subprocess("--moe-devices", "8")
    result.stdout.fnmatch_lines(["harness target: emulated, 8 devices", "harness stack: vllm *"])


@pytest.mark.parametrize("target", ["gpu", "tpu"])
def test_a_target_that_cannot_be_had_is_an_error(session: pytest.Pytester, target: str) -> None:
    result = session.runpytest_subprocess("--moe-target", target)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{target}*"])


def test_a_report_names_its_test_to_repeat_it(session: pytest.Pytester) -> None:
    report(Status.DIFFERENT).write(session.path / "given.json")
    asked = ["--moe-reports=out", "--moe-devices=2", "--moe-checksums", "--moe-expect=known"]
    session.runpytest_subprocess(*asked)
    written = report_from_json((session.path / "out" / "first.json").read_bytes())
    (file,) = session.path.glob("test_*.py")
    assert written.repeat == (
        f"pytest '{file.name}::test_row[first]' "
        "--moe-target=emulated --moe-devices=2 --moe-checksums"
    )


@pytest.mark.parametrize(
    ("asked", "used"),
    [([], [False, False]), (["--moe-checkpoint=/c"], [True, False]),
     (["--moe-checkpoint=/c", "--moe-no-cache"], [False, False])],
    ids=["made here", "named", "not wanted"],
)  # fmt: skip
def test_digests_between_runs_are_for_checkpoints_that_the_user_named(
    pytester: pytest.Pytester, asked: list[str], used: list[bool]
) -> None:
    pytester.makepyfile(f"""
        import pytest
        from harness.app import plugin

        def test_row(moe_verified, monkeypatch):
            seen = []
            def verify(checkpoint, target, *, cache, **options):
                seen.append(cache)
                raise LookupError
            monkeypatch.setattr(plugin, "verify", verify)
            for place in ("/c", "/made"):
                with pytest.raises(LookupError):
                    moe_verified(place)
            assert seen == {used}
    """)
    pytester.runpytest_subprocess(*asked).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("asked", "outcome", "told"),
    [
        ("devices=3", "skipped", "a mesh of 3 cannot be divided among 2 hosts"),
        ("mesh='data=3'", "skipped", "a mesh of 3 cannot be divided among 2 hosts"),
        ("mesh='data=2,data=2'", "failed", "not a mesh"),
        ("devices=5, hosts=3", "failed", "3 hosts with 5 devices"),
        ("devices=4", "passed", ""),
        ("mesh='data=2,model=2'", "passed", ""),
    ],
)
def test_a_mesh_that_cannot_be_had_skips_and_a_wrong_one_fails(
    pytester: pytest.Pytester, asked: str, outcome: str, told: str
) -> None:
    pytester.makepyfile(f"def test_row(moe_target_of):\n    moe_target_of({asked})\n")
    result = pytester.runpytest_subprocess("--moe-hosts", "2", "-rs")
    result.assert_outcomes(**{outcome: 1})
    assert told in result.stdout.str()


def test_a_target_without_such_a_mesh_skips(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from harness.load.targets import xla\nxla._require_torch_xla = lambda: None\n"
    )
    pytester.makepyfile("def test_row(moe_target_of):\n    moe_target_of(mesh='data=2,model=2')\n")
    result = pytester.runpytest_subprocess("--moe-target", "torch-xla", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*a mesh of several axes on torch-xla*"])


@pytest.mark.parametrize(("fixture", "ours"), [("tmp_path", False), ("moe_load_processes", True)])
def test_sigterm_is_taken_where_the_harness_is_used(
    pytester: pytest.Pytester, fixture: str, ours: bool
) -> None:
    pytester.makepyfile(
        f"import signal\ndef test_a({fixture}):\n"
        f"    assert (signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL) is {ours}\n"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("given.json", "Not a directory"),
        ("/proc/self/out", "No such file"),
        ("in-the-way", "session.json"),
    ],
    ids=["a file", "read-only", "a directory in a file's place"],
)
def test_a_place_for_reports_is_tried_first(
    session: pytest.Pytester, place: str, told: str
) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    (session.path / "in-the-way" / "session.json").mkdir(parents=True)
    result = session.runpytest_subprocess("--moe-reports", place)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{told}*"])
    assert "passed" not in result.stdout.str()


def test_trying_makes_nothing(session: pytest.Pytester) -> None:
    session.runpytest_subprocess("--moe-reports", "out/deep", "--help")
    assert not (session.path / "out").exists()


@pytest.mark.parametrize("status", [Status.EQUAL, Status.DIFFERENT])
def test_reports_that_cannot_be_written_are_kept(session: pytest.Pytester, status: Status) -> None:
    report(status).write(session.path / "given.json")
    temporary = session.mkdir("tmp")
    conftest = session.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"\nimport tempfile\ntempfile.tempdir = {str(temporary)!r}\n"
        + "def pytest_runtest_teardown():\n"
        + "    import shutil; shutil.rmtree('out', ignore_errors=True); open('out', 'w').close()\n"
    )
    result = session.runpytest_subprocess("--moe-reports", "out")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["INTERNALERROR> the output could not be written: *"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    (kept,) = temporary.glob("harness-kept-*")
    assert str(kept) in result.stdout.str()
    assert {path.name for path in kept.iterdir()} == {
        "first.json", "second.json", "session.json", "junit.xml", "summary.md", "report.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    "broken", ["harness.report.session.rendered", "harness.app.plugin.closing_table"]
)
def test_what_nobody_foresaw_at_the_end_is_an_internal_error(
    session: pytest.Pytester, broken: str
) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    module, name = broken.rsplit(".", 1)
    conftest = session.path / "conftest.py"
    conftest.write_text(
        conftest.read_text() + f"\nimport {module}\n"
        f"def broken(*_): raise KeyError('as planted')\n{module}.{name} = broken\n"
    )
    result = session.runpytest_subprocess("--moe-reports", "out")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["INTERNALERROR> *KeyError: 'as planted'*", "*2 passed*"])
    assert (session.path / "out" / "session.json").exists()


def test_a_step_summary_that_cannot_be_written(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(session.path))
    report(Status.EQUAL).write(session.path / "given.json")
    result = session.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*equal*", "INTERNALERROR> *IsADirectoryError*", "*2 passed*"])


BREAKING = """
import msgspec
import pytest
from harness.base.errors import InternalError

@pytest.mark.parametrize("row", ["first"])
def test_row(row, moe_verified, moe_expected):
    moe_expected(None, moe_verified("anywhere"), ())
    {statement}
"""


@pytest.mark.parametrize(
    "statement",
    [
        "raise KeyError('as planted')",
        "raise InternalError('as planted', where='w', expected='e', hint='h')",
        "assert not 'as planted'",
    ],
)
def test_a_test_that_breaks_is_no_difference(session: pytest.Pytester, statement: str) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    (file,) = session.path.glob("test_*.py")
    file.write_text(BREAKING.format(statement=statement))
    session.runpytest_subprocess("--moe-reports", "out").assert_outcomes(failed=1)
    written = msgspec.json.decode((session.path / "out/session.json").read_bytes(), type=Session)
    assert [row.failed for row in written.rows] == [False]
    assert [broken.phase for broken in written.broken] == ["call"]
    assert "as planted" in written.broken[0].message
    assert "did not happen" not in (session.path / "out/summary.md").read_text()


def test_a_known_issue_that_did_not_happen_is_a_failure(session: pytest.Pytester) -> None:
    report(Status.EQUAL).write(session.path / "given.json")
    (file,) = session.path.glob("test_*.py")
    file.write_text(OUT_OF_DATE)
    session.runpytest_subprocess("--moe-reports", "out").assert_outcomes(failed=1)
    written = msgspec.json.decode((session.path / "out/session.json").read_bytes(), type=Session)
    assert [row.failed for row in written.rows] == [True]
    assert written.broken == []
    assert "its known issue did not happen" in (session.path / "out/summary.md").read_text()


OUT_OF_DATE = """
import harness.app.plugin
from types import SimpleNamespace
from harness.report.known_issue import Judgement, Verdict

issue = SimpleNamespace(id="an-issue", summary="an-issue", owner="vllm")
harness.app.plugin.judge = lambda *_: Judgement(Verdict.OUT_OF_DATE, (issue,), "")

def test_row(moe_verified, moe_expected):
    moe_expected(None, moe_verified("anywhere"), ())
"""


#: A project with options, fixtures and markers of its own, called what ours were once.
PROJECT = """
import pytest

THEIRS = ("--target", "--stack", "--seed", "--layers", "--reports", "--checkpoint", "--devices")

def pytest_addoption(parser):
    for name in THEIRS:
        parser.addoption(name, default="theirs")

@pytest.fixture(params=["theirs"])
def target(request):
    return request.config.getoption("--target")

@pytest.fixture
def verified():
    return "theirs"

@pytest.fixture
def load_process():
    return "theirs"
"""

BESIDE = """
import pytest

@pytest.mark.purpose
def test_of_their_own(request, target, verified, load_process):
    asked = [request.config.getoption(name) for name in ("--target", "--stack", "--seed")]
    assert asked == ["mars", "theirs", "7"]
    assert (target, verified, load_process) == ("mars", "theirs", "theirs")
    assert request.config.getoption("--moe-seed") == 5

def test_of_a_load(target, moe_target, moe_verified, moe_expected):
    assert (target, moe_target.devices) == ("mars", 2)
    moe_expected(None, moe_verified("anywhere"), ())
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_a_project_with_the_same_words_runs_beside_it(
    pytester: pytest.Pytester, workers: list[str]
) -> None:
    report(Status.EQUAL).write(pytester.path / "given.json")
    pytester.makeconftest(CONFTEST.format(report=str(pytester.path / "given.json")) + PROJECT)
    pytester.makepyfile(BESIDE)
    pytester.makeini("[pytest]\nmarkers = purpose: theirs\naddopts = --strict-markers\n")
    asked = ["--target=mars", "--seed=7", "--moe-seed=5", "--moe-devices=2", *workers]
    result = pytester.runpytest_subprocess(*asked)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["harness target: emulated, 2 devices", "*1 scenario *8*"])


def private(text: str) -> list[str]:
    """What code reaches for that is not public: ``_pytest``, and others' names with ``_``."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in names if name.split(".")[0] == "_pytest"]
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [ast.unparse(node)]
    return found


@pytest.mark.parametrize(
    "path",
    [
        "conftest.py",
        "harness/app/options.py",
        "harness/app/plugin.py",
        "harness/report/session.py",
        "scenarios/conftest.py",
        "scenarios/test_experts.py",
    ],
)
def test_pytest_is_used_by_its_public_names(path: str) -> None:
    assert private((Path(__file__).parents[2] / path).read_text()) == []


def test_a_private_name_is_seen() -> None:
    text = "from _pytest.config import Config\nimport pytest\nreporter._tw._file\nself._own\n"
    assert private(text) == ["_pytest.config", "reporter._tw._file", "reporter._tw"]
