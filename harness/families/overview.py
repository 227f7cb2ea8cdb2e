"""What is known of all families at a glance: ``harness families`` and ``docs/families.md``.

What a family is says its own file. On which releases it loads says ``loads.json``, beside this
module: what runs of the scenarios came to, written by ``ci/runs_page.py`` and by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path

import msgspec

from harness.families.family import Family, Part, Recipe
from harness.families.registry import families, recipes

LOADS = Path(__file__).with_name("loads.json")
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->\n"


class Outcome(StrEnum):
    """What a load of a recipe came to.

    - ``equal``: every expert and every other parameter is equal, bit for bit.
    - ``known issue``: it failed, or left differences, as a known issue of upstream says.
    - ``refused``: upstream does not do this, and says so.
    - ``failed``: it failed in a way that no known issue describes.
    """

    EQUAL = "equal"
    KNOWN = "known issue"
    REFUSED = "refused"
    FAILED = "failed"


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One load: its outcome, and the ids of the known issues that describe it."""

    outcome: Outcome
    issues: tuple[str, ...] = ()


class Releases(msgspec.Struct, frozen=True, rename="kebab"):
    """What a run was made on: the versions of the stack, and the target."""

    vllm: str
    tpu_inference: str
    target: str


class Loaded(msgspec.Struct, frozen=True):
    """One recipe, its experts spread in one way (``tensor``, ``expert``), by run."""

    recipe: str
    parallelism: str
    scenario: str
    results: dict[str, Result]


class Loads(msgspec.Struct, frozen=True):
    """The content of ``loads.json``: runs by name, such as ``0.26``, and what they came to."""

    runs: dict[str, Releases]
    loads: tuple[Loaded, ...]


class Described(msgspec.Struct, frozen=True, rename="kebab"):
    """One family as ``harness families --json`` tells of it.

    Attributes:
        name: how reports call it.
        architectures: as ``config.json`` calls it.
        examples: hub ids of published checkpoints.
        parts: of the stack that it has.
        storages: of experts, by part, the published one first.
        recipes: what ``harness checkpoint`` writes of it, in words.
        loads: what was run of it; nothing for a family that another package or file brings.
    """

    name: str
    architectures: tuple[str, ...]
    examples: tuple[str, ...]
    parts: tuple[Part, ...]
    storages: dict[Part, tuple[str, ...]]
    recipes: dict[str, str]
    loads: tuple[Loaded, ...]


class Overview(msgspec.Struct, frozen=True):
    """All families, and the releases that their loads were recorded on."""

    runs: dict[str, Releases]
    families: tuple[Described, ...]


@cache
def recorded() -> Loads:
    """What runs came to, as it is recorded in this package."""
    return msgspec.json.decode(LOADS.read_bytes(), type=Loads)


def overview() -> Overview:
    """All families that are known here, those of other packages and files too."""
    known = recorded()
    return Overview(known.runs, tuple(_described(family, known) for family in families()))


def _described(family: Family, known: Loads) -> Described:
    storages: dict[Part, tuple[str, ...]] = {}
    for naming in family.namings:
        storages[naming.part] = (*storages.get(naming.part, ()), str(naming.storage))
    return Described(
        family.name, (family.architecture,), family.examples, tuple(storages), storages,
        {recipe.name: recipe.summary for recipe in family.recipes},
        tuple(load for load in known.loads if _is_of(load, family)),
    )  # fmt: skip


def _is_of(load: Loaded, family: Family) -> bool:
    return any(recipe.name == load.recipe for recipe in family.recipes)


def overview_text(known: Overview) -> str:
    """Every family in a paragraph of lines."""
    return "\n\n".join("\n".join(_paragraph(family)) for family in known.families) + "\n"


def _paragraph(family: Described) -> Iterator[str]:
    yield family.name
    yield from _lines("architecture", [", ".join(family.architectures)])
    yield from _lines("published", family.examples)
    yield from _lines("storage", [f"{p}: {', '.join(s)}" for p, s in family.storages.items()])
    yield from _lines("recipes", [f"{n}: {words}" for n, words in family.recipes.items()])
    loads = [
        f"{load.recipe}, {load.parallelism} parallel: {words}"
        for load in family.loads
        for words in _in_words(load.results)
    ]
    yield from _lines("loads", loads or ["no run of it is recorded"])


def _lines(label: str, values: Sequence[str]) -> Iterator[str]:
    for number, value in enumerate(values):
        yield f"  {label if not number else '':<14}{value}"


def _in_words(results: Mapping[str, Result]) -> Iterator[str]:
    """``equal on 0.26, torch-xla``, and the like: one for each thing that runs came to."""
    by_result: dict[Result, list[str]] = {}
    for run, result in results.items():
        by_result.setdefault(result, []).append(run)
    for result, runs in by_result.items():
        issues = f" ({', '.join(result.issues)})" if result.issues else ""
        yield f"{result.outcome} on {', '.join(runs)}{issues}"


def families_table(known: Loads) -> str:
    """The tables of ``docs/families.md``: what each family is, and what its loads came to."""
    return "\n".join([*_what_they_are(), "", *_what_they_came_to(known)]) + "\n"


def _what_they_are() -> Iterator[str]:
    yield from _head("family", "architecture", "published as", "experts are stored")
    for family in families():
        told = _described(family, Loads({}, ()))
        storages = [f"{part}: {', '.join(kinds)}" for part, kinds in told.storages.items()]
        yield _row(
            f"`{family.name}`", ", ".join(f"`{name}`" for name in told.architectures),
            "<br>".join(family.examples), "<br>".join(storages),
        )  # fmt: skip


def _what_they_came_to(known: Loads) -> Iterator[str]:
    """A row a recipe and spread, a column a run."""
    yield from _head("family", "recipe", "parallel", *known.runs)
    for load in known.loads:
        family, recipe = recipes()[load.recipe]
        cells = [_cell(load.results.get(run)) for run in known.runs]
        yield _row(f"`{family.name}`", _told(recipe), load.parallelism, *cells)


def _told(recipe: Recipe) -> str:
    return f"`{recipe.name}`: {recipe.summary}"


def _cell(result: Result | None) -> str:
    if result is None:
        return "not run"
    links = ", ".join(f"[{name}](known-issues.md#{name})" for name in result.issues)
    outcome = f"**{result.outcome}**" if result.outcome is Outcome.FAILED else str(result.outcome)
    return f"{outcome}: {links}" if links else outcome


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
