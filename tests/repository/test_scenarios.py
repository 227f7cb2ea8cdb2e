"""The catalogue of scenarios: what holds of its rows."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.families.family import Family, Recipe
from harness.families.registry import families, recipes
from harness.load.target import Parallelism
from scenarios import by_rule
from scenarios.catalogue import CHOSEN, PLAIN, SCENARIOS
from scenarios.scenario import Scenario
from tests.support.nested import NESTED_PYTEST, nested_environment
from tests.support.pipelines import ROOT


def test_ids_are_one_of_a_kind() -> None:
    assert len({row.id for row in SCENARIOS}) == len(SCENARIOS)


def test_no_two_rows_ask_for_the_same_load() -> None:
    """Every row has a process and a load of its own: what rows vary is what is loaded, and how."""
    loads = [repr(replace(row, id="", why="")) for row in SCENARIOS]
    assert sorted(set(loads)) == sorted(loads)


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("spread", [None, Parallelism.EXPERT], ids=["tensor", "expert"])
def test_every_recipe_is_loaded_in_both_ways(name: str, spread: Parallelism | None) -> None:
    assert [(row.recipe, row.parallelism) for row in PLAIN].count((name, spread)) == 1


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_run_has_a_load_of_every_family(family: Family) -> None:
    names = {recipe.name for recipe in family.recipes}
    assert [row for row in CHOSEN if row.recipe in names and row in PLAIN]


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
    assert not [row for row in by_rule.chosen(written, rows) if row.recipe == "another"]


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
