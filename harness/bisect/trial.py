"""One trial: an environment, one scenario in it, and what its report says.

An environment is asked of ``ci/setup.py``, which is told the pair and ends with 4 where that does
not work together; the scenario is run by the pytest of that environment, as a user would run it.
So a bisection needs a checkout of the harness.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import BadInput, HarnessError, TargetUnavailable
from harness.base.foreign import one_line
from harness.bisect.builds import TPU_INFERENCE, companions
from harness.bisect.walk import Question, Tried
from harness.families.family import Part
from harness.report.known_issue import KnownIssue, Load, shows
from harness.report.renderings import session_from
from harness.report.report import Report, Status

ROOT = Path(__file__).resolve().parents[2]
PAIR_FAILS = 4  # ci/setup.py
_ENVIRONMENT = "bisect"
#: How a load ends that did not start in time (``harness/load/process.py``): no build's fault.
_NO_ANSWER = "gave no answer within"
_SECONDS = 1800.0  # a scenario, its environment being there
_VARIABLES = ("VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTHONPATH")


def require_checkout(root: Path = ROOT) -> None:
    """Whether the harness is a checkout.

    Raises:
        TargetUnavailable: it is installed, and makes no environments.
    """
    if not (root / "ci" / "setup.py").exists():
        raise TargetUnavailable(
            "no environment of other releases can be made",
            where=str(root),
            expected="a checkout of the harness, whose ci/setup.py makes them",
            hint="git clone, make setup, then .venv/bin/harness bisect",
        )


def set_up(*options: str) -> subprocess.CompletedProcess[str]:
    """Run ``ci/setup.py``."""
    command = [sys.executable, str(ROOT / "ci" / "setup.py"), *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=_environment(), cwd=ROOT
    )


def versions_of(package: str) -> list[str]:
    """All versions of a package in the index.

    Raises:
        TargetUnavailable: the index does not answer.
    """
    ran = set_up("--versions", package)
    if ran.returncode:
        raise _unavailable(ran.stderr)
    found: list[str] = json.loads(ran.stdout)
    return found


def built_on(package: str, version: str) -> str:
    """The day a version was built; empty where nothing tells."""
    return set_up("--built", f"{package}=={version}").stdout.strip()


def _environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name not in _VARIABLES}


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("setup: ")]
    return one_line((lines or text.splitlines() or ["it said nothing"])[-1].removeprefix("setup: "))


def _unavailable(said: str) -> TargetUnavailable:
    return TargetUnavailable(
        f"no environment: {_last(said)}",
        where="ci/setup.py",
        expected="a package index that answers, and room on the disk",
        hint="the same command once more: what was tried is kept",
    )


class VersionTrial:
    """Tries versions of one package.

    Args:
        question: what is asked.
        folder: gets a folder of reports for each version.
        others: the versions of the other package.
        load: what the scenario loads.
        issue: the known issue of the question, if it has one.
    """

    def __init__(
        self,
        question: Question,
        folder: Path,
        others: Sequence[str],
        load: Load | None,
        issue: KnownIssue | None,
    ) -> None:
        self._question, self._folder, self._others = question, folder, others
        self._load, self._issue = load, issue

    def __call__(self, version: str) -> Tried:
        """Try ``version`` with the other's release, or with those that follow from it."""
        started = time.monotonic()
        whys = []
        asked = self._question
        for other in [asked.other] if asked.other else companions(version, self._others):
            tpu = asked.package == TPU_INFERENCE
            pair = f"{other}+{version}" if tpu else f"{version}+{other}"
            ran = set_up(pair, "--target", asked.target, "--inside", _ENVIRONMENT)
            if ran.returncode == 0:
                programs = Path(ran.stdout.strip()) / "bin"
                reports = self._folder / "trials" / version
                found = scenario_run(programs, asked, reports, self._load, self._issue)
                return _completed(found, pair, self._folder, started)
            if ran.returncode != PAIR_FAILS:
                raise _unavailable(ran.stderr)
            whys.append(_last(ran.stderr))
        return Tried(
            why="; ".join(whys) or "no release of the other package goes with it",
            seconds=round(time.monotonic() - started, 1),
        )


def _completed(found: Tried, pair: str, folder: Path, started: float) -> Tried:
    values = {name: getattr(found, name) for name in found.__struct_fields__}
    report = os.path.relpath(found.report, folder) if found.report else ""
    seconds = round(time.monotonic() - started, 1)
    return Tried(**values | {"pair": pair, "report": report, "seconds": seconds})


