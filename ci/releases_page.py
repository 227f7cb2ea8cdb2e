"""Writes what runs of pairs came to: docs/releases.md and ``harness/report/releases.json``.

``.venv/bin/python -m ci.releases_page DIR...`` reads what ``ci/run_nightly.sh --out DIR`` left:
``nightly.json`` and a session for each stack. Which issue is known of each scenario is judged anew.
The pinned stacks' rows are what docs/runs.md was made of; other pairs that the runs do not have
stay as they were recorded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from harness.base.errors import BadInput, HarnessError
from harness.base.writing import indented, write
from harness.families.overview import Ending, recorded
from harness.report.known_issue import KnownIssue, Verdict, judge, shows
from harness.report.releases import SEEN, WORKS, SeenPair, SeenPairs, seen_pairs, span
from harness.report.renderings import session_from
from harness.report.report import Report, Session
from scenarios.catalogue import SCENARIOS
from scenarios.known_issues import KNOWN_ISSUES
from scenarios.scenario import Scenario

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/releases.md")
BEGIN, END = "<!-- releases: written by ci/releases_page.py -->", "<!-- end of releases -->"

#: By verdict over a scenario, the worst last: a family's cell is that of its worst scenario.
_WORDS = {
    Verdict.EQUAL: "equal",
    Verdict.KNOWN: "known",
    Verdict.OUT_OF_DATE: "fixed",
    Verdict.UNEXPECTED: "new",
}
_CELLS = {"equal": "=", "known": "known", "fixed": "**fixed**", "new": "**new**"}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Read the runs that ``arguments`` name, and write the page of the checkout at ``root``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="*", help="what the nightly run left")
    options = parser.parse_args(arguments)
    file = root / SEEN.relative_to(ROOT)
    pairs = {pair.order: pair for pair in [*seen_pairs(file), *pinned_pairs()]}
    try:
        for directory in options.directories:
            pairs |= {pair.order: pair for pair in pairs_of(directory)}
    except HarnessError as error:
        print(f"releases_page: {error}", file=sys.stderr)
        return error.exit_code
    ordered = [pairs[order] for order in sorted(pairs)]
    write(file, indented(SeenPairs(ordered)))
    page = root / PAGE
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    write(page, f"{before}{BEGIN}\n{tables(ordered)}\n{END}{after}".encode())
    return 0


def pinned_pairs() -> Iterator[SeenPair]:
    """The pinned stacks, as ``ci/runs_page.py`` recorded their runs of every recipe."""
    known = recorded()
    rows = {scenario.id: scenario for scenario in SCENARIOS}
    words = {Ending.EQUAL: "equal", Ending.FAILED: "new"}
    for column, releases in known.runs.items():
        if releases.target != "emulated":
            continue
        ran = [
            (rows[load.scenario], load.results[column])
            for load in known.loads
            if column in load.results
        ]
        families: dict[str, str] = {}
        for scenario, result in ran:
            family = scenario.load().family
            word = words.get(result.outcome, "known")
            families[family] = worse(word, families.get(family, "equal"))
        seen = {name for _, result in ran for name in result.issues}
        equal = [scenario.load() for scenario, result in ran if result.outcome is Ending.EQUAL]
        yield SeenPair(
            vllm=releases.vllm,
            tpu_inference=releases.tpu_inference,
            verdict=WORKS,
            families=dict(sorted(families.items())),
            issues=tuple(issue.id for issue in KNOWN_ISSUES if issue.id in seen),
            absent=tuple(
                issue.id
                for issue in KNOWN_ISSUES
                if issue.id not in seen
                and "emulated" in issue.targets
                and any(issue.when(load) for load in equal)
            ),
            new=tuple(s.id for s, result in ran if result.outcome is Ending.FAILED),
        )


def pairs_of(directory: Path) -> Iterator[SeenPair]:
    """What a nightly run left of each of its stacks.

    Raises:
        BadInput: it left nothing, a session broke off, or is of no emulated devices.
    """
    file = directory / "nightly.json"
    try:
        stacks = msgspec.json.decode(file.read_bytes())["stacks"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise _no_run(str(error), file) from error
    for one in stacks:
        if one.get("pair"):
            yield SeenPair(**one["pair"])
            continue
        place = directory / one["stack"] / "session.json"
        session = session_from(place)
        if not session.complete or session.broken or not session.rows:
            raise _no_run("a session that was broken off", place)
        yield pair_of(session)


def _no_run(what: str, file: Path) -> BadInput:
    return BadInput(
        what,
        where=str(file),
        expected="what the nightly run leaves of pairs that ran, or do not work",
        hint="ci/run_nightly.sh --stacks 0.29,0.33+0.32 --families chosen --out DIR",
    )


def pair_of(session: Session) -> SeenPair:
    """What a session says of its pair."""
    rows = {scenario.id: scenario for scenario in SCENARIOS}
    ran = [(rows[row.scenario], row.report) for row in session.rows if row.scenario in rows]
    versions = ran[0][1].environment.versions
    families: dict[str, str] = {}
    new = []
    for scenario, report in ran:
        word = _WORDS[judge(report, scenario.load(), KNOWN_ISSUES).verdict]
        families[report.family] = worse(word, families.get(report.family, "equal"))
        new += [scenario.id] if word == "new" else []
    found = {issue.id: seen_of(issue, ran) for issue in KNOWN_ISSUES}
    return SeenPair(
        vllm=versions["vllm"],
        tpu_inference=versions["tpu-inference"],
        verdict=WORKS,
        families=dict(sorted(families.items())),
        issues=tuple(name for name, seen in found.items() if seen),
        absent=tuple(name for name, seen in found.items() if seen is False),
        new=tuple(new),
    )


def worse(one: str, other: str) -> str:
    order = list(_WORDS.values())
    return max(one, other, key=order.index)


def seen_of(issue: KnownIssue, ran: Sequence[tuple[Scenario, Report]]) -> bool | None:
    """Whether a run shows an issue; None where no scenario could have, or another error hid it."""
    told = []
    for scenario, report in ran:
        load = scenario.load()
        if "emulated" not in issue.targets or not issue.when(load):
            continue
        if shows(report, load, issue):
            return True
        if report.failure is None:
            told.append(False)
    return False if told else None


def tables(pairs: Sequence[SeenPair]) -> str:
    """The table of pairs, why those that do not work do not, and the table of known issues."""
    families = sorted({name for pair in pairs for name in pair.families})
    lines = [line("vLLM", "tpu-inference", *families), line(*["---"] * (len(families) + 2))]
    for pair in pairs:
        works = pair.verdict == WORKS
        cells = [cell(pair, name) if works else "cannot run" for name in families]
        lines.append(line(pair.vllm, pair.tpu_inference, *cells))
    lines += ["", *reasons(pairs), "", "## Known issues, since when and until when", ""]
    lines += [line("known issue", "first seen", "last seen", "gone on"), line(*["---"] * 4)]
    for issue in KNOWN_ISSUES:
        if found := span(issue.id, pairs):
            link = f"[{issue.id}](known-issues.md#{issue.id})"
            gone = str(found.gone) if found.gone else ""
            lines.append(line(link, str(found.first), str(found.last), gone))
    return "\n".join(lines)


def reasons(pairs: Sequence[SeenPair]) -> Iterator[str]:
    """A line for each pair that does not work, and for each failure that no row describes."""
    for pair in pairs:
        if pair.verdict != WORKS:
            yield f"- {pair}: {pair.verdict}: {text(pair.why)}"
        if pair.new:
            yield f"- {pair}: new: {', '.join(f'`{name}`' for name in pair.new)}"


def cell(pair: SeenPair, family: str) -> str:
    word = pair.families.get(family)
    return _CELLS[word] if word else "not run"


def text(said: str) -> str:
    """Words of a resolver or of Python, in Markdown."""
    return " ".join(said.replace("|", "\\|").replace("<", "&lt;").split())


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
