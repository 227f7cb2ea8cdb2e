"""The tensors of our synthetic checkpoints are those of transformers' own classes.

Writer and reader come from one description, so an error in it would cancel. Transformers makes the
model of a published configuration, the very ``config.json`` that is written with it, on the meta
device; what it would save has the names and shapes that the family has, but for the orientation of
fused experts, which transformers 5 has changed for some.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.families.family import Family, Part, Storage
from harness.families.known_families import families, family_named
from harness.families.sizes import ModelShape
from harness.families.storage import ExpertNaming
from tests.support.saved import tensors_of_class

pytestmark = pytest.mark.slow

#: How transformers 5 stores the experts of a decoder, where publishers do otherwise.
SAVED_AS = {"qwen3-vl-moe": Storage.FUSED, "qwen3.5-moe": Storage.PER_EXPERT}


def published(family: Family) -> ModelShape:
    """A published model's sizes, with as many layers as hold every kind of layer."""
    shape = next(iter(family.published.values()))
    return shape if shape.attention_layers else replace(shape, layers=min(shape.layers, 4))


def of_class(family: Family, shape: ModelShape, at: Path) -> dict[str, tuple[int, ...]]:
    (at / "config.json").write_text(json.dumps(family.write_config(shape, 0, False)))
    return tensors_of_class(at)


def of_family(family: Family, shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The tensors of a decoder, its experts as transformers stores them."""
    own = next(naming for naming in family.namings if naming.part is Part.DECODER)
    if storage := SAVED_AS.get(family.name):
        family = replace(family, namings=(ExpertNaming(Part.DECODER, own.prefix, storage),))
    return {tensor.name: tensor.shape for tensor in family.tensors(shape, None)}


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_names_and_shapes_are_those_of_the_published_class(family: Family, tmp_path: Path) -> None:
    shape = published(family)
    assert of_family(family, shape) == of_class(family, shape, tmp_path)


def test_another_name_or_shape_is_told(tmp_path: Path) -> None:
    family = family_named("qwen3-moe")
    shape = replace(published(family), layers=1)
    theirs = of_class(family, shape, tmp_path)
    assert of_family(family, shape) == theirs
    wrong = ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.FUSED)
    assert of_family(replace(family, namings=(wrong,)), shape) != theirs
    assert of_family(family, replace(shape, kv_heads=8)) != theirs
