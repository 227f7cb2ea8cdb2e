"""Rows that follow from a rule: every recipe of every family, each expert cut and each whole.

A family brings its rows by being there. A row of the catalogue that asks for the same load, under
an id and with a sentence of its own, stands in the place of the rule's.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.families.family import Recipe
from harness.families.known_families import families, recipes
from harness.load.target import Implementation, Parallelism

from .scenario import Scenario

#: By the end of its id: how a row spreads experts, and that in words.
_SPREADS: dict[str, tuple[Parallelism | None, str]] = {
    "": (None, "each expert cut over all devices"),
    "-experts-whole": (Parallelism.EXPERT, "each expert whole on one device (GMM_EP)"),
}
#: Has vLLM hold latent attention as it is stored; tpu-inference refuses what it does otherwise.
MLA_DISABLED = {"VLLM_MLA_DISABLE": "1"}
#: By recipe, what else its rows are made with: a recipe that upstream loads in no other way.
OPTIONS: dict[str, dict[str, Any]] = {
    "lfm2-moe": {"tied": True},  # as published
    "gemma4": {"tied": True},  # as published
    "llama4": {"impl": Implementation.VLLM},
    "deepseek-v3": {"stream_options": MLA_DISABLED},
    "deepseek-v3-mtp": {"stream_options": MLA_DISABLED},
}

#: Recipes whose rows are not in the catalogue: see :mod:`.implementations`.
APART = ("gemma4",)


def all_by_rule() -> tuple[Scenario, ...]:
    """Every row of the rule."""
    return of_recipes([name for name in recipes() if name not in APART])


def of_recipes(names: Sequence[str]) -> tuple[Scenario, ...]:
    """The rule's rows of these recipes."""
    return tuple(row for name in names for row in _rows(recipes()[name][1]))


def by_rule(written: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """The rows of the rule, but for those that ask for the load of one of ``written``."""
    loads = {_load(row) for row in written}
    return tuple(row for row in all_by_rule() if _load(row) not in loads)


def plain(rows: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """Those of ``rows`` that ask for a load of the rule, whatever they are called, in its order."""
    by_load = {_load(row): row for row in rows}
    return tuple(by_load[_load(row)] for row in all_by_rule() if _load(row) in by_load)


def chosen(written: Sequence[Scenario], rows: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """What every run takes: the rows of ``written`` that say so, and one of each family.

    A family that a row of ``written`` loads plainly has its own there. Which of the rule's ``rows``
    stands for another, one with a draft model if there is any, follows from its name alone, so that
    it stays when others come.
    """
    picked = [row for row in written if row.every_run]
    there = {row.recipe for row in plain(picked)}
    for family in families():
        drafting = [recipe for recipe in family.recipes if recipe.mtp]
        names = {recipe.name for recipe in drafting or family.recipes}
        own = [row for row in rows if row.recipe in names]
        if own and not {recipe.name for recipe in family.recipes} & there:
            picked.append(own[zlib.crc32(family.name.encode()) % len(own)])
    return tuple(picked)


def _rows(recipe: Recipe) -> Iterator[Scenario]:
    for end, (parallelism, words) in _SPREADS.items():
        yield Scenario(
            f"{recipe.name}{end}",
            f"A checkpoint of {recipe.name} ({recipe.summary}) is loaded, {words}.",
            recipe.name,
            parallelism=parallelism,
            **OPTIONS.get(recipe.name, {}),
        )


def _load(row: Scenario) -> str:
    """What a row asks for, whatever it is called."""
    return repr(replace(row, id="", why="", every_run=True))
