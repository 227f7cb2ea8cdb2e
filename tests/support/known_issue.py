"""A known issue of no upstream, reports it is known from, and those that runs left of real ones.

``tests/data/known-failures.json`` holds one report for each row of the table and each stack it was
seen on; ``python -m tests.support.known_issue DIR`` makes it of the runs that ``ci.runs_page``
takes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part
from harness.report.known_issue import KnownIssue, Load, Nature, Owner, Raised, Stage
from harness.report.maps import map_of, with_missing
from harness.report.renderings import session_from
from harness.report.report import Failure, Frame, Report, Session, SessionRow, Status
from tests.support.reports import a_report, an_environment

ROOT = Path(__file__).parents[2]
FAILURES = ROOT / "tests" / "data" / "known-failures.json"
VERSIONS = {"vllm": "0.21.0", "tpu-inference": "0.21.0"}

ISSUE = KnownIssue(
    id="an-issue",
    owner=Owner.VLLM,
    nature=Nature.BUG,
    reason="it crashes",
    threads=("vllm#1",),
    releases=("vllm<0.22",),
    when=lambda load: load.family == "qwen3-vl-moe",
    raised=Raised(
        error="AssertionError",
        message="Expecting .*id",
        at="hook.py in check: assert id",
        stage=Stage.STREAM,
        cause=Cause.ARGUMENT_CONTRACT,
        evidence=r"vllm/qwen.py:\d+ called",
        lost=Part.DECODER,
    ),
)
LOAD = Load(family="qwen3-vl-moe", layers={Part.DECODER: [0]}, experts=8)


def failed(vllm: str = "0.21.0") -> Report:
    """A load that ended as :data:`ISSUE` says."""
    frame = Frame("hook.py", 7, "check", "assert id")
    (tally,) = a_report().tallies
    return a_report(
        status=Status.LOAD_FAILED,
        environment=an_environment(stack="0.21", versions=VERSIONS | {"vllm": vllm}),
        failure=Failure(error="AssertionError", message="Expecting expert_id", frames=(frame,)),
        tallies=[msgspec.structs.replace(tally, experts_compared=0)],
        maps=[with_missing(map_of(Part.DECODER, [0], 8), {0: range(8)})],
        diagnoses=[
            Diagnosis(
                cause=Cause.ARGUMENT_CONTRACT,
                summary="",
                evidence="vllm/qwen.py:7 called",
                next_step="",
            )
        ],
    )


def pinned_versions(stack: str) -> dict[str, str]:
    """The releases of a stack, from the file that pins them."""
    text = (ROOT / "ci" / "stacks" / f"{stack}.txt").read_text()
    return dict(re.findall(r"^(vllm|tpu-inference)==(\S+)", text, re.MULTILINE))


#: Where an environment is on the machine that ran: upstream's messages may name its files.
_ENVIRONMENT = re.compile(r"/\S+?(?=/lib/python\d)")


def record(directory: Path) -> None:
    """Keep one report of each known issue and stack, without what no test reads."""
    kept: dict[tuple[str, str], SessionRow] = {}
    for file in sorted(directory.glob("*/session.json")):
        for row in session_from(file).rows:
            if row.report.known_issue:
                row.report.environment = msgspec.structs.replace(row.report.environment, mesh=())
                kept.setdefault((row.report.known_issue, file.parent.name), _short(row))
    FAILURES.write_bytes(msgspec.json.encode(Session(complete=True, rows=list(kept.values()))))


def _short(row: SessionRow) -> SessionRow:
    report = row.report
    if report.failure:
        report.failure = msgspec.structs.replace(
            report.failure, frames=report.failure.frames[-1:], log_tail="",
            message=_ENVIRONMENT.sub("/venv", report.failure.message),
        )  # fmt: skip
    report = msgspec.structs.replace(report, calls=[], checkpoint="/c", reference="/c", repeat="")
    return SessionRow(scenario=row.scenario, report=report)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
