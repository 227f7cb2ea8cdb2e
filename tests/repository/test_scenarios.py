"""The catalogue of scenarios: what holds of its rows."""

from __future__ import annotations

from dataclasses import replace

from scenarios.catalogue import SCENARIOS


def test_ids_are_one_of_a_kind() -> None:
    assert len({row.id for row in SCENARIOS}) == len(SCENARIOS)


def test_no_two_rows_ask_for_the_same_load() -> None:
    """Every row has a process and a load of its own: what rows vary is what is loaded, and how."""
    loads = [repr(replace(row, id="", why="")) for row in SCENARIOS]
    assert sorted(set(loads)) == sorted(loads)
