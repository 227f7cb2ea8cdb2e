from __future__ import annotations

import numpy as np
import pytest

from harness.experts import ExpertShape, ReferencePart
from harness.family import Projection
from harness.layout import Backend, Block, Layout, Padding, Parameter, UnknownLayout, expert_layout
from tests.packing import pack

SIZES = [
    (8, 128, 48, 4),
    (2, 16, 512, 2),
    (4, 64, 96, 8),
    (3, 8, 7, 7),
]


def layout_of(size: tuple[int, int, int, int]) -> Layout:
    experts, hidden, width, shards = size
    return expert_layout(Backend.GMM_TP, ExpertShape(experts, hidden, width, "BF16"), shards)


@pytest.mark.parametrize("size", SIZES)
def test_every_device_element_is_a_block_or_padding_once(size: tuple[int, int, int, int]) -> None:
    layout = layout_of(size)
    for parameter in Parameter:
        covered = np.zeros(layout.shapes[parameter][1:], dtype=int)
        areas: tuple[Block | Padding, ...] = (*layout.blocks, *layout.padding)
        for area in areas:
            if area.parameter is parameter:
                covered[area.rows.as_slice(), area.columns.as_slice()] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_every_matrix_element_is_in_one_block(size: tuple[int, int, int, int]) -> None:
    _, hidden, width, _ = size
    for projection in Projection:
        shape = (hidden, width) if projection is Projection.DOWN else (width, hidden)
        covered = np.zeros(shape, dtype=int)
        for block in layout_of(size).blocks_of(projection):
            covered[block.outputs.as_slice(), block.inputs.as_slice()] += 1
            assert len(block.rows) == len(block.inputs)
            assert len(block.columns) == len(block.outputs)
        assert (covered == 1).all()


def test_the_measured_example() -> None:
    """E 8, D 64, F 32 over 4 devices arrives as (8, 64, 1024) and (8, 32, 64)."""
    layout = layout_of((8, 64, 32, 4))
    assert layout.shapes == {Parameter.W13: (8, 64, 1024), Parameter.W2: (8, 32, 64)}


def test_shard_spans_divide_the_axis() -> None:
    layout = layout_of((8, 128, 48, 4))
    spans = [layout.shard_span(Parameter.W13, shard) for shard in range(4)]
    assert [(span.start, span.stop) for span in spans] == [
        (0, 256), (256, 512), (512, 768), (768, 1024),
    ]  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_blocks_invert_an_independent_packing(decoder: ReferencePart, devices: int) -> None:
    arrays = pack(decoder, 0, devices)
    layout = expert_layout(Backend.GMM_TP, decoder.shape, devices)
    assert {parameter: array.shape for parameter, array in arrays.items()} == layout.shapes
    for key in decoder.keys_of(0):
        for block in layout.blocks_of(key.projection):
            held = arrays[block.parameter][
                key.expert, block.rows.as_slice(), block.columns.as_slice()
            ]
            wanted = decoder[key][block.outputs.as_slice(), block.inputs.as_slice()]
            assert np.array_equal(held.T, wanted)


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UnknownLayout, match="50 is no multiple of 4"):
        layout_of((8, 128, 50, 4))


@pytest.mark.parametrize("backend", [Backend.GMM_EP, Backend.FUSED_MOE])
def test_backends_without_a_table_say_so(backend: Backend) -> None:
    with pytest.raises(UnknownLayout, match=backend):
        expert_layout(backend, ExpertShape(8, 128, 48, "BF16"), 4)
