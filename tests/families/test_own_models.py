"""A family in tpu-inference's own JAX models follows from what is said of vLLM's."""

from __future__ import annotations

import pytest

from harness.base.errors import BadInput
from harness.families.blocks import UPSTREAM
from harness.families.family import Family, Part
from harness.families.known_families import families

DESCRIBED = [family for family in families() if family.own_names is not None]
LAYER = "model.language_model.layers.1"


def gemma() -> Family:
    (family,) = (family for family in DESCRIBED if family.name == "gemma4")
    return family.served_by_jax()


@pytest.mark.parametrize("family", DESCRIBED, ids=lambda family: family.name)
def test_every_tensor_of_vllms_parameters_is_in_its_own(family: Family) -> None:
    stored = {source for rule in family.rules for source in rule.sources}
    assert {source for rule in family.served_by_jax().rules for source in rule.sources} == stored


@pytest.mark.parametrize("family", DESCRIBED, ids=lambda family: family.name)
def test_every_row_says_where_upstream_does_it(family: Family) -> None:
    for rule in family.served_by_jax().rules:
        assert set(rule.row.upstream.split(", ")) <= set(UPSTREAM)


@pytest.mark.parametrize(
    "family", [f for f in families() if f.own_names is None], ids=lambda family: family.name
)
def test_a_family_that_is_not_described_there_is_refused(family: Family) -> None:
    with pytest.raises(BadInput, match="no family describes: nothing can be compared") as raised:
        family.served_by_jax()
    assert raised.value.hint == "--impl vllm"


@pytest.mark.parametrize(
    ("parameter", "sources"),
    [
        (f"{LAYER}.self_attn.k_proj.weight", [f"{LAYER}.self_attn.k_proj.weight"]),
        (
            f"{LAYER}.mlp.gate_up_proj.weight",
            [f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"],
        ),
        (
            "model.vision_tower.layers.0.self_attn.q_proj.weight",
            ["model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"],
        ),
        (f"{LAYER}.router.proj.weight", [f"{LAYER}.router.proj.weight"]),
    ],
)
def test_a_parameter_is_made_of_the_tensors_it_is_called_as(
    parameter: str, sources: list[str]
) -> None:
    family = gemma()
    found = family.rule_for(family.in_checkpoint(Part.DECODER, parameter))
    assert found is not None
    assert list(found[1]) == sources


def test_of_several_rows_the_one_whose_tensors_are_there_is_taken() -> None:
    (family,) = (family for family in DESCRIBED if family.name == "gemma4")
    name = f"{LAYER}.self_attn.qkv_proj.weight"
    q, k, v = (f"{LAYER}.self_attn.{letter}_proj.weight" for letter in "qkv")
    for there, sources in (({q, k, v}, (q, k, v)), ({q, k}, (q, k, k)), ({q}, (q, k, v))):
        found = family.rule_for(name, there)
        assert found is not None
        assert found[1] == sources
