"""The inverse of what upstream does to parameters besides experts: where each row of a tensor lies.

tpu-inference (0.22 to 0.32) takes a linear layer's host weight [outputs, inputs], whose rows are
several tensors one after the other, transposes it to [inputs, outputs], and, where the outputs are
divided among n devices, orders them anew so that device i holds the i-th n-th of each tensor
(``layers/common/utils.py``, ``reorder_concatenated_tensor_for_sharding``). k and v heads are
repeated, each r times in a row, when n is r times their number (``layers/vllm/custom_ops/
linear.py``, ``_tile_kv``). The vocabulary is padded with zero rows to a multiple of 64, whatever
the number of devices (vLLM ``vocab_parallel_embedding.py``, ``pad_vocab_size``), and divided with
its padding: 500 rows on eight devices are seven parts of 64 and one of 52 and 12 rows of zeros
(``layers/vllm/quantization/unquantized.py``, ``VllmUnquantizedEmbeddingMethod``). Up to 0.21
nothing is transposed and no head repeated.

Here that is a table of blocks over integers: which rows of which tensor lie where on the
parameter's output axis. The code that moves bytes reads the table and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from harness.base.bounds import MOST_HEADS, section, size
from harness.checkpoint.fp8_blocks import CODES
from harness.devices.expert_layout import PARAMETER_OF, Layout, Span
from harness.devices.mesh import Mesh
from harness.families.blocks import Cut, Pieces, Row

_VOCABULARY = 64  # vLLM, DEFAULT_VOCAB_PADDING_SIZE
_QKV = ("q", "k", "v")
_KEYS = ("linear_num_key_heads", "linear_key_head_dim")  # linear attention's, where it is


@dataclass(frozen=True)
class LayoutSizes:
    """What of config.json decides a layout.

    Attributes:
        heads: number of the language model's attention heads.
        head_dim: width of each; where config.json does not say, heads share the hidden size.
        kv_heads: number of its key and value heads; as many as heads where it does not say.
        vision_heads: number of the vision tower's heads.
        linear_keys: width of all key heads of linear attention together.
    """

    heads: int
    head_dim: int
    kv_heads: int
    vision_heads: int
    linear_keys: int = 0


def sizes_of(
    text: Mapping[str, Any], config: Mapping[str, Any], where: str = "config.json"
) -> LayoutSizes:
    """The sizes that ``config.json`` states.

    Args:
        text: what it says of the language model.
        config: its whole content.
        where: it is, for the error.

    Raises:
        BadInput: one is absent or no positive integer.
    """
    vision = section(config, "vision_config", where) or {}
    read = partial(size, where=where, most=MOST_HEADS)
    linear = any(key in text for key in _KEYS)
    heads = read(text, "num_attention_heads")
    width = None if "head_dim" in text else max(size(text, "hidden_size", where) // heads, 1)
    return LayoutSizes(
        heads=heads,
        head_dim=read(text, "head_dim", default=width),
        kv_heads=read(text, "num_key_value_heads", default=heads),
        vision_heads=read(vision, "num_heads", default=1),
        linear_keys=math.prod([read(text, key) for key in _KEYS]) if linear else 0,
    )


@dataclass(frozen=True)
class Packing:
    """How a release holds parameters: transposed or not, divided or not, k and v repeated or not.

    vLLM's own host layout, which the torch-xla target carries to every device whole, is none of
    them. ``vllm`` is that release, which decides of some linear layers whether they are left alone.
    """

    transposes: bool = True
    divides: bool = True
    repeats: bool = True
    vllm: tuple[int, ...] = (1000,)


HOST = Packing(transposes=False, divides=False, repeats=False)


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: its name, shape and safetensors dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class RowBlock:
    """Rows ``rows`` of tensor ``source``, at ``at`` of the output axis; the ``copy``-th of them.

    Of those rows every ``step``-th one, the first among them.
    """

    source: str
    rows: Span
    at: Span
    copy: int = 0
    step: int = 1


@dataclass(frozen=True)
class ParameterLayout:
    """One parameter on the device.

    Attributes:
        shape: its global shape.
        dtype: its safetensors dtype.
        transposed: whether it holds a matrix as [inputs, outputs].
        output_axis: the axis of the device array that output features run along.
        cut_axis: the axis that is divided; None where every device holds all.
        axes: the mesh axes it is divided over.
        shards: the number of parts.
        blocks: every row of every tensor, at least once.
        padding: what no block covers, on the output axis: zeros.
        made_in: the dtype it is made in on the host, where that is another: what is written to it
            is converted twice.
        source_axis: the axis of a tensor that its outputs, the rows of blocks, run along.
        casts: whether bf16 goes to the device by way of f32, which rewrites NaNs. What stays on
            the host until all is replicated goes as it is (``utils.py``, ``t2j``: a bit cast).
    """

    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    output_axis: int
    cut_axis: int | None
    axes: tuple[str, ...]
    shards: int
    blocks: tuple[RowBlock, ...]
    padding: tuple[Span, ...] = ()
    casts: bool = True
    made_in: str = ""
    source_axis: int = 0

    @property
    def host_dtype(self) -> str:
        """The dtype it is made in."""
        return self.made_in or self.dtype

    def share(self, number: int) -> tuple[Span, ...]:
        """What shard ``number`` holds, a span an axis."""
        spans = [Span(0, size) for size in self.shape]
        if self.cut_axis is not None:
            part = self.shape[self.cut_axis] // self.shards
            spans[self.cut_axis] = Span(number * part, (number + 1) * part)
        return tuple(spans)

    def of_scales(self) -> ParameterLayout:
        """The layout of a matrix's scales, one for each output: placed as a bias would be."""
        by_output = self.cut_axis == self.output_axis
        return replace(
            self, shape=(self.shape[self.output_axis],), dtype="F32", transposed=False,
            output_axis=0, cut_axis=0 if by_output else None,
            axes=self.axes if by_output else (), shards=self.shards if by_output else 1,
        )  # fmt: skip


