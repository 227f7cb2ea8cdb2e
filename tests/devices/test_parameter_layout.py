"""What config.json says of layouts, and what rules say of the way to the device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import BadInput
from harness.devices.parameter_layout import (
    Packing,
    ParameterLayout,
    Sizes,
    Source,
    parameter_layout,
    sizes_of,
)
from harness.families.blocks import SHORT_CONVOLUTION, Row
from harness.families.registry import families
from harness.verification.verify import verify
from tests.support.parameter_packing import line

TEXT = {"num_attention_heads": 8, "head_dim": 32, "num_key_value_heads": 2}


def test_sizes_are_of_the_text_model() -> None:
    config = {"text_config": TEXT, "vision_config": {"num_heads": 4}}
    assert sizes_of(TEXT, config) == Sizes(heads=8, head_dim=32, kv_heads=2, vision_heads=4)
    linear = {"linear_num_key_heads": 3, "linear_key_head_dim": 16}
    assert sizes_of(TEXT | linear, {}).linear_keys == 48


def test_heads_share_the_hidden_size_where_nobody_says_their_width() -> None:
    """As in OLMoE and LFM2; where there is no number of key and value heads they are as many."""
    assert sizes_of({"num_attention_heads": 8, "hidden_size": 128}, {}) == Sizes(8, 16, 8, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head_dim": ...}, "hidden_size is absent"),
        ({"num_attention_heads": ...}, "num_attention_heads is absent"),
        ({"num_key_value_heads": None}, "num_key_value_heads is None"),
        ({"head_dim": "32"}, "head_dim is '32'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"linear_num_key_heads": 3}, "linear_key_head_dim is absent"),
    ],
)
def test_a_size_that_is_absent_or_no_number(change: dict[str, Any], told: str) -> None:
    text = {key: value for key, value in (TEXT | change).items() if value is not ...}
    with pytest.raises(BadInput, match=told):
        sizes_of(text, {})
    with pytest.raises(BadInput):
        sizes_of(TEXT, {"vision_config": None})


def test_a_size_that_is_absent_is_refused_before_the_load(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "c")
    config = json.loads((path / "config.json").read_text())
    del config["text_config"]["num_attention_heads"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"num_attention_heads is absent .{path}/config.json"):
        verify(path)


def test_what_is_replicated_from_the_host_is_not_cast() -> None:
    rows = [rule.row for family in families() for rule in family.rules]
    by_table = [row.casts for row in rows]
    assert by_table == ["replicate" not in row.upstream.split(", ") for row in rows]
    assert set(by_table) == {True, False}


def layout_of(row: Row, name: str, shape: tuple[int, ...], packing: Packing) -> ParameterLayout:
    sources = [Source(name, shape, "BF16")]
    return parameter_layout(
        row, sources, line(("cpu:1", "cpu:2")), Sizes(8, 16, 8, 1), packing, "BF16"
    )


def test_thirds_of_a_tensor_are_cut_each_for_itself() -> None:
    """Device 0 holds the first half of each third, device 1 the second; before 0.32 all of it."""
    row = next(r for r in SHORT_CONVOLUTION.rows if "in_proj" in r.parameter)
    layout = layout_of(row, "in", (12, 4), Packing())
    rows = [(block.rows.start, block.rows.stop) for block in layout.blocks]
    assert rows == [(0, 2), (4, 6), (8, 10), (2, 4), (6, 8), (10, 12)]
    assert (layout.shape, layout.cut_axis, layout.casts) == ((4, 12), 1, True)
    before = layout_of(row, "in", (12, 4), Packing(vllm=(0, 26, 0)))
    assert (before.shape, before.cut_axis, before.casts) == ((12, 4), None, False)
    assert [block.at for block in before.blocks] == [block.rows for block in before.blocks]
