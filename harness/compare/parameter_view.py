"""A parameter on the device beside its layout, read run by run, and put back together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import Mask
from harness.devices.expert_layout import Backend, Layout, Span, UnknownLayout, expert_layout
from harness.devices.mesh import Mesh
from harness.devices.parameter_layout import (
    LayoutSizes,
    Packing,
    ParameterLayout,
    RowBlock,
    Source,
    UnknownParameterLayout,
    parameter_dtype,
    parameter_layout,
    sizes_of,
)
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.blocks import TENSOR, Cut, Row
from harness.families.experts import ReferencePart


@dataclass(frozen=True)
class ParameterView:
    """A parameter of the device with its rule, its layout and its tensors."""

    tensor: DeviceTensor
    row: Row
    layout: ParameterLayout
    sources: tuple[str, ...]


@dataclass
class Fault:
    """What departs of one tensor, or of one copy of it, over all devices.

    ``at`` is the first unequal element in the tensor, ``device_name`` where it was found. Of
    ``total`` elements on all devices ``count`` are unequal, and at least ``alike`` hold the bits of
    that first one, ``device``.
    """

    view: ParameterView
    source: str
    copy: int
    at: tuple[int, ...]
    reference: int
    device: int
    device_name: str
    count: int = 0
    alike: int = 0
    total: int = 0
    devices: set[str] = field(default_factory=set)

    @property
    def is_uniform(self) -> bool:
        """Whether every element, on every device, holds the same bits."""
        return self.alike == self.total


_Where = tuple[slice, ...]


def pairs(
    layout: ParameterLayout, shard: DeviceShard, source: str, reference: Bits, first_row: int = 0
) -> Iterator[tuple[RowBlock, Bits, _Where, _Where]]:
    """For each run of ``source``'s rows in a shard: its block, what it must be, and two indexes.

    Args:
        layout: of the parameter.
        shard: a part of it, whichever it is.
        source: the tensor.
        reference: rows of it as the device is to hold them, [outputs, …].
        first_row: the first of them.

    Yields:
        The block; what the run must be, in the device's orientation; where it is in the shard;
        where it is in the tensor.
    """
    own, axis = shard.index[layout.output_axis], layout.source_axis
    others = [s.as_slice() for a, s in enumerate(shard.index) if a != layout.output_axis]
    last_row = first_row + reference.shape[axis]
    for block in layout.blocks:
        if block.source != source or not (here := block.at.overlap(own)):
            continue
        start, step = block.rows.start, block.step
        given = [block.at.start - (start - row) // step for row in (first_row, last_row)]
        if not (outputs := here.overlap(Span(*given))):
            continue
        first = start + (outputs.start - block.at.start) * step
        rows = slice(first, first + (len(outputs) - 1) * step + 1, step)
        origin = (*others[:axis], rows, *others[axis:])
        within = slice(rows.start - first_row, rows.stop - first_row, step)
        wanted = reference[(*others[:axis], within, *others[axis:])]
        there = at_outputs(layout, outputs.within(own), slice(None))
        yield block, wanted.T if layout.transposed else wanted, there, origin


def recovered(view: ParameterView, source: str, copy: int, prefer: str, like: Bits) -> Bits:
    """Tensor ``source`` as the device holds it, in the checkpoint's orientation.

    Args:
        view: the parameter.
        source: the tensor.
        copy: which of its copies.
        prefer: of replicas, the one on this device.
        like: the reference; gives shape and dtype, and the rows that no shard holds.
    """
    out = like.copy()
    layout = view.layout
    for shard in sorted(view.tensor.shards, key=lambda shard: shard.device == prefer):
        for block, _, there, origin in pairs(layout, shard, source, like):
            if block.copy == copy:
                bits = shard.fetch(there)
                out[origin] = bits.T if layout.transposed else bits
    return out


def held(view: ParameterView, source: str, copy: int, like: Bits) -> Mask:
    """Which elements of :func:`recovered` are from the devices; of several hosts each has some."""
    mask = np.zeros(like.shape, dtype=bool)
    for shard in view.tensor.shards:
        for block, _, _, origin in pairs(view.layout, shard, source, like):
            if block.copy == copy:
                mask[origin] = True
    return mask


def holder(view: ParameterView, source: str, copy: int, at: tuple[int, ...], like: Bits) -> str:
    """The device that :func:`recovered` has an element from; empty if it is another host's."""
    return next(
        (
            shard.device
            for shard in reversed(view.tensor.shards)
            for block, _, _, origin in pairs(view.layout, shard, source, like)
            if block.copy == copy and _is_at(at, origin)
        ),
        "",
    )


def _is_at(at: tuple[int, ...], origin: _Where) -> bool:
    runs = (range(s.start, s.stop, s.step or 1) for s in origin)
    return all(index in run for index, run in zip(at, runs, strict=True))


class PaddingPart(NamedTuple):
    """A shard's part of a parameter's padding.

    Attributes:
        shard: which.
        at: where in it.
        first: where it begins in the whole array.
        elements: how many there are.
    """

    shard: DeviceShard
    at: _Where
    first: tuple[int, ...]
    elements: int


def padding_of(view: ParameterView) -> Iterator[PaddingPart]:
    """Each shard's part of the padding."""
    layout, axis = view.layout, view.layout.output_axis
    for shard in view.tensor.shards if layout.padding else ():
        own = shard.index[axis]
        for gap in layout.padding:
            if here := gap.overlap(own):
                spans = [*shard.index[:axis], here, *shard.index[axis + 1 :]]
                first, size = tuple(span.start for span in spans), prod(map(len, spans))
                at = at_outputs(layout, here.within(own), slice(None))
                yield PaddingPart(shard, at, first, size)