class UnknownParameterLayout(ValueError):
    """The tensors do not fit what upstream makes of them."""


def parameter_layout(
    row: Row,
    sources: Sequence[Source],
    mesh: Mesh,
    sizes: LayoutSizes,
    packing: Packing,
    dtype: str,
    experts: Layout | None = None,
) -> ParameterLayout:
    """Where the rows of ``sources`` lie.

    Args:
        row: the parameter's kind.
        sources: its tensors, [outputs, inputs] or [outputs], in the order of its rows.
        mesh: the devices.
        sizes: of the model.
        packing: what the release does.
        dtype: what it is made in, see :func:`parameter_dtype`; the device is to hold the same, but
            for biases of experts.
        experts: how experts lie, for the biases of their matrices.

    Raises:
        UnknownParameterLayout: the tensors have different inputs, or a piece does not divide.
    """
    if row.biases and packing.divides:
        return _biases(row, sources[0], experts, dtype)
    if packing.vllm < row.left_alone_before:
        row = replace(row, cut=Cut.NONE, transposed=False, casts=False)
    first = sources[0].shape
    if any(source.shape[1:] != first[1:] for source in sources):
        raise UnknownParameterLayout(f"tensors of shapes {[s.shape for s in sources]}")
    is_matrix = len(first) == 2
    transposed = row.transposed and packing.transposes and is_matrix
    cut = row.cut if packing.divides and (is_matrix or row.cut is Cut.OUTPUTS) else Cut.NONE
    shards = 1 if cut is Cut.NONE else mesh.count(row.axes)
    pieces = list(_pieces(row, sources, sizes, shards if packing.repeats else 1))
    in_turn = cut is Cut.OUTPUTS and row.pieces is not Pieces.ROWS  # those are cut with padding
    blocks = tuple(_blocks(pieces, shards if in_turn else 1))
    rows = sum(len(block.at) for block in blocks)
    padded = -(-rows // _VOCABULARY) * _VOCABULARY if row.pieces is Pieces.ROWS else rows
    output_axis = 1 if transposed else 0
    shape = (first[1], padded) if transposed else (padded, *first[1:])
    cut_axis = {Cut.NONE: None, Cut.OUTPUTS: output_axis, Cut.INPUTS: 1 - output_axis}[cut]
    if cut_axis is not None and shape[cut_axis] % shards:
        raise UnknownParameterLayout(f"{shape[cut_axis]} rows over {shards} devices")
    return ParameterLayout(
        shape=shape,
        dtype=dtype,
        transposed=transposed,
        output_axis=output_axis,
        cut_axis=cut_axis,
        axes=row.axes if cut_axis is not None else (),
        shards=shards,
        blocks=blocks,
        padding=(Span(rows, padded),) if padded > rows else (),
        casts=row.casts,
    )


def _biases(row: Row, source: Source, experts: Layout | None, dtype: str) -> ParameterLayout:
    """Biases of experts' matrices, [E, outputs] and so on the device, as the matrices' outputs lie.

    They are cut with them, where the outputs or the experts are, and are f32 on the device. Where a
    quantised release's matrices are padded to more outputs, so are they.
    """
    if experts is None:
        raise UnknownParameterLayout("how experts lie is not known")
    step = len(row.biases)
    blocks, (parameter,) = [], {PARAMETER_OF[projection] for projection in row.biases}
    for number, projection in enumerate(row.biases):
        for outputs, place in experts.outputs_of(projection):
            if not (own := outputs.overlap(Span(0, source.shape[-1] // step))):
                continue
            at = Span(place.start, place.start + len(own))
            rows = Span(step * own.start + number, step * own.stop)
            blocks.append(RowBlock(source.name, rows, at, step=step))
    blocks.sort(key=lambda block: block.at.start)
    shape = (experts.shapes[parameter][0], experts.width_of(parameter))
    if source.shape != (shape[0], sum(len(block.at) for block in blocks)):
        raise UnknownParameterLayout(f"a tensor of {list(source.shape)}")
    cut = {0: 0, 1: None, 2: 1}[experts.sharded_axis[parameter]]
    return ParameterLayout(
        shape=shape, dtype="F32", made_in=dtype, transposed=False, output_axis=1, cut_axis=cut,
        axes=row.axes if cut is not None else (), shards=experts.shards if cut is not None else 1,
        blocks=tuple(blocks), padding=tuple(_between(blocks, shape[1])), casts=row.casts,
        source_axis=1,
    )  # fmt: skip


def _between(blocks: Sequence[RowBlock], end: int) -> Iterator[Span]:
    """What ascending blocks leave of an axis."""
    ends = [0, *(block.at.stop for block in blocks)]
    for stop, start in zip(ends, [*(block.at.start for block in blocks), end], strict=True):
        if start > stop:
            yield Span(stop, start)


def parameter_dtype(row: Row, sources: Sequence[Source], model: str, *, fp8: bool) -> str:
    """The type upstream makes a parameter in, whatever its tensors are stored as.

    Args:
        row: the parameter's kind.
        sources: its tensors.
        model: the model's type, see :func:`harness.base.bits.model_dtype`.
        fp8: whether the checkpoint is an FP8 release, whose codes stay codes.

    Raises:
        UnknownParameterLayout: some of the tensors are codes, and some are not.
    """
    if row.widened:
        return "F32"
    dtypes = {source.dtype for source in sources}
    if not fp8 or CODES not in dtypes:
        return model
    if dtypes != {CODES}:
        raise UnknownParameterLayout(f"tensors of {', '.join(sorted(dtypes))}")
    return CODES


@dataclass(frozen=True)
class _Piece:
    """Rows that are divided together: of one tensor, heads of ``head`` rows, each ``copies``.

    ``even_first``: of each head the even rows come first, then the odd ones. ``first_copy``: the
    number of the first of the copies, where another piece holds the same rows.
    """

    source: str
    rows: Span
    copies: int = 1
    head: int = 1
    even_first: bool = False
    first_copy: int = 0


def _pieces(
    row: Row, sources: Sequence[Source], sizes: LayoutSizes, shards: int
) -> Iterator[_Piece]:
    match row.pieces:
        case Pieces.QKV | Pieces.QKV_ROTARY:
            for source, letter in zip(sources, _QKV, strict=True):
                heads = shards if letter == "q" else sizes.kv_heads
                rows = Span(0, source.shape[0])
                sorted_ = row.pieces is Pieces.QKV_ROTARY and letter != "v"
                copies = _copies(shards, heads)
                again = letter == "v" and source.name == sources[1].name  # keys that are values
                yield _Piece(
                    source.name, rows, copies, sizes.head_dim, sorted_, copies if again else 0
                )
        case Pieces.HEADS:
            length = sources[0].shape[0]
            each = length // (sizes.kv_heads if sizes.kv_heads % shards else 1)
            for start in range(0, length, each):
                yield _Piece(sources[0].name, Span(start, start + each))
        case Pieces.QKV_FUSED:
            third = sources[0].shape[0] // 3
            for number, letter in enumerate(_QKV):
                heads = shards if letter == "q" else sizes.vision_heads
                rows = Span(number * third, (number + 1) * third)
                head = third // sizes.vision_heads
                yield _Piece(sources[0].name, rows, _copies(shards, heads), head)
        case Pieces.THIRDS:
            third = sources[0].shape[0] // 3
            for number in range(3):
                yield _Piece(sources[0].name, Span(number * third, (number + 1) * third))
        case Pieces.QKVZ:
            mixed, z = sources
            keys = sizes.linear_keys
            for start, stop in ((0, keys), (keys, 2 * keys), (2 * keys, mixed.shape[0])):
                yield _Piece(mixed.name, Span(start, stop))
            yield _Piece(z.name, Span(0, z.shape[0]))
        case Pieces.WHOLE | Pieces.ROWS | Pieces.ALTERNATING:
            for source in sources:
                yield _Piece(source.name, Span(0, source.shape[0]))


def _copies(shards: int, heads: int) -> int:
    """How often each of ``heads`` is held so that every shard has one."""
    if shards <= heads:
        return 1
    if shards % heads:
        raise UnknownParameterLayout(f"{heads} heads over {shards} devices")
    return shards // heads


def _blocks(pieces: Sequence[_Piece], shards: int) -> Iterator[RowBlock]:
    """For each shard, its part of each piece."""
    start = 0
    for shard in range(shards):
        for piece in pieces:
            total = len(piece.rows) * piece.copies
            if total % shards:
                raise UnknownParameterLayout(f"{total} rows of {piece.source} over {shards}")
            part = total // shards
            runs = _runs(piece, Span(shard * part, (shard + 1) * part))
            for block in _even_first(piece, runs) if piece.even_first else runs:
                yield RowBlock(
                    block.source, block.rows, Span(start, start + len(block.rows)),
                    block.copy + piece.first_copy,
                )  # fmt: skip
                start += len(block.rows)


def _even_first(piece: _Piece, runs: Iterable[RowBlock]) -> Iterator[RowBlock]:
    """The rows of runs, one by one, as they are once each head's are sorted."""
    for run in runs:
        for place in range(run.rows.start, run.rows.stop):
            head, within = divmod(place - piece.rows.start, piece.head)
            odd, number = divmod(within, piece.head // 2)
            first = piece.rows.start + head * piece.head + 2 * number + odd
            yield RowBlock(run.source, Span(first, first + 1), run.at, run.copy)


def _runs(piece: _Piece, part: Span) -> Iterator[RowBlock]:
    """The rows of a piece that ``part`` of its repeated rows are."""
    if piece.copies == 1:
        rows = Span(piece.rows.start + part.start, piece.rows.start + part.stop)
        yield RowBlock(piece.source, rows, rows)
        return
    at = part.start
    while at < part.stop:
        repeat, offset = divmod(at, piece.head)
        head, copy = divmod(repeat, piece.copies)
        length = min(piece.head - offset, part.stop - at)
        first = piece.rows.start + head * piece.head + offset
        yield RowBlock(piece.source, Span(first, first + length), part, copy)
        at += length
