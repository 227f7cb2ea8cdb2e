"""Quantised releases: every format, each expert cut and each whole, quantised anew and kept.

Rows follow from the formats there are (:mod:`harness.families.formats`): a format brings its rows
by being there. FP8 in blocks has more, in :mod:`.on_meshes`.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.families.formats.format import UNCHANGED
from harness.families.formats.known_formats import formats
from harness.load.target import Parallelism

from .scenario import Scenario

#: By the end of an id: how experts are spread, on which mesh, and that in words.
_SPREADS: dict[str, tuple[Parallelism, str, str]] = {
    "": (Parallelism.TENSOR, "", "each expert cut over four devices"),
    "-experts-whole": (Parallelism.EXPERT, "", "each expert whole on one of four devices"),
    "-expert-2-model-2": (Parallelism.TENSOR, "expert=2,model=2", "onto a mesh of all axes"),
}


def recipe_of(name: str) -> str:
    """What a format's rows are written with: gpt-oss where experts are fused."""
    return "gpt-oss" if formats()[name].fused else "qwen3-moe"


def _rows() -> Iterator[Scenario]:
    for name, each in formats().items():
        for end, (parallelism, mesh, words) in _SPREADS.items():
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
