"""The inverse of the device packings: where each element of an expert lies on the mesh.

tpu-inference packs a layer's experts into two arrays, ``w13_weight`` (gate and up) and
``w2_weight`` (down), and shards them over the mesh
(``layers/common/process_weights/moe_weights.py``, ``process_moe_weights`` and
``shard_moe_weights``; the same from 0.21 to 0.32). Here a packing is a table of blocks: which
rectangle of an expert's matrix lies in which rectangle of which array, and which rectangles are
padding. Pure data over integers; the code that moves bytes reads the table and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from harness.experts import ExpertShape
from harness.family import Projection

_LANE = 128  # tpu-inference pads each piece of w1 and w3 to this, get_w13_padding_config(align=128)


class Backend(StrEnum):
    """tpu-inference's MoE backends (``layers/common/moe.py``, ``MoEBackend``)."""

    GMM_TP = "gmm_tp"
    GMM_EP = "gmm_ep"
    FUSED_MOE = "fused_moe"


class Parameter(StrEnum):
    """The two device arrays of a layer's experts."""

    W13 = "w13_weight"
    W2 = "w2_weight"


@dataclass(frozen=True)
class Span:
    """A half-open range of indexes on one axis."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def as_slice(self) -> slice:
        """The range as Python's slice."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Block:
    """A rectangle of an expert's matrix and where it lies on the device.

    The device holds it transposed: device rows are input features, device columns are output
    features. ``rows`` and ``columns`` index the last two axes of ``parameter``; ``outputs`` and
    ``inputs`` index the expert's matrix [output features, input features].
    """

    projection: Projection
    parameter: Parameter
    rows: Span
    columns: Span
    outputs: Span
    inputs: Span


@dataclass(frozen=True)
class Padding:
    """A rectangle of a parameter that must be zero, for every expert."""

    parameter: Parameter
    rows: Span
    columns: Span


@dataclass(frozen=True)
class Layout:
    """One packing of a layer's experts.

    Attributes:
        backend: the MoE backend it belongs to.
        shapes: the global shape of each parameter, [E, rows, columns].
        sharded_axis: which axis of each parameter is cut into ``shards`` equal parts.
        shards: number of parts, in mesh order.
        blocks: every element of the experts' matrices, each exactly once.
        padding: every element of the parameters that no block covers.
    """

    backend: Backend
    shapes: dict[Parameter, tuple[int, int, int]]
    sharded_axis: dict[Parameter, int]
    shards: int
    blocks: tuple[Block, ...]
    padding: tuple[Padding, ...]

    def blocks_of(self, projection: Projection) -> tuple[Block, ...]:
        """The blocks that make up one projection."""
        return tuple(block for block in self.blocks if block.projection is projection)

    def shard_span(self, parameter: Parameter, shard: int) -> Span:
        """The part of the sharded axis that shard number ``shard`` must hold."""
        part = self.shapes[parameter][self.sharded_axis[parameter]] // self.shards
        return Span(shard * part, (shard + 1) * part)


class UnknownLayout(ValueError):
    """There is no table for this backend, or the sizes do not fit it."""


def expert_layout(backend: Backend, shape: ExpertShape, shards: int) -> Layout:
    """The packing of experts of ``shape`` by ``backend`` over ``shards`` devices.

    Args:
        backend: only :attr:`Backend.GMM_TP` has a table so far.
        shape: the experts' sizes, E, D and F.
        shards: size of the mesh axis the experts are sharded over.

    Raises:
        UnknownLayout: no table for the backend, or F is no multiple of ``shards``.
    """
    if backend is not Backend.GMM_TP:
        raise UnknownLayout(f"the layout of backend {backend} is not covered yet")
    return _gmm_tp(shape, shards)


def _gmm_tp(shape: ExpertShape, shards: int) -> Layout:
    """F is cut into n pieces, each padded to 128; shard i of w13 is [w1 piece i, w3 piece i]."""
    experts, hidden, width = shape.experts, shape.hidden, shape.intermediate
    if width % shards:
        raise UnknownLayout(f"moe_intermediate_size {width} is no multiple of {shards} devices")
    piece = width // shards
    padded = -(-piece // _LANE) * _LANE
    rows = Span(0, hidden)
    blocks, padding = [], []
    for shard in range(shards):
        outputs = Span(shard * piece, (shard + 1) * piece)
        for half, projection in enumerate((Projection.GATE, Projection.UP)):
            start = (2 * shard + half) * padded
            columns = Span(start, start + piece)
            blocks.append(Block(projection, Parameter.W13, rows, columns, outputs, rows))
            if padded > piece:
                gap = Span(start + piece, start + padded)
                padding.append(Padding(Parameter.W13, rows, gap))
    whole = Span(0, width)
    blocks.append(Block(Projection.DOWN, Parameter.W2, whole, rows, rows, whole))
    return Layout(
        backend=Backend.GMM_TP,
        shapes={
            Parameter.W13: (experts, hidden, 2 * padded * shards),
            Parameter.W2: (experts, width, hidden),
        },
        sharded_axis={Parameter.W13: 2, Parameter.W2: 1},
        shards=shards,
        blocks=tuple(blocks),
        padding=tuple(padding),
    )