def at_outputs(layout: ParameterLayout, outputs: slice, others: slice) -> _Where:
    """An index that takes ``outputs`` of the output axis and ``others`` of all others."""
    where = [others] * len(layout.shape)
    where[layout.output_axis] = outputs
    return tuple(where)


def is_fp8(view: ParameterView) -> bool:
    """Whether a parameter is quantised, so that its values are compared and not its bits."""
    return view.layout.dtype == "F8_E4M3"


class _DoesNotFit(Exception):
    """A parameter has a rule, and this is why it does not fit."""


class ParameterViews:
    """Which parameter holds which tensors, and how.

    Args:
        reference: the part's experts, and through them the checkpoint.
        tensors: the part's arrays on the devices besides experts'.
        mesh: the devices.
        packing: what the release under test does to parameters.
        backend: the packing that experts have, whose biases follow it.
    """

    def __init__(
        self,
        reference: ReferencePart,
        tensors: Iterable[DeviceTensor],
        mesh: Mesh,
        packing: Packing,
        backend: Backend,
    ) -> None:
        self._reference = reference
        self._checkpoint = reference.checkpoint
        self._tensors = tuple(tensors)
        self._mesh = mesh
        self._packing = packing
        self._backend = backend

    @cached_property
    def sizes(self) -> LayoutSizes:
        """What of config.json decides layouts.

        Raises:
            BadInput: it lacks some of that.
        """
        return sizes_of(
            self._checkpoint.text,
            self._checkpoint.config,
            self._checkpoint.location.where("config.json"),
        )

    def _sizes_of(self, name: str) -> LayoutSizes:
        """The sizes as the layer of a parameter has them."""
        checkpoint = self._checkpoint
        layer = checkpoint.family.layer_of(name)
        if layer is None or (text := checkpoint.of_layer(layer)) is checkpoint.text:
            return self.sizes
        return sizes_of(text, checkpoint.config, checkpoint.location.where("config.json"))

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self._checkpoint.tied

    @property
    def fitting(self) -> Mapping[str, ParameterView]:
        """By device name, each parameter that has a rule which fits."""
        return self._matched[0]

    @property
    def unfitting(self) -> Mapping[str, str]:
        """By device name, why the rule of a parameter does not fit."""
        return self._matched[1]

    @cached_property
    def _matched(self) -> tuple[dict[str, ParameterView], dict[str, str]]:
        fitting: dict[str, ParameterView] = {}
        unfitting: dict[str, str] = {}
        for tensor in self._tensors:
            if found := self._row(tensor):
                try:
                    fitting[tensor.name] = self._view(tensor, *found)
                except _DoesNotFit as reason:
                    unfitting[tensor.name] = str(reason)
        return fitting, unfitting

    @cached_property
    def scales(self) -> Mapping[str, DeviceTensor]:
        """By name, the scales of FP8 parameters; they are compared with those."""
        if not self._checkpoint.fp8:
            return {}
        fp8 = {f"{name}_scale" for name, view in self.fitting.items() if is_fp8(view)}
        return {tensor.name: tensor for tensor in self._tensors if tensor.name in fp8}

    def _row(self, tensor: DeviceTensor) -> tuple[Row, tuple[str, ...]] | None:
        family = self._checkpoint.family
        name = family.in_checkpoint(self._reference.part, tensor.name)
        found = family.rule_for(name, self._checkpoint.entries)
        if found and name == family.head and self.tied:
            return found[0], (family.embedding,)
        return found

    def _view(self, tensor: DeviceTensor, row: Row, names: tuple[str, ...]) -> ParameterView:
        entries = self._checkpoint.entries
        if absent := [name for name in names if name not in entries]:
            raise _DoesNotFit(f"no tensor {', '.join(absent)} in the checkpoint")
        sources = [Source(n, tuple(entries[n].shape), entries[n].dtype) for n in names]
        if row.biases:
            outputs = sum(self._reference.sizes_of(projection)[0] for projection in row.biases)
            if sources[0].shape != (self._reference.shape.experts, outputs):
                raise _DoesNotFit(f"no layout: a tensor of {list(sources[0].shape)}")
        sizes = self._sizes_of(tensor.name)
        if row.of_heads and len(tensor.shape) > 2:
            heads = 0 if row.cut is Cut.INPUTS else 1
            sizes = replace(sizes, kv_heads=tensor.shape[heads])
            tensor = tensor.merged(heads)
        if row.exchanged:
            tensor = tensor.exchanged()
        try:
            dtype = parameter_dtype(
                row, sources, self._reference.model_dtype, fp8=self._checkpoint.fp8
            )
            layout = parameter_layout(
                row, sources, self._mesh, sizes, self._packing, dtype,
                self._experts if row.biases else None,
            )  # fmt: skip
        except (UnknownParameterLayout, UnknownLayout) as error:
            raise _DoesNotFit(f"no layout: {error}") from error
        if row.biases:
            tensor = tensor.flattened()
        return ParameterView(
            tensor.lifted() if row.squeezed else tensor, row, layout, (*dict.fromkeys(names),)
        )

    @cached_property
    def _experts(self) -> Layout:
        """How experts lie; none of a release that has them on no device."""
        return expert_layout(self._backend, self._reference.packed_shape, self._mesh.count(TENSOR))
