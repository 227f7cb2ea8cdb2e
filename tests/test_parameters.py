"""The table of parameters covers the families, and the documentation says what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkpoint import Checkpoint
from harness.coverage import unused_reason
from harness.family import Part
from harness.parameters import RULES, UPSTREAM, derived_for, in_checkpoint, rule_for
from tests.parameter_packing import PackedParameters
from tests.write_parameter_table import PAGE, page


def test_the_documentation_is_written_from_the_table() -> None:
    assert PAGE.read_text() == page(PAGE.read_text())


def test_every_rule_says_where_upstream_does_it() -> None:
    for rule in RULES:
        assert set(rule.upstream.split(", ")) <= set(UPSTREAM)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [("qwen3-vl-moe", Part.DECODER), ("qwen3.5-moe", Part.DECODER), ("qwen3.6-mtp", Part.MTP)],
)
def test_every_parameter_has_one_rule_or_a_derivation(
    tiny_checkpoints: dict[str, Path], recipe: str, part: Part
) -> None:
    checkpoint = Checkpoint(tiny_checkpoints[recipe])
    held = set()
    for device_name in PackedParameters(checkpoint, part).packed:
        name = in_checkpoint(part, device_name)
        found = rule_for(name, checkpoint.family.name)
        assert (found is None) != (derived_for(name) is None)
        held |= set(found[1]) if found else set()
    rest = {n for n in checkpoint.entries if ".experts." not in n} - held
    assert all(unused_reason(part, name, tied=False) for name in rest)


def test_every_rule_is_used(tiny_checkpoints: dict[str, Path]) -> None:
    used = set()
    for recipe, part in (
        ("qwen3-vl-moe", Part.DECODER),
        ("qwen3.5-moe", Part.DECODER),
        ("qwen3.6-mtp", Part.MTP),
    ):
        checkpoint = Checkpoint(tiny_checkpoints[recipe])
        for name in PackedParameters(checkpoint, part).packed:
            if found := rule_for(in_checkpoint(part, name), checkpoint.family.name):
                used.add(found[0])
    assert used == set(RULES)


def test_an_unknown_name_has_neither() -> None:
    name = in_checkpoint(Part.DECODER, "vllm_model.language_model.model.layers.0.new.weight")
    assert name == "model.language_model.layers.0.new.weight"
    assert rule_for(name, "qwen3-vl-moe") is None
    assert derived_for(name) is None