def scenario_run(
    programs: Path,
    question: Question,
    reports: Path,
    load: Load | None,
    issue: KnownIssue | None,
    options: Sequence[str] = (),
) -> Tried:
    """Run the scenario with the pytest in ``programs``, and say how it came out.

    Raises:
        TargetUnavailable: it does not start, or takes too long.
    """
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    command = [
        str(programs / "pytest"), f"scenarios/test_experts.py::test_experts[{question.scenario}]",
        "-p", "no:cacheprovider", f"--target={question.target}", "--expect=equal",
        f"--reports={reports}", *options,
    ]  # fmt: skip
    with (reports / "log.txt").open("w") as log:
        try:
            ran = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment(),
                stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unavailable(str(error)) from error
    return outcome_of(reports / "session.json", ran.returncode, load, issue)


def outcome_of(session: Path, ended: int, load: Load | None, issue: KnownIssue | None) -> Tried:
    """What a session of one scenario says; no verdict where it has no report.

    Raises:
        TargetUnavailable: the loading process gave no answer: that is this machine's, and is tried
            again.
    """
    try:
        rows = session_from(session).rows
    except HarnessError as error:
        return Tried(why=f"pytest ended with {ended}: {one_line(error.what)}")
    if not rows:
        return Tried(why=f"pytest ended with {ended} and no report")
    report = rows[0].report
    if report.failure and _NO_ANSWER in report.failure.error:
        raise _unavailable(f"setup: {report.failure.error}: the machine is too slow or too full")
    seen = None
    if issue is not None and load is not None:
        seen = True if shows(report, load, issue) else False if can_tell(report, issue) else None
    return Tried(words=words_of(report), shows=seen, report=str(session))


def can_tell(report: Report, issue: KnownIssue) -> bool:
    """Whether a report that does not show an issue rules it out: no other error came first."""
    return report.status is not Status.LOAD_FAILED or issue.raised is not None


def words_of(report: Report) -> str:
    """Status and causes: what makes two outcomes alike."""
    causes = sorted({str(diagnosis.cause) for diagnosis in report.diagnoses})
    error = [report.failure.error] if report.failure else []
    return ": ".join(filter(None, [str(report.status), ", ".join([*error, *causes])]))


def asked_for(scenario: str, issue: str, target: str) -> tuple[str, Load, KnownIssue | None]:
    """The scenario to run, what it loads, and the known issue.

    Args:
        scenario: its name; empty for the first that shows the issue.
        issue: a known issue's id, or empty.
        target: where to load to.

    Raises:
        BadInput: there is no such scenario or issue, or nothing shows it.
    """
    catalogue = _scenarios("catalogue").SCENARIOS
    known: Mapping[str, KnownIssue] = {
        row.id: row for row in _scenarios("known_issues").KNOWN_ISSUES
    }
    rows = {row.id: row for row in catalogue}
    if issue and issue not in known:
        raise _unknown("known issue", issue, known)
    if scenario and scenario not in rows:
        raise _unknown("scenario", scenario, rows)
    row = known.get(issue)
    if not scenario:
        if row is None:
            raise _unknown("scenario", scenario, rows)
        scenario = _that_shows(row, catalogue, target)
    return scenario, rows[scenario].load(), row


def _that_shows(issue: KnownIssue, catalogue: Sequence[Any], target: str) -> str:
    """The first scenario of a decoder alone, or of anything, that an issue makes fail."""
    found = [row for row in catalogue if target in issue.targets and issue.when(row.load())]
    simple = [row for row in found if row.load().parts == (Part.DECODER,)]
    if not found:
        raise BadInput(
            f"no scenario shows known issue {issue.id}",
            where=f"--target {target}",
            expected="a scenario that it is a known issue of",
            hint="--scenario",
        )
    return str((simple or found)[0].id)


def _scenarios(module: str) -> Any:
    return importlib.import_module(f"scenarios.{module}")


def _unknown(kind: str, name: str, known: Mapping[str, Any]) -> BadInput:
    return BadInput(
        f"there is no {kind} {name!r}",
        where="harness bisect",
        expected=f"one of {', '.join(known)}",
        hint="--scenario NAME or --issue ID",
    )
