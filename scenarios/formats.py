"""Quantised releases: every format, each expert cut and each whole, quantised anew and kept.

Rows follow from the formats there are (:mod:`harness.families.formats`): a format brings its rows
by being there. FP8 in blocks has more, in :mod:`.on_meshes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harness.families.formats.format import UNCHANGED
from harness.families.formats.known_formats import formats
from harness.load.target import Parallelism

from .scenario import Scenario


class Spread(NamedTuple):
    """How experts are spread, on which mesh, that in words, and the head of a column."""

    parallelism: Parallelism
    mesh: str
    words: str
    column: str


#: By the end of an id.
SPREADS = {
    "": Spread(Parallelism.TENSOR, "", "each expert cut over four devices", "cut"),
    "-experts-whole": Spread(
        Parallelism.EXPERT, "", "each expert whole on one of four devices", "whole"
    ),
    "-expert-2-model-2": Spread(
        Parallelism.TENSOR, "expert=2,model=2", "onto a mesh of all axes", "mesh of all axes"
    ),
}


def recipe_of(name: str) -> str:
    """What a format's rows are written with: gpt-oss where experts are fused."""
    return "gpt-oss" if formats()[name].fused else "qwen3-moe"


def _rows() -> Iterator[Scenario]:
    for name, each in formats().items():
        for end, (parallelism, mesh, words, _) in SPREADS.items():
            for option in ("", "-unchanged") if each.can_be_kept else ("",):
                yield Scenario(
                    f"{name}{option}{end}",
                    f"{each.summary}: loaded, {words}"
                    + (f", with {UNCHANGED}." if option else "."),
                    recipe_of(name),
                    quantised=name,
                    shapes="tiny:blocks",
                    parallelism=parallelism,
                    devices=None if mesh else 4,
                    mesh=mesh,
                    stream_options={UNCHANGED: "1"} if option else {},
                    every_run=False,
                )


FORMAT_ROWS = tuple(_rows())
