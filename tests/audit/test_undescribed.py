"""The audit's rows and the families are one table: what a family describes has no row."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.audit.run import described, sources
from harness.audit.undescribed import UNDESCRIBED, Undescribed
from harness.families.family import Family
from harness.families.known_families import bring, families, forget

OUTSIDE = Path(__file__).parents[1] / "support" / "outside_family.py"


@pytest.mark.parametrize("row", UNDESCRIBED, ids=lambda row: row.id)
def test_no_family_describes_a_row(row: Undescribed) -> None:
    family = described(row)
    assert family is None, f"delete the row: harness/families/ has {family.name}"


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_the_row_of_a_family_would_be_seen(family: Family) -> None:
    model_type = family.write_config(family.tiny, 0, False)["model_type"]
    assert described(Undescribed(family.architecture, "other", {})) is family
    assert described(Undescribed("Other", model_type, {})) is family


def test_a_family_that_a_user_brings_takes_the_place_of_its_row() -> None:
    assert "Qwen2MoeForCausalLM" in sources()
    try:
        bring([OUTSIDE])
        rows = [name for name in sources() if name.startswith("Qwen2MoeForCausalLM")]
        assert rows == ["Qwen2MoeForCausalLM qwen2-moe"]
    finally:
        forget()
    assert "Qwen2MoeForCausalLM" in sources()
