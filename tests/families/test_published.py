"""Our synthetic checkpoints have the names and shapes that transformers gives the same config.json.

Writer and reader come from one description of ours, so that an error in it would cancel out.
transformers describes the models by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.families.registry import recipe_named
from tests.support.saved import tensors_of_classes

Shapes = dict[str, tuple[int, ...]]

#: Recipes of a family's decoder, whose experts transformers saves as they are published.
DECODERS = (
    "olmoe",
    "glm4-moe",
    "ernie4.5-moe",
    "qwen3-next",
)
SIZES = {
    f"{recipe} {sizes}": (recipe, sizes)
    for recipe in DECODERS
    for sizes in ("tiny", *(f"published:{name}" for name in recipe_named(recipe)[0].published))
}


def our_shapes(recipe: str, sizes: str) -> Shapes:
    family, written = recipe_named(recipe)
    specs = family.tensors(family.shape_named(sizes), written.mtp, decoder=written.decoder)
    return {spec.name: spec.shape for spec in specs}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shapes]:
    places: list[Path] = []
    for recipe, sizes in SIZES.values():
        family, _ = recipe_named(recipe)
        places.append(tmp_path_factory.mktemp("config"))
        config = family.write_config(family.shape_named(sizes), 0, False)
        (places[-1] / "config.json").write_text(json.dumps(config))
    return dict(zip(SIZES, tensors_of_classes(places), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", SIZES)
def test_names_and_shapes_are_those_of_transformers(theirs: dict[str, Shapes], case: str) -> None:
    assert our_shapes(*SIZES[case]) == theirs[case]


@pytest.mark.slow
def test_another_size_is_seen(theirs: dict[str, Shapes]) -> None:
    """The comparison can fail: an expert narrower by one, a head that is missing."""
    case = next(iter(SIZES))
    ours = our_shapes(*SIZES[case])
    narrow = next(name for name in ours if ".experts." in name)
    assert ours | {narrow: (ours[narrow][0] - 1, *ours[narrow][1:])} != theirs[case]
    assert {name: ours[name] for name in ours if name != "lm_head.weight"} != theirs[case]
