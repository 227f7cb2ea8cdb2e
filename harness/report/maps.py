"""Maps: the state of every matrix of every expert of a part, in a form that stays small.

A row of a map is one layer and one projection, run-length encoded over the experts: ``3e1d4e`` is
three equal, one that differs, four equal. 94 layers x 128 experts x 3 take some 3 kB while equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain, groupby, pairwise
from typing import NamedTuple

import msgspec

from harness.base.number_runs import numbers_of, runs_text
from harness.compare.difference import ArrayExtra, ArrayMissing, Difference, ShardMisplaced
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection

#: Causes that say a slice never got its bytes.
NEVER_WRITTEN = frozenset({
    Cause.ARGUMENT_CONTRACT, Cause.NOT_STREAMED, Cause.NOT_DELIVERED, Cause.DELIVERED_LATE,
    Cause.UNWRITTEN,
})  # fmt: skip

#: The matrices of an array, and of its scales (``_scale``, ``_scale_inv``).
_PROJECTIONS_OF = {
    "w13_weight": (Projection.GATE, Projection.UP),
    "w2_weight": (Projection.DOWN,),
}
_RUN = re.compile(r"(\d+)([a-z])")


class State(StrEnum):
    """What is known of one matrix of one expert; values are the letters of the encoding."""

    EQUAL = "e"
    DIFFERS = "d"
    MISSING = "m"
    MISPLACED = "p"
    NOT_COMPARED = "n"

    @property
    def words(self) -> str:
        """As a reader calls it."""
        return self.name.lower().replace("_", " ")


class PartMap(msgspec.Struct, kw_only=True):
    """The map of one part.

    Attributes:
        part: decoder or mtp.
        layers: numbers of the layers, ascending: the rows.
        experts: how many each layer has: the columns.
        states: by projection, one encoded row for each layer.
    """

    part: Part
    layers: list[int]
    experts: int
    states: dict[Projection, list[str]]

    def rows(self) -> Iterator[tuple[Projection, int, list[State]]]:
        """Every projection, layer, and the states of its experts."""
        for projection, encoded in self.states.items():
            for layer, row in zip(self.layers, encoded, strict=True):
                yield projection, layer, decoded(row)

    def count(self, state: State) -> int:
        """How many matrices are in ``state``."""
        runs = (run for rows in self.states.values() for row in rows for run in _RUN.findall(row))
        return sum(int(length) for length, letter in runs if letter == state)


def encoded(states: Iterable[State]) -> str:
    """Run lengths and letters: ``3e1d4e``."""
    return "".join(f"{len(list(run))}{state}" for state, run in groupby(states))


def decoded(row: str) -> list[State]:
    """The states of an encoded row."""
    return list(chain.from_iterable([State(x)] * int(n) for n, x in _RUN.findall(row)))


def map_of(
    part: Part,
    layers: Sequence[int],
    experts: int,
    compared: Callable[[int], Collection[int]] = lambda layer: (),
    differences: Sequence[Difference] = (),
    diagnoses: Sequence[Diagnosis] = (),
) -> PartMap:
    """The map of one part; nothing compared unless ``compared`` says so.

    Args:
        part: decoder or mtp.
        layers: the reference's layers.
        experts: of each layer.
        compared: the experts of a layer that were to be compared.
        differences: the part's own, in order.
        diagnoses: theirs, which number them from 0.
    """
    cells = {(layer, p): _before(compared(layer), experts) for p in Projection for layer in layers}
    lost = {n for d in diagnoses if d.cause in NEVER_WRITTEN for n in numbers_of(d.members)}
    for number, difference in enumerate(differences):
        state = State.MISSING if number in lost else _state(difference)
        for projection in _projections(difference):
            row = cells.get((difference.layer or 0, projection), [])
            _mark(row, difference.expert, state)
    states = {p: [encoded(cells[layer, p]) for layer in layers] for p in Projection}
    return PartMap(part=part, layers=list(layers), experts=experts, states=states)


def with_missing(part_map: PartMap, experts: Mapping[int, Collection[int]]) -> PartMap:
    """The map of a load that ended early: the ``experts`` of each layer never arrived."""
    states: dict[Projection, list[str]] = {projection: [] for projection in part_map.states}
    for projection, layer, row in part_map.rows():
        lost = set(experts.get(layer, ()))
        cells = (State.MISSING if e in lost else state for e, state in enumerate(row))
        states[projection].append(encoded(cells))
    return msgspec.structs.replace(part_map, states=states)


def _state(difference: Difference) -> State:
    match difference:
        case ArrayMissing():
            return State.MISSING
        case ShardMisplaced():
            return State.MISPLACED
        case _:
            return State.DIFFERS


#: A state hides those before it: bits that differ weigh more than their place.
_WEIGHT = [State.EQUAL, State.NOT_COMPARED, State.MISPLACED, State.DIFFERS, State.MISSING]


def _before(compared: Collection[int], experts: int) -> list[State]:
    chosen = set(compared)
    return [State.EQUAL if e in chosen else State.NOT_COMPARED for e in range(experts)]


def _mark(row: list[State], expert: int | None, state: State) -> None:
    for place in range(len(row)) if expert is None else (expert,):
        row[place] = max(row[place], state, key=_WEIGHT.index)


def _projections(difference: Difference) -> Sequence[Projection]:
    if difference.layer is None or isinstance(difference, ArrayExtra):
        return ()
    if difference.projection is not None:
        return (difference.projection,)
    weight = difference.parameter.rsplit(".", 1)[-1].removesuffix("_inv").removesuffix("_scale")
    return _PROJECTIONS_OF.get(weight, ())


def merged_map(maps: Sequence[PartMap], *, every_host: bool) -> PartMap:
    """The map of a slice from those of its hosts.

    Args:
        maps: of one part, one of every host.
        every_host: an expert one host did not compare is not compared, unless it differs.
    """
    weights = _WEIGHT if every_host else [State.NOT_COMPARED, *_WEIGHT]

    def row(projection: Projection, number: int) -> str:
        hosts = [decoded(part_map.states[projection][number]) for part_map in maps]
        cells = zip(*hosts, strict=True)
        return encoded(max(cell, key=weights.index) for cell in cells)

    first = maps[0]
    states = {p: [row(p, n) for n in range(len(first.layers))] for p in first.states}
    return PartMap(part=first.part, layers=first.layers, experts=first.experts, states=states)


class Region(NamedTuple):
    """Layers of a projection with the same experts in one state; the first layer and expert."""

    projection: Projection
    layers: str
    experts: str
    layer: int
    expert: int

    def __str__(self) -> str:
        return f"{self.projection}: {self.layers}, {self.experts}"


def regions(part_map: PartMap, state: State) -> list[Region]:
    """Where a map has ``state``, in words: what a reader who does not see the map is told.

    Layers with the same experts are told together: ``gate_proj: layers 30-93, experts 48-127``.
    """
    found: dict[tuple[Projection, str], list[tuple[int, int]]] = {}
    for projection, layer, row in part_map.rows():
        if experts := [e for e, s in enumerate(row) if s is state]:
            key = projection, pattern(experts, len(row))
            found.setdefault(key, []).append((layer, experts[0]))
    return [
        Region(projection, _layers_text([layer for layer, _ in where]), who, *where[0])
        for (projection, who), where in found.items()
    ]


def _layers_text(layers: Sequence[int]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {runs_text(layers)}"


def pattern(experts: Sequence[int], total: int) -> str:
    """Experts in words: all, a range, or those at regular steps."""
    if len(experts) == total:
        return f"all {total} experts"
    steps = {b - a for a, b in pairwise(experts)}
    if len(experts) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        return f"every {_ordinal(step)} expert from {experts[0]} to {experts[-1]}"
    return f"expert{'s' if len(experts) > 1 else ''} {runs_text(experts)}"


def _ordinal(number: int) -> str:
    last = "" if number // 10 % 10 == 1 else str(number % 10)
    ending = {"1": "st", "2": "nd", "3": "rd"}.get(last, "th")
    return f"{number}{ending}"
