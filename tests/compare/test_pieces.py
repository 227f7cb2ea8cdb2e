"""Parameters cut into pieces show what they show as a whole, wherever the fault lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.bits import Bits
from harness.compare import pieces
from harness.compare.difference import Difference
from harness.compare.parameter_view import ParameterView
from harness.devices.tensors import DeviceShard
from tests.support.differences import elements
from tests.support.parameter_cases import Case, case
from tests.support.parameter_packing import LANGUAGE

#: Transposed; fused of three, two of them repeated; cut by rows; a vocabulary of 512.
PARAMETERS = [
    f"{LANGUAGE}layers.1.self_attn.o_proj.weight",
    f"{LANGUAGE}layers.1.self_attn.qkv_proj.weight",
    f"{LANGUAGE}embed_tokens.weight",
    "vllm_model.language_model.lm_head.weight",
]


@pytest.fixture
def vl(tiny_checkpoints: dict[str, Path]) -> Case:
    return case(tiny_checkpoints, "qwen3-vl-moe")


SMALL = pieces.PieceSize(nbytes=1, rows=5)  # divides nothing


def with_faults(vl: Case, name: str) -> list[Difference]:
    """The differences after one bit of every ninth row, of each end of both axes, is flipped."""
    packed = vl.device.packed[name]
    packed.array = packed.array.copy()
    packed.array[::9, 0] ^= 1
    packed.array[::9, -1] ^= 1
    packed.array[-1, ::9] ^= 1
    return vl.compared()[0]


@pytest.mark.parametrize("name", PARAMETERS)
def test_pieces_find_what_the_whole_shows(vl: Case, name: str) -> None:
    whole = with_faults(vl, name)
    assert replace(vl, size=SMALL).compared()[0] == whole
    assert {difference.parameter for difference in whole} == {name}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_bit_in_any_row_is_found_where_it_is(vl: Case, name: str) -> None:
    packed = vl.device.packed[name]
    for place in range(0, packed.array.shape[0], 29):
        packed.array = packed.array.copy()
        packed.array[place, place % packed.array.shape[1]] ^= 1
        (difference,), _, _ = replace(vl, size=SMALL).compared()
        assert (difference.parameter, elements(difference).count) == (name, 1)
        packed.array[place, place % packed.array.shape[1]] ^= 1


def view_of(vl: Case, name: str) -> ParameterView:
    return vl.compared()[2].views.fitting[name]


def test_pieces_cover_every_row_once(vl: Case) -> None:
    view = view_of(vl, PARAMETERS[1])
    cut = list(pieces.pieces_of(view, vl.checkpoint, SMALL))
    for source in view.sources:
        rows = [row for p in cut if p.source == source for row in range(p.rows.start, p.rows.stop)]
        assert rows == list(range(vl.checkpoint.entries[source].shape[0]))
    assert len(cut) > 3 * len(view.sources)


def test_of_a_device_no_more_is_read_back_at_a_time_than_a_piece(vl: Case) -> None:
    """An embedding read back whole would take as much of the host's memory."""
    view = view_of(vl, PARAMETERS[0])
    most: list[int] = []

    def apart(shard: DeviceShard) -> DeviceShard:
        def fetch(index: Any) -> Bits:
            copy = shard.fetch(index).copy()
            most.append(copy.size)
            return copy

        return replace(shard, fetch=fetch, in_host_memory=False)

    tensor = replace(view.tensor, shards=tuple(map(apart, view.tensor.shards)))
    cut = list(pieces.pieces_of(replace(view, tensor=tensor), vl.checkpoint, SMALL))
    for piece in cut:
        judged = pieces.judge_piece(piece, vl.checkpoint, lambda bits, dtype, layout: bits)
        assert not judged.unequal
    assert max(most) <= SMALL.rows * tensor.shape[1]
    assert sum(most) == sum(shard.fetch(...).size for shard in view.tensor.shards)
