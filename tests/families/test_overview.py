"""What is known of all families at a glance, and the record of runs that part of it is from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.families import overview
from harness.families.known_families import families, family_named
from harness.families.overview import (
    BEGIN,
    END,
    Ending,
    Loads,
    LoadsOn,
    Overview,
    Releases,
    Result,
    families_table,
    overview_text,
    recorded,
)
from scenarios.by_rule import APART
from scenarios.catalogue import PLAIN
from scenarios.known_issues import KNOWN_ISSUES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
RUNS = {
    "0.26": Releases("0.26.0", "0.26.0", "emulated"),
    "0.32": Releases("0.32.0", "0.32.0", "emulated"),
    "torch-xla": Releases("0.26.0", "0.26.0", "torch-xla"),
}


def loads(**results: Result) -> Loads:
    """A record of one recipe; runs are named with an underscore here."""
    named = {name.replace("_", "."): result for name, result in results.items()}
    return Loads(RUNS, (LoadsOn("qwen3-moe", "tensor", "text-per-expert", named),))


EQUAL = Result(Ending.EQUAL)
KNOWN = Result(Ending.KNOWN, ("untied-head-unwritten",))


def test_every_plain_scenario_is_recorded() -> None:
    """A recipe is added with its run: CONTRIBUTING.md, "The tables of runs"."""
    recorded_rows = [(load.scenario, load.recipe, load.parallelism) for load in recorded().loads]
    rows = [(s.id, s.recipe, str(s.parallelism or "tensor")) for s in PLAIN]
    assert recorded_rows == rows


def test_every_issue_of_the_record_exists() -> None:
    known = {issue.id for issue in KNOWN_ISSUES}
    told = {name for load in recorded().loads for r in load.results.values() for name in r.issues}
    assert told <= known


def test_the_page_is_made_of_the_record() -> None:
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == families_table(recorded())


def test_every_family_is_told_of() -> None:
    shown = CliRunner().invoke(main, ["families"])
    assert shown.exit_code == 0
    for family in families():
        paragraph = shown.stdout.split(f"{family.name}\n")[1].split("\n\n")[0]
        assert f"architecture  {family.architecture}" in paragraph
        apart = all(recipe.name in APART for recipe in family.recipes)
        assert ("no run of it is recorded" in paragraph) is apart
        for word in (*family.examples, *(recipe.name for recipe in family.recipes)):
            assert word in paragraph


def test_the_same_for_other_programs() -> None:
    shown = CliRunner().invoke(main, ["families", "--json"])
    assert shown.exit_code == 0
    assert msgspec.json.decode(shown.stdout, type=Overview) == overview.overview()
    first = json.loads(shown.stdout)["families"][0]
    assert {"name", "architectures", "storages", "recipes", "loads"} <= set(first)


@pytest.mark.parametrize(
    ("known", "line"),
    [
        (
            loads(**{"0_26": EQUAL, "0_32": EQUAL}),
            "  loads         qwen3-moe, tensor parallel: equal on 0.26, 0.32",
        ),
        (
            loads(**{"0_32": KNOWN}),
            "  loads         qwen3-moe, tensor parallel: known issue on 0.32 "
            "(untied-head-unwritten)",
        ),
        (Loads(RUNS, ()), "  loads         no run of it is recorded"),
    ],
    ids=["equal", "a known issue", "nothing"],
)
def test_words(known: Loads, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "recorded", lambda: known)
    told = overview.overview()
    (family,) = (each for each in told.families if each.name == "qwen3-moe")
    assert line in overview_text(Overview(told.runs, (family,))).splitlines()


@pytest.mark.parametrize(
    ("result", "cell"),
    [
        (EQUAL, "equal"),
        (KNOWN, "known issue: [untied-head-unwritten](known-issues.md#untied-head-unwritten)"),
        (
            Result(Ending.REFUSED, ("experts-not-divisible",)),
            "refused: [experts-not-divisible](known-issues.md#experts-not-divisible)",
        ),
        (Result(Ending.FAILED), "**failed**"),
        (None, "not run"),
    ],
    ids=["equal", "known", "refused", "failed", "not run"],
)
def test_cells(result: Result | None, cell: str) -> None:
    known = loads(**({"0_26": result} if result else {}))
    (row,) = [r for r in families_table(known).splitlines() if "| tensor |" in r]
    cells = ["`qwen3-moe`", "`qwen3-moe`: Qwen3-MoE, per expert", "tensor", cell] + ["not run"] * 2
    assert row == f"| {' | '.join(cells)} |"


def test_a_family_of_somebody_else_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = replace(family_named("qwen3-moe"), name="theirs", architecture="Theirs", recipes=())
    monkeypatch.setattr(overview, "families", lambda: (theirs,))
    assert overview_text(overview.overview()).endswith("no run of it is recorded\n")
