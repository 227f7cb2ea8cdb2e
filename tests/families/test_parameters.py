"""The table of parameters covers the families, and the documentation says what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkpoint.checkpoint import Checkpoint
from harness.families.family import Part
from harness.families.parameter_table import BEGIN, END, parameter_table, upstream_list
from harness.families.parameters import RULES, UPSTREAM, derived_for, in_checkpoint, rule_for
from harness.verification.coverage import unused_reason
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
