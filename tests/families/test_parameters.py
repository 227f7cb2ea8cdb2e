"""The table of parameters covers the families, and the documentation says what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.families.blocks import UPSTREAM
from harness.families.family import Part
from harness.families.known_families import families, family_named
from harness.families.model_checkpoint import ModelCheckpoint
from harness.families.parameters_page import BEGIN, END, parameter_table, upstream_list
from tests.support.parameter_packing import PackedParameters

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"


def test_the_documentation_is_written_from_the_table(request: pytest.FixtureRequest) -> None:
    """The table of ``docs/parameters.md``; ``--write-docs`` renews it."""
    written = PAGE.read_text()
    before, rest = written.split(BEGIN)
    page = f"{before}{BEGIN}\n{parameter_table()}\n{upstream_list()}\n{END}{rest.split(END)[1]}"
    if request.config.getoption("--write-docs"):
        PAGE.write_text(page)
    else:
        assert written == page, "run with --write-docs"


def test_every_rule_says_where_upstream_does_it() -> None:
    for rule in (rule for family in families() for rule in family.rules):
        assert set(rule.row.upstream.split(", ")) <= set(UPSTREAM)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [("qwen3-vl-moe", Part.DECODER), ("qwen3.5-moe", Part.DECODER), ("qwen3.6-mtp", Part.MTP)],
)
def test_every_parameter_has_one_rule_or_a_derivation(
    tiny_checkpoints: dict[str, Path], recipe: str, part: Part
) -> None:
    checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
    family = checkpoint.family
    held = set()
    for device_name in PackedParameters(checkpoint, part).packed:
        name = family.in_checkpoint(part, device_name)
        found = family.rule_for(name)
        assert (found is None) != (family.derived_for(name) is None)
        held |= set(found[1]) if found else set()
    rest = {n for n in checkpoint.entries if not family.is_of_experts(n)} - held
    assert all(family.unused_reason(part, name, tied=False) for name in rest)


def test_every_rule_is_used(tiny_checkpoints: dict[str, Path]) -> None:
    used, there = set(), set()
    for recipe, part in (
        ("qwen3-vl-moe", Part.DECODER),
        ("qwen3.5-moe", Part.DECODER),
        ("qwen3.6-mtp", Part.MTP),
    ):
        checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
        family = checkpoint.family
        there |= {rule.row for rule in family.rules}
        for name in PackedParameters(checkpoint, part).packed:
            if found := family.rule_for(family.in_checkpoint(part, name)):
                used.add(found[0])
    assert used == there


def test_an_unknown_name_has_neither() -> None:
    family = family_named("qwen3-vl-moe")
    name = family.in_checkpoint(Part.DECODER, "vllm_model.language_model.model.layers.0.new.weight")
    assert name == "model.language_model.layers.0.new.weight"
    assert family.rule_for(name) is None
    assert family.derived_for(name) is None
