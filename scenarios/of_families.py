"""Every further family, its experts cut over the devices and whole on each: two rows by rule."""

from __future__ import annotations

from collections.abc import Iterator

from harness.load.target import Parallelism

from .scenario import Scenario

#: By recipe, what is special about how the family's experts are stored.
_FAMILIES = {
    "mixtral": "Experts called w1, w3 and w2 are loaded",
    "granite-moe": "Fused experts that the model itself cuts into single ones are loaded",
    "llama4": "Fused and transposed experts of every other layer are loaded",
}


def _rows() -> Iterator[Scenario]:
    for recipe, what in _FAMILIES.items():
        yield Scenario(recipe, f"{what}, each cut over the devices.", recipe)
        yield Scenario(
            f"{recipe}-experts-whole", f"{what}, each whole on one device (GMM_EP).", recipe,
            parallelism=Parallelism.EXPERT,
        )  # fmt: skip


OF_FAMILIES: tuple[Scenario, ...] = tuple(_rows())
