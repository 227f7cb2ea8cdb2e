"""The catalogue of scenarios: what holds of its rows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest

from harness.families.family import Family, Recipe
from harness.families.known_families import families, recipes
from harness.load.target import Parallelism
from harness.report.known_issue import expected_issues
from scenarios import by_rule
from scenarios.by_rule import APART
from scenarios.catalogue import CHOSEN, PLAIN, SCENARIOS
from scenarios.implementations import IMPLEMENTATION_ROWS
from scenarios.known_issues import KNOWN_ISSUES
from scenarios.scenario import Scenario
from tests.support.known_issue import pinned_versions
from tests.support.nested import NESTED_PYTEST, nested_environment
from tests.support.pipelines import ROOT, script

STACKS = script("setup").stacks()


def test_ids_are_one_of_a_kind() -> None:
    assert len({row.id for row in SCENARIOS}) == len(SCENARIOS)


def test_no_two_rows_ask_for_the_same_load() -> None:
    """Every row has a process and a load of its own: what rows vary is what is loaded, and how."""
    loads = [repr(replace(row, id="", why="", every_run=True)) for row in SCENARIOS]
    assert sorted(set(loads)) == sorted(loads)


@pytest.mark.parametrize("name", [name for name in recipes() if name not in APART])
@pytest.mark.parametrize("spread", [None, Parallelism.EXPERT], ids=["tensor", "expert"])
def test_every_recipe_is_loaded_in_both_ways(name: str, spread: Parallelism | None) -> None:
    assert [(row.recipe, row.parallelism) for row in PLAIN].count((name, spread)) == 1


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_run_has_a_load_of_every_family(family: Family) -> None:
    names = {recipe.name for recipe in family.recipes}
    if names <= set(APART):
        assert names <= {row.recipe for row in IMPLEMENTATION_ROWS}
        return
    assert [row for row in CHOSEN if row.recipe in names and row in PLAIN]


@pytest.mark.parametrize(
    "prop",
    sorted(
        {field.name for field in fields(Scenario)} - {"id", "why", "recipe", "mesh", "every_run"}
    ),
)
def test_every_run_has_every_value_of_a_property(prop: str) -> None:
    def values(rows: Sequence[Scenario]) -> set[str]:
        return {repr(getattr(row, prop)) for row in rows}

    assert values(CHOSEN) == values(SCENARIOS)


def test_every_run_has_a_mesh_with_every_axis() -> None:
    def axes(rows: Sequence[Scenario]) -> set[str]:
        return {axis.partition("=")[0] for row in rows for axis in row.mesh.split(",")}

    assert axes(CHOSEN) == axes(SCENARIOS)


@pytest.mark.parametrize("target", ["emulated", "torch-xla"])
@pytest.mark.parametrize("stack", STACKS)
def test_every_run_meets_every_known_issue(stack: str, target: str) -> None:
    versions = pinned_versions(stack)

    def met(rows: Sequence[Scenario]) -> set[str]:
        issues = (expected_issues(r.load(), versions, target, KNOWN_ISSUES) for r in rows)
        return {issue.id for found in issues for issue in found}

    assert met(CHOSEN) == met(SCENARIOS)


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> Family:
    """A family that nobody wrote a row for."""
    named = (Recipe("another", "Another"), Recipe("another-fused", "Another, fused"))
    family = replace(families()[0], name="another", recipes=named)
    both = {recipe.name: (family, recipe) for recipe in named}
    monkeypatch.setattr(by_rule, "families", lambda: (*families(), family))
    monkeypatch.setattr(by_rule, "recipes", lambda: recipes() | both)
    return family


@pytest.mark.usefixtures("another")
def test_a_family_needs_no_row_of_its_own() -> None:
    rows = [row for row in by_rule.by_rule(()) if row.recipe.startswith("another")]
    assert [row.id for row in rows] == [
        "another", "another-experts-whole", "another-fused", "another-fused-experts-whole",
    ]  # fmt: skip
    (picked,) = (row for row in by_rule.chosen((), rows) if row.recipe.startswith("another"))
    assert picked in rows


@pytest.mark.usefixtures("another")
def test_a_row_that_is_written_stands_for_the_one_of_the_rule() -> None:
    written = (Scenario("mine", "A sentence.", "another"),)
    rows = [row for row in by_rule.by_rule(written) if row.recipe == "another"]
    assert [row.id for row in rows] == ["another-experts-whole"]
    chosen = by_rule.chosen(written, rows)
    assert [row.id for row in chosen if row.recipe == "another"] == ["mine"]


def test_a_row_that_not_every_run_takes_stands_for_none(another: Family) -> None:
    written = (Scenario("mine", "A sentence.", "another", every_run=False),)
    chosen = by_rule.chosen(written, by_rule.by_rule(written))
    names = {recipe.name for recipe in another.recipes}
    assert [row.id == "mine" for row in chosen if row.recipe in names] == [False]


@pytest.mark.parametrize("more", [{"devices": 8}, {"tied": True}, {"recipe": "", "source": "/c"}])
def test_a_special_row_stands_for_none(more: dict[str, object]) -> None:
    row = replace(Scenario("mine", "A sentence.", "qwen3-moe"), **more)  # type: ignore[arg-type]
    assert by_rule.plain([row]) == ()
    assert "qwen3-moe" in [row.id for row in by_rule.by_rule([row])]


def test_what_a_recipe_needs_its_rows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(by_rule.OPTIONS, "qwen3-moe", {"stream_options": {"NAME": "1"}})
    rows = [row for row in by_rule.all_by_rule() if row.recipe == "qwen3-moe"]
    assert [row.stream_options for row in rows] == [{"NAME": "1"}] * 2
    assert by_rule.plain(rows) == tuple(rows)


#: A row of the rule that not every run takes.
LEFT = next(row.id for row in SCENARIOS if row not in CHOSEN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        (["scenarios"], [row.id for row in CHOSEN]),
        (["scenarios", "--families=all"], [row.id for row in SCENARIOS]),
        (["scenarios", "-k", LEFT], [LEFT]),
        ([f"scenarios/test_experts.py::test_experts[{LEFT}]"], [LEFT]),
    ],
    ids=["by default", "all", "by a word", "by its id"],
)
def test_what_a_run_takes(asked: list[str], rows: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, *NESTED_PYTEST, "--collect-only", "-q", *asked],
        cwd=ROOT,
        env=nested_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.findall(r"test_experts\[(.*)\]$", ran.stdout, re.M) == rows, ran.stdout
