"""The inverse of the device packings: where each element of an expert lies on the mesh.

tpu-inference packs a layer's experts into two arrays, ``w13_weight`` (gate and up) and
``w2_weight`` (down), and shards them over the mesh
(``layers/common/process_weights/moe_weights.py``, ``process_moe_weights`` and
``shard_moe_weights``; the same from 0.21 to 0.32). Here a packing is a table of blocks: which
rectangle of an expert's matrix lies in which rectangle of which array, and which rectangles are
padding. Pure data over integers; the code that moves bytes reads the table and nothing else.

The torch-xla target has no packing: vLLM's own host layout, w13 [E, 2F, D] and w2 [E, D, F], cut
over the mesh along one axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.base.bits import Bits
from harness.families.experts import ExpertShape
from harness.families.family import Projection

_LANE = 128  # tpu-inference pads each piece of w1 and w3 to this, get_w13_padding_config(align=128)
_TILE = 256  # and both axes for the fused kernel to this, process_moe_weights


class Backend(StrEnum):
    """How experts are packed.

    ``gmm_tp``, ``gmm_ep`` and ``fused_moe`` are tpu-inference's (``layers/common/moe.py``,
    ``MoEBackend``); ``xla_tp`` and ``xla_ep`` are vLLM's host layout as the torch-xla target cuts
    it, along the intermediate axis and along the expert axis.
    """

    GMM_TP = "gmm_tp"
    GMM_EP = "gmm_ep"
    FUSED_MOE = "fused_moe"
    XLA_TP = "xla_tp"
    XLA_EP = "xla_ep"


class Parameter(StrEnum):
    """The two device arrays of a layer's experts."""

    W13 = "w13_weight"
    W2 = "w2_weight"


#: The array that holds each of an expert's matrices.
PARAMETER_OF = {
    Projection.GATE: Parameter.W13,
    Projection.UP: Parameter.W13,
    Projection.DOWN: Parameter.W2,
}


#: What tpu-inference's own JAX models call them once they are processed, as vLLM's are
#: (``layers/jax/quantization/unquantized.py``, ``UnquantizedFusedMoEMethod``, 0.26 and 0.32).
_OWN_NAMES = {
    "kernel_gating_upproj_EDF": Parameter.W13,
    "kernel_gating_upproj_E2DF": Parameter.W13,
    "kernel_down_proj_EFD": Parameter.W2,
}


def parameter_called(name: str) -> Parameter | None:
    """The array of experts that upstream calls so, whichever implementation it is of."""
    return Parameter(name) if name in set(Parameter) else _OWN_NAMES.get(name)


def is_expert_array(name: str) -> bool:
    """Whether upstream calls experts' arrays, or their scales, so."""
    return name.rpartition(".")[2].startswith((*Parameter, *_OWN_NAMES))


@dataclass(frozen=True)
class Span:
    """A half-open range of indexes on one axis."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def as_slice(self) -> slice:
        """The range as Python's slice."""
        return slice(self.start, self.stop)

    def overlap(self, other: Span) -> Span | None:
        """What two ranges have in common, if anything."""
        # no max() and min(): a comparison asks this some ten thousand times
        start = self.start if self.start > other.start else other.start
        stop = self.stop if self.stop < other.stop else other.stop
        return Span(start, stop) if start < stop else None

    def within(self, origin: Span) -> slice:
        """The range counted from the start of ``origin``."""
        return slice(self.start - origin.start, self.stop - origin.start)


