"""What a nightly run came to: the verdict of each stack, as JSON and as Markdown.

Reads the files that the harness's pytest plugin leaves (``--reports``), so it needs no
environment. ``summary.md`` is made for a Buildkite annotation and for ``GITHUB_STEP_SUMMARY``: the
verdict and a table of stacks, and below them each stack's own summary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

SCHEMA = 1
NO_REPORT = "error"
EMPTY: dict[str, Any] = {"rows": [], "broken": []}


class Outcome(IntEnum):
    """How a stack, or the whole run, ended; the number is the exit code."""

    AS_EXPECTED = 0
    DIFFERENT = 1
    BAD_INPUT = 2
    BROKEN = 3
    PAIR_FAILS = 4
    PROVISIONING = 75

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", " ")


#: A difference is never hidden behind something that would be tried again.
_WORST_FIRST = (
    Outcome.DIFFERENT, Outcome.BROKEN, Outcome.BAD_INPUT, Outcome.PAIR_FAILS, Outcome.PROVISIONING,
    Outcome.AS_EXPECTED,
)  # fmt: skip

#: pytest's exit codes (``pytest.ExitCode``).
_PYTEST = {
    0: (Outcome.AS_EXPECTED, ""),
    1: (Outcome.DIFFERENT, "a scenario ended otherwise than expected"),
    2: (Outcome.BROKEN, "pytest was interrupted"),
    3: (Outcome.BROKEN, "pytest had an internal error"),
    4: (Outcome.BAD_INPUT, "pytest refused its options"),
    5: (Outcome.BAD_INPUT, "no scenario fits the selection"),
}


@dataclass
class StackResult:
    """One stack: its verdict, and where its files are."""

    stack: str
    folder: Path
    outcome: Outcome = Outcome.BROKEN
    what: str = "not finished"
    seconds: float = 0.0
    findings: int | None = None
    interrupted: bool = False
    programs: Path | None = None
    pair: dict[str, str] | None = None  # of one that does not work

    def end(self, outcome: Outcome, what: str) -> None:
        self.outcome, self.what = outcome, what


def verdict(ended: int, folder: Path) -> tuple[Outcome, str]:
    """What pytest's exit code, and the files it left in ``folder``, mean."""
    outcome, what = _PYTEST.get(ended, (Outcome.BROKEN, f"pytest ended with status {ended}"))
    if outcome is Outcome.DIFFERENT:
        failed = failures(session_in(folder))
        if failed and all(one["status"] == NO_REPORT for one in failed):
            return Outcome.BROKEN, "what failed broke off before anything was compared"
    return outcome, what


def session_in(folder: Path) -> dict[str, Any]:
    """What a session left; one without rows where it left no file."""
    path = folder / "session.json"
    session: dict[str, Any] = json.loads(path.read_text()) if path.exists() else EMPTY
    return session


def worst(results: Sequence[StackResult]) -> Outcome:
    """The outcome of a run from those of its stacks."""
    return min((result.outcome for result in results), key=_WORST_FIRST.index)


def findings(sarif: Path) -> int:
    """The number of results in a SARIF file."""
    return sum(len(run["results"]) for run in json.loads(sarif.read_text())["runs"])


