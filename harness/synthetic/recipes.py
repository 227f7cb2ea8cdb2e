"""What can be written: the recipes ``harness checkpoint`` takes by name.

A recipe is a family and the storage of its MTP layer, if it has one.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.base.errors import BadInput
from harness.families.family import QWEN3_5_MOE, QWEN3_VL_MOE, Family, Storage


@dataclass(frozen=True)
class Recipe:
    """A family, and how its MTP experts are stored; None leaves the MTP layer out."""

    name: str
    family: Family
    mtp: Storage | None
    summary: str


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("qwen3-vl-moe", QWEN3_VL_MOE, None, "Qwen3-VL-MoE, fused and transposed"),
        Recipe("qwen3.5-moe", QWEN3_5_MOE, None, "Qwen3.5-MoE decoder, fused, no MTP layer"),
        Recipe("qwen3.5-mtp", QWEN3_5_MOE, Storage.PER_EXPERT, "Qwen3.5, MTP per expert"),
        Recipe("qwen3.6-mtp", QWEN3_5_MOE, Storage.FUSED, "Qwen3.6-style, MTP fused"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        BadInput: there is none.
    """
    if name not in RECIPES:
        raise BadInput(
            f"unknown family {name!r}",
            where="FAMILY",
            expected="one of " + ", ".join(RECIPES),
            hint="harness checkpoint qwen3.5-mtp OUT",
        )
    return RECIPES[name]