@dataclass(frozen=True)
class LayoutBlock:
    """A rectangle of an expert's matrix and where it lies on the device.

    ``rows`` and ``columns`` index the last two axes of ``parameter``; ``outputs`` and ``inputs``
    index the expert's matrix [output features, input features]. Where the device holds the matrix
    ``transposed``, its rows are input features and its columns output features.
    """

    projection: Projection
    parameter: Parameter
    rows: Span
    columns: Span
    outputs: Span
    inputs: Span
    transposed: bool = True

    def of(self, matrix: Bits) -> Bits:
        """The block's share of an expert's matrix, [rows, columns]; a view."""
        share = matrix[self.outputs.as_slice(), self.inputs.as_slice()]
        return share.T if self.transposed else share

    def part(self, by_row: bool, span: Span) -> LayoutBlock:
        """The rows, or the columns, of ``span`` alone."""
        offset = span.start - (self.rows if by_row else self.columns).start
        along_inputs = by_row == self.transposed
        first = (self.inputs if along_inputs else self.outputs).start + offset
        there = Span(first, first + len(span))
        cut = replace(self, rows=span) if by_row else replace(self, columns=span)
        return replace(cut, inputs=there) if along_inputs else replace(cut, outputs=there)

    def holds(self, output: int, input_: int) -> bool:
        """Whether element [output, input] of the matrix lies in this block."""
        return output in self.outputs and input_ in self.inputs

    def position(self, output: int, input_: int) -> tuple[int, int]:
        """Row and column of element [output, input] on the device."""
        along, across = input_ - self.inputs.start, output - self.outputs.start
        if not self.transposed:
            along, across = across, along
        return self.rows.start + along, self.columns.start + across


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
        shapes: the global shape of each parameter, [E, rows, columns]; axes between the first
            and the last count as one, rows.
        sharded_axis: which axis of each parameter is cut into ``shards`` equal parts.
        shards: number of parts, in mesh order.
        blocks: every element of the experts' matrices, each exactly once.
        padding: every element of the parameters that no block covers.
    """

    backend: Backend
    shapes: dict[Parameter, tuple[int, int, int]]
    sharded_axis: dict[Parameter, int]
    shards: int
    blocks: tuple[LayoutBlock, ...]
    padding: tuple[Padding, ...]

    def blocks_of(self, projection: Projection) -> tuple[LayoutBlock, ...]:
        """The blocks that make up one projection."""
        return tuple(block for block in self.blocks if block.projection is projection)

    def outputs_of(self, projection: Projection) -> tuple[tuple[Span, Span], ...]:
        """Where an expert has what is one for each output of a matrix, as a bias is.

        Of two matrices that lie one below the other, the fused kernel's gate and up, the second's
        come after the whole width of the first.

        Returns:
            Pairs of outputs, and their place on the last axis of an array [E, :meth:`width_of`].
        """
        found: dict[Span, Span] = {}
        for block in self.blocks_of(projection):
            assert block.transposed, "vLLM's host layout has biases as they are stored"
            height = self.shapes[block.parameter][1] // self._planes(block.parameter)
            ahead = block.rows.start // height * self.shapes[block.parameter][2]
            place = Span(ahead + block.columns.start, ahead + block.columns.stop)
            found.setdefault(block.outputs, place)
        return tuple(found.items())

    def width_of(self, parameter: Parameter) -> int:
        """How many numbers such an array has for each expert."""
        return self._planes(parameter) * self.shapes[parameter][2]

    def _planes(self, parameter: Parameter) -> int:
        """How many matrices lie one below the other in an array."""
        stacked = self.backend is Backend.FUSED_MOE and parameter is Parameter.W13
        return 2 if stacked else 1

    def shard_span(self, parameter: Parameter, shard: int) -> Span:
        """The part of the sharded axis that shard number ``shard`` must hold."""
        part = self.shapes[parameter][self.sharded_axis[parameter]] // self.shards
        return Span(shard * part, (shard + 1) * part)


class UnknownLayout(ValueError):
    """The sizes do not fit the packing."""


def expert_layout(
    backend: Backend, shape: ExpertShape, shards: int, *, alternating: bool = False
) -> Layout:
    """The packing of experts of ``shape`` by ``backend`` over ``shards`` devices.

    Args:
        backend: the packing.
        shape: the experts' sizes, E, D and F.
        shards: size of the mesh axes the experts are sharded over.
        alternating: vLLM's host layout has the rows of gate and up in turn; tpu-inference sorts
            them.

    Raises:
        UnknownLayout: the axis that is cut is no multiple of ``shards``.
    """
    by_expert = backend in (Backend.GMM_EP, Backend.FUSED_MOE, Backend.XLA_EP)
    size = shape.experts if by_expert else shape.intermediate
    if size % shards:
        axis = "num_experts" if by_expert else "moe_intermediate_size"
        raise UnknownLayout(f"{axis} {size} is no multiple of {shards} devices")
    match backend:
        case Backend.GMM_TP:
            return _cut(_gmm(backend, shape, shards, pieces=shards, axes=(2, 1)))
        case Backend.GMM_EP:
            return _gmm(backend, shape, shards, pieces=1, axes=(0, 0))
        case Backend.FUSED_MOE:
            return _fused(shape, shards)
        case Backend.XLA_TP:
            return _cut(_host(backend, shape, shards, axes=(1, 2), alternating=alternating))
        case Backend.XLA_EP:
            return _host(backend, shape, shards, axes=(0, 0), alternating=alternating)


def _cut(layout: Layout) -> Layout:
    """The layout with blocks that lie in one shard each."""
    blocks = (part for block in layout.blocks for part in _parts(layout, block))
    return replace(layout, blocks=tuple(blocks))


def _parts(layout: Layout, block: LayoutBlock) -> Iterator[LayoutBlock]:
    by_row = layout.sharded_axis[block.parameter] == 1
    along = block.rows if by_row else block.columns
    for shard in range(layout.shards):
        if span := along.overlap(layout.shard_span(block.parameter, shard)):
            yield block.part(by_row, span)


def _gmm(
    backend: Backend, shape: ExpertShape, shards: int, *, pieces: int, axes: tuple[int, int]
) -> Layout:
    """F is cut into pieces, each padded to 128; w13 is [w1 piece 0, w3 piece 0, w1 piece 1 …]."""
    experts, hidden, width = shape.experts, shape.hidden, shape.intermediate
    piece = width // pieces
    padded = _padded(piece, _LANE)
    rows = Span(0, hidden)
    blocks, padding = [], []
    for number in range(pieces):
        outputs = Span(number * piece, (number + 1) * piece)
        for half, projection in enumerate((Projection.GATE, Projection.UP)):
            start = (2 * number + half) * padded
            columns = Span(start, start + piece)
            blocks.append(LayoutBlock(projection, Parameter.W13, rows, columns, outputs, rows))
            padding += _gaps(Parameter.W13, rows, Span(start + piece, start + padded))
    whole = Span(0, width)
    blocks.append(LayoutBlock(Projection.DOWN, Parameter.W2, whole, rows, rows, whole))
    return Layout(
        backend=backend,
        shapes={
            Parameter.W13: (experts, hidden, 2 * padded * pieces),
            Parameter.W2: (experts, width, hidden),
        },
        sharded_axis=dict(zip(Parameter, axes, strict=True)),
        shards=shards,
        blocks=tuple(blocks),
        padding=tuple(padding),
    )


def _fused(shape: ExpertShape, shards: int) -> Layout:
    """w13 is [E, 2, D, F] and w2 [E, F, D], with D and F padded to 256."""
    hidden, width = Span(0, shape.hidden), Span(0, shape.intermediate)
    rows, columns = _padded(shape.hidden, _TILE), _padded(shape.intermediate, _TILE)
    blocks, padding = [], []
    for half, projection in enumerate((Projection.GATE, Projection.UP)):
        first = half * rows
        here = Span(first, first + shape.hidden)
        blocks.append(LayoutBlock(projection, Parameter.W13, here, width, width, hidden))
        padding += _gaps(Parameter.W13, Span(here.stop, first + rows), Span(0, columns))
        padding += _gaps(Parameter.W13, here, Span(width.stop, columns))
    blocks.append(LayoutBlock(Projection.DOWN, Parameter.W2, width, hidden, hidden, width))
    padding += _gaps(Parameter.W2, Span(width.stop, columns), Span(0, rows))
    padding += _gaps(Parameter.W2, width, Span(hidden.stop, rows))
    return Layout(
        backend=Backend.FUSED_MOE,
        shapes={
            Parameter.W13: (shape.experts, 2 * rows, columns),
            Parameter.W2: (shape.experts, columns, rows),
        },
        sharded_axis=dict.fromkeys(Parameter, 0),
        shards=shards,
        blocks=tuple(blocks),
        padding=tuple(padding),
    )


def _host(
    backend: Backend, shape: ExpertShape, shards: int, *, axes: tuple[int, int], alternating: bool
) -> Layout:
    """w13 is [E, 2F, D], w2 is [E, D, F]; nothing is transposed or padded.

    Of w13 gate's rows come first, or gate's and up's in turn.
    """
    hidden, width = Span(0, shape.hidden), Span(0, shape.intermediate)
    runs = [Span(row, row + 1) for row in range(len(width))] if alternating else [width]
    blocks = [
        LayoutBlock(
            projection, Parameter.W13, Span(first, first + len(run)), hidden, run, hidden,
            transposed=False,
        )
        for half, projection in enumerate((Projection.GATE, Projection.UP))
        for run in runs
        for first in [2 * run.start + half * len(run)]
    ]  # fmt: skip
    blocks.append(
        LayoutBlock(Projection.DOWN, Parameter.W2, hidden, width, hidden, width, transposed=False)
    )
    return Layout(
        backend=backend,
        shapes={
            Parameter.W13: (shape.experts, 2 * len(width), len(hidden)),
            Parameter.W2: (shape.experts, len(hidden), len(width)),
        },
        sharded_axis=dict(zip(Parameter, axes, strict=True)),
        shards=shards,
        blocks=tuple(blocks),
        padding=(),
    )


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _gaps(parameter: Parameter, rows: Span, columns: Span) -> list[Padding]:
    """A padding rectangle, unless it is empty."""
    return [Padding(parameter, rows, columns)] if len(rows) and len(columns) else []