def write(
    out: Path,
    results: Sequence[StackResult],
    outcome: Outcome,
    target: str,
    command: list[str],
    changes: str = "",
) -> str:
    """Leave ``nightly.json`` and ``summary.md`` in ``out``; gives the text of the latter.

    ``changes`` since the last night, as Markdown, stand first.
    """
    out.mkdir(parents=True, exist_ok=True)
    stacks = [figures(result) for result in results]
    summaries = [own_summary(result.folder) for result in results]
    text = markdown(stacks, outcome, target, summaries, changes)
    content = {
        "schema": SCHEMA,
        "command": command,
        "target": target,
        "outcome": outcome.text,
        "exit_code": int(outcome),
        "stacks": stacks,
    }
    (out / "nightly.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "summary.md").write_text(text)
    return text


def figures(result: StackResult) -> dict[str, Any]:
    """One stack as data."""
    session = session_in(result.folder)
    rows = session["rows"]
    return {
        "stack": result.stack,
        "versions": versions(rows),
        "pair": result.pair,
        "outcome": result.outcome.text,
        "what": result.what,
        "seconds": result.seconds,
        "scenarios": len(rows),
        "equal": sum(map(is_equal, rows)),
        "known": sum(bool(row["report"]["known_issue"]) for row in rows),
        "skipped": len(session.get("skipped", ())),
        "experts_compared": total(rows, "experts_compared"),
        "bytes_compared": total(rows, "bytes_compared"),
        "audit_findings": result.findings,
        "failures": failures(session),
    }


def versions(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The exact versions of a session, all that are installed; none where there is no report."""
    environment: dict[str, Any] = rows[0]["report"].get("environment", {}) if rows else {}
    return dict(environment.get("versions", {}))


def is_equal(row: dict[str, Any]) -> bool:
    """Whether a report says that it is equal, and carries nothing that says otherwise."""
    report = row["report"]
    return report["status"] == "equal" and not (report.get("differences") or report.get("failure"))


def total(rows: Sequence[dict[str, Any]], name: str) -> int:
    """A figure over all rows: of experts, and of other parameters where they have it."""
    reports = [row["report"] for row in rows]
    tallies = [t for r in reports for t in (*r["tallies"], *r.get("parameters", ()))]
    return sum(tally.get(name, 0) for tally in tallies)


def failures(session: dict[str, Any]) -> list[dict[str, str]]:
    """The scenarios that failed: a known failure that was accepted is none, and one that did not
    happen is one. A test that broke off has no report.
    """
    rows = [row for row in session["rows"] if row["failed"]]
    rows.sort(key=lambda row: row["report"]["status"] == "equal")  # new ones first
    failed = [failure(row["scenario"], row["why"], row["report"]) for row in rows]
    return failed + [failure(one["test"], one["message"], {}) for one in session["broken"]]


def failure(scenario: str, message: str, report: dict[str, Any]) -> dict[str, str]:
    """A scenario that failed, with the first cause and the command that repeats it."""
    causes = [f"{item['cause']}: {item['summary']}" for item in report.get("diagnoses", [])]
    return {
        "scenario": scenario,
        "status": report.get("status", NO_REPORT),
        "cause": causes[0] if causes else (message.splitlines() or ["no message"])[0],
        "repeat": report.get("repeat", ""),
    }


def releases(found: dict[str, str]) -> str:
    """vLLM's and tpu-inference's, for a cell."""
    named = ("vllm", "tpu-inference", "runai-model-streamer")
    return ", ".join(f"{name} {found[name]}" for name in named if name in found)


def own_summary(folder: Path) -> str:
    """What the harness wrote of one stack; empty where it did not come to that."""
    path = folder / "summary.md"
    return path.read_text() if path.exists() else ""


def markdown(
    stacks: Sequence[dict[str, Any]],
    outcome: Outcome,
    target: str,
    summaries: Sequence[str],
    changes: str = "",
) -> str:
    """The summary: what changed since the last night, a table of stacks, the summary of each."""
    columns = {
        "stack": "stack", "releases": "releases", "outcome": "outcome",
        "scenarios": "scenarios", "equal": "equal",
        "known": "known", "skipped": "skipped", "experts": "experts_compared",
        "bytes": "bytes_compared", "audit findings": "audit_findings", "seconds": "seconds",
    }  # fmt: skip
    lines = [
        f"### MoE load verification on {target}: {outcome.text}",
        "",
        *([changes.rstrip(), ""] if changes else []),
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for one in stacks:
        one = one | {"releases": releases(one["versions"])}
        cells = ["" if one[name] is None else str(one[name]) for name in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    for one, summary in zip(stacks, summaries, strict=True):
        lines += ["", f"**{one['stack']}**: {one['what']}"] if one["what"] else []
        lines += ["", f"#### {one['stack']}", "", summary.rstrip()] if summary else []
    return "\n".join(lines) + "\n"
