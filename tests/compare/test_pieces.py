"""Parameters cut into pieces show what they show as a whole, wherever the fault lies."""

from __future__ import annotations

import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.bits import Bits
from harness.compare import parameter_comparison as compare_parameters
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


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_bit_in_any_row_is_found_where_it_is(vl: Case, name: str) -> None:
    packed = vl.device.packed[name]
    for place in range(0, packed.array.shape[0], 29):
        packed.array = packed.array.copy()
        packed.array[place, place % packed.array.shape[1]] ^= 1
        (difference,), _, _ = replace(vl, size=SMALL).compared()
        assert (difference.parameter, elements(difference).count) == (name, 1)
        packed.array[place, place % packed.array.shape[1]] ^= 1


def placed_of(vl: Case, name: str) -> ParameterView:
    return vl.compared()[2].placed[name]


def test_pieces_cover_every_row_once(vl: Case) -> None:
    placed = placed_of(vl, PARAMETERS[1])
    cut = list(pieces.pieces_of(placed, vl.checkpoint, SMALL))
    for source in placed.sources:
        rows = [row for p in cut if p.source == source for row in range(p.rows.start, p.rows.stop)]
        assert rows == list(range(vl.checkpoint.entries[source].shape[0]))
    assert len(cut) > 3 * len(placed.sources)


def test_devices_with_memory_of_their_own_are_read_back_once(vl: Case) -> None:
    placed = placed_of(vl, PARAMETERS[0])
    apart = tuple(replace(shard, in_host_memory=False) for shard in placed.tensor.shards)
    placed = replace(placed, tensor=replace(placed.tensor, shards=apart))
    assert len(list(pieces.pieces_of(placed, vl.checkpoint, SMALL))) == len(placed.sources)


def test_of_such_devices_one_tensor_is_held_at_a_time(
    vl: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all cores as many tensors would lie in the host's memory."""
    alive, most = [0], [0]
    judge = pieces.judge_piece

    def counted(*given: Any) -> pieces.Judged:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        time.sleep(0.001)
        alive[0] -= 1
        return judge(*given)

    monkeypatch.setattr(compare_parameters, "judge_piece", counted)
    apart = [
        replace(t, shards=tuple(replace(s, in_host_memory=False) for s in t.shards))
        for t in vl.device.tensors()
    ]
    assert vl.compared(apart)[0] == []
    assert most == [1]


def test_what_one_device_gave_back_is_dropped_before_the_next_is_asked(vl: Case) -> None:
    """Replicas of an embedding would fill the host's memory."""
    placed = placed_of(vl, PARAMETERS[0])
    given: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def apart(shard: DeviceShard) -> DeviceShard:
        def fetch(index: Any) -> Bits:
            alive.append(sum(array() is not None for array in given))
            copy = shard.fetch(index).copy()
            given.append(weakref.ref(copy))
            return copy

        return replace(shard, fetch=fetch, in_host_memory=False)

    tensor = replace(placed.tensor, shards=tuple(map(apart, placed.tensor.shards)))
    for piece in pieces.pieces_of(replace(placed, tensor=tensor), vl.checkpoint):
        judged = pieces.judge_piece(piece, vl.checkpoint, lambda bits, dtype, layout: bits)
        assert not judged.unequal
    assert len(alive) == len(tensor.shards)
    assert max(alive) == 0
