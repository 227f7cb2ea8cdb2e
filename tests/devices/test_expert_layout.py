from __future__ import annotations

import numpy as np
import pytest

from harness.devices.expert_layout import (
    Backend,
    Layout,
    LayoutBlock,
    Padding,
    Parameter,
    UnknownLayout,
    expert_layout,
)
from harness.families.experts import ExpertKey, ExpertShape, ReferencePart
from harness.families.family import Projection
from tests.support.packing import AXES, pack

SIZES = [
    (8, 128, 48, 4),
    (2, 16, 512, 2),
    (4, 64, 96, 8),
    (3, 8, 7, 7),
]


Size = tuple[int, int, int, int]


def layout_of(size: Size, backend: Backend = Backend.GMM_TP) -> Layout:
    experts, hidden, width, shards = size
    shards = shards if AXES[backend] != (0, 0) else experts
    return expert_layout(backend, ExpertShape(experts, hidden, width, "BF16"), shards)


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("size", SIZES)
def test_every_device_element_is_a_block_or_padding_once(size: Size, backend: Backend) -> None:
    layout = layout_of(size, backend)
    for parameter in Parameter:
        covered = np.zeros(layout.shapes[parameter][1:], dtype=int)
        areas: tuple[LayoutBlock | Padding, ...] = (*layout.blocks, *layout.padding)
        for area in areas:
            if area.parameter is parameter:
                covered[area.rows.as_slice(), area.columns.as_slice()] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("size", SIZES)
def test_every_matrix_element_is_in_one_block(size: Size, backend: Backend) -> None:
    _, hidden, width, _ = size
    for projection in Projection:
        shape = (hidden, width) if projection is Projection.DOWN else (width, hidden)
        covered = np.zeros(shape, dtype=int)
        for block in layout_of(size, backend).blocks_of(projection):
            covered[block.outputs.as_slice(), block.inputs.as_slice()] += 1
            assert block.of(covered).shape == (len(block.rows), len(block.columns))
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


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_blocks_invert_an_independent_packing(
    decoder: ReferencePart, devices: int, backend: Backend
) -> None:
    arrays = pack(decoder, 0, backend, devices)
    layout = expert_layout(backend, decoder.shape, devices)
    for parameter, array in arrays.items():
        folded = array.reshape(array.shape[0], -1, array.shape[-1])
        assert folded.shape == layout.shapes[parameter]
        for block in layout.blocks:
            if block.parameter is parameter:
                held = folded[:, block.rows.as_slice(), block.columns.as_slice()]
                for expert in range(decoder.shape.experts):
                    key = ExpertKey(decoder.part, 0, expert, block.projection)
                    assert np.array_equal(held[expert], block.of(decoder[key]))


@pytest.mark.parametrize("backend", Backend)
def test_an_element_is_placed_where_its_block_lies(backend: Backend) -> None:
    layout = layout_of((8, 128, 48, 4), backend)
    shape = {Projection.DOWN: (128, 48)}
    for block in layout.blocks:
        sizes = shape.get(block.projection, (48, 128))
        numbered = np.arange(sizes[0] * sizes[1]).reshape(sizes).astype(np.uint16)
        output, input_ = block.outputs.stop - 1, block.inputs.start
        assert block.holds(output, input_)
        row, column = block.position(output, input_)
        held = block.of(numbered)[row - block.rows.start, column - block.columns.start]
        assert held == numbered[output, input_]


@pytest.mark.parametrize(
    ("backend", "text"),
    [(b, "48 is no multiple of 5" if AXES[b] != (0, 0) else "8 is no multiple") for b in Backend],
)
def test_sizes_that_do_not_divide_are_refused(backend: Backend, text: str) -> None:
    with pytest.raises(UnknownLayout, match=text):
        expert_layout(backend, ExpertShape(8, 128, 48, "BF16"), 5)
