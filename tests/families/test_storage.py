"""Every storage holds every element of every expert once, and says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.base.errors import BadInput
from harness.families.family import ExpertNaming, MoeLayers, Part, Projection, Storage
from harness.families.known_families import families
from harness.families.storage import W1_W3_W2, ExpertSizes

E, D, F = 3, 5, 4
SIZES = ExpertSizes(E, D, F)
PREFIX = "model.layers.{layer}.mlp.experts"


def naming(storage: Storage, *names: str) -> ExpertNaming:
    return ExpertNaming(Part.DECODER, PREFIX, storage, names)


@pytest.mark.parametrize("storage", Storage)
def test_every_element_is_of_one_matrix(storage: Storage) -> None:
    of = naming(storage)
    held = {t.name: np.zeros(t.shape, int) for t in of.tensors(1, SIZES)}
    for expert in range(E):
        for projection in Projection:
            name, at, transposed = of.matrix(1, expert, projection, F)
            matrix = held[name][at]
            matrix += 1
            shape = (D, F) if projection is Projection.DOWN else (F, D)
            assert (matrix.T if transposed else matrix).shape == shape
    assert all((counts == 1).all() for counts in held.values())


@pytest.mark.parametrize(
    ("storage", "names", "tensor", "at"),
    [
        (Storage.FUSED, (), "gate_up_proj", (2, slice(4, 8))),
        (Storage.FUSED_TRANSPOSED, (), "gate_up_proj", (2, slice(None), slice(4, 8))),
        (Storage.INTERLEAVED, (), "gate_up_proj", (2, slice(None), slice(1, None, 2))),
        (Storage.STACKED, W1_W3_W2, "w3", (2,)),
        (Storage.PER_EXPERT, (), "2.up_proj.weight", ()),
        (Storage.PER_EXPERT, W1_W3_W2, "2.w3.weight", ()),
        (Storage.FUSED, ("input_linear.weight", "output_linear.weight"), "input_linear.weight",
         (2, slice(4, 8))),
    ],
)  # fmt: skip
def test_the_place_of_an_up_projection(
    storage: Storage, names: tuple[str, ...], tensor: str, at: Any
) -> None:
    place = naming(storage, *names).matrix(7, 2, Projection.UP, F)
    assert (place.tensor, place.at) == (f"model.layers.7.mlp.experts.{tensor}", at)


@pytest.mark.parametrize("storage", Storage)
def test_layers_are_found_by_the_names_alone(storage: Storage) -> None:
    of = naming(storage)
    assert {of.layer_of(t.name) for layer in (0, 12) for t in of.tensors(layer, SIZES)} == {0, 12}
    assert of.layer_of("model.layers.3.mlp.experts.gate_up_proj_bias") is None
    other = Storage.PER_EXPERT if storage is not Storage.PER_EXPERT else Storage.FUSED
    assert {naming(other).layer_of(t.name) for t in of.tensors(1, SIZES)} == {None}


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_a_naming_names_what_its_storage_has(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="fused has 2 names"):
        naming(Storage.FUSED, *names)


@pytest.mark.parametrize(
    ("keys", "text", "layers"),
    [
        (MoeLayers(), {"first_k_dense_replace": 1}, (0, 1, 2, 3, 4, 5)),
        (MoeLayers(dense_first="k"), {"k": 2}, (2, 3, 4, 5)),
        (MoeLayers(dense_first="k"), {}, (0, 1, 2, 3, 4, 5)),
        (MoeLayers(step="n"), {"n": 2}, (1, 3, 5)),
        (MoeLayers(step_from_zero="n"), {"n": 2}, (0, 2, 4)),
        (MoeLayers(dense_first="k", step_from_zero="n"), {"k": 1, "n": 2}, (2, 4)),
        (MoeLayers(dense="off"), {"off": [0, 5]}, (1, 2, 3, 4)),
        (MoeLayers(sparse="on", step="n"), {"on": [4, 1], "n": 2}, (1, 4)),
        (MoeLayers(sparse="on", step="n"), {"on": None, "n": 2}, (1, 3, 5)),
        (MoeLayers(dense_first="k", last="end"), {"k": 1, "end": -1}, (1, 2, 3, 4, 5)),
        (MoeLayers(dense_first="k", last="end"), {"k": 1, "end": 3}, (1, 2, 3)),
    ],
)
def test_the_layers_with_experts(
    keys: MoeLayers, text: dict[str, Any], layers: tuple[int, ...]
) -> None:
    assert keys.of(text, 6, "config.json") == layers


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (MoeLayers(dense_first="k"), {"k": "1"}),
        (MoeLayers(dense_first="k"), {"k": -1}),
        (MoeLayers(step="k"), {"k": 0}),
        (MoeLayers(dense="k"), {"k": [0, "1"]}),
        (MoeLayers(sparse="k"), {"k": 3}),
        (MoeLayers(sparse="k"), {"k": [True]}),
    ],
)
def test_keys_that_say_no_layers(keys: MoeLayers, text: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"k is .*config\.json"):
        keys.of(text, 6, "config.json")


def test_synonyms_of_a_size_must_agree() -> None:
    family = families()[0]
    assert family.size_key({"num_local_experts": 8}, 0) == "num_local_experts"
    assert family.size_key({"num_experts": 8, "num_local_experts": 8}, 0) == "num_experts"
    assert family.size_key({}, 0) == "num_experts"
    with pytest.raises(BadInput, match="num_experts 8 and num_local_experts 9"):
        family.size_key({"num_experts": 8, "num_local_experts": 9}, 0)
