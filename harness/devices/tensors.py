"""What the device holds, as arrays of raw bits with their place on the mesh.

A tensor is seen through its shards: which device, which part of the whole, which bits. The bits of
one expert are fetched at a time, so host memory stays at an expert slice; on emulated devices
they are a view of the device's own memory. This file knows arrays only: jax is not imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from harness.base.bits import Bits, bits_dtype
from harness.devices.expert_layout import Parameter, Span, parameter_called
from harness.devices.programs import Askable
from harness.families.family import Family, Part


@cache
def _expert_parameter(module: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?:^|\.)layers\.(?P<layer>\d+)\.(?:mtp_block\.)?{re.escape(module)}\."
        r"(?:routed_experts\.)?"
        r"(?P<parameter>\w+)$"
    )


def is_of_experts(name: str, family: Family, part: Part) -> bool:
    """Whether a parameter of this name counts as an expert array, known or not.

    Experts' comparison looks at those and no others, that of all other parameters at the rest. What
    lies in the module of experts and has a row in one of the family's blocks, as a bias may, is
    one of the rest.

    Args:
        name: the parameter's, on the device.
        family: says what a layer's module of experts is called, and what its blocks are.
        part: the part of the stack that holds it.
    """
    if _expert_parameter(family.experts_module).search(name) is None:
        return False
    return family.rule_for(family.in_checkpoint(part, name)) is None


@dataclass(frozen=True)
class DeviceShard:
    """One device's part of a tensor.

    Attributes:
        device: the device's name, ``cpu:3``.
        index: the part, as one span per axis of the whole tensor.
        fetch: gives the bits of an index into this part, counted from the part's first: of the
            whole part for ``...``. Threads may call it at the same time.
        held: the part as what answers questions about it takes it
            (:mod:`harness.devices.programs`); None where nothing does.
        in_host_memory: whether ``fetch`` gives a view of memory the device shares with the host.
    """

    device: str
    index: tuple[Span, ...]
    fetch: Callable[[Any], Bits]
    held: Askable | None = None
    in_host_memory: bool = field(kw_only=True)

    def folded(self) -> DeviceShard:
        """The shard with its middle axes as one; it takes an index of the first axis alone."""
        middle = self.index[1:-1]
        rows = math.prod(map(len, middle))
        start = next((span for span in middle if span.start), Span(0, 0)).start

        def fetch(index: Any) -> Bits:
            bits = self.fetch(index)
            return bits.reshape(*bits.shape[: -len(middle) - 1], rows, bits.shape[-1])

        return replace(
            self, index=(self.index[0], Span(start, start + rows), self.index[-1]), fetch=fetch
        )

    def flattened(self) -> DeviceShard:
        """The shard as [E, numbers]: all axes but the first count as one."""
        count = math.prod(map(len, self.index[1:]))
        first = next((span for span in self.index[1:] if span.start), Span(0, 0)).start

        def fetch(index: Any) -> Bits:
            bits: Bits = self.fetch(...)
            flat: Bits = bits.reshape(len(bits), count)[index]
            return flat

        return replace(self, index=(self.index[0], Span(first, first + count)), fetch=fetch)

    def merged(self, axis: int, shape: tuple[int, ...]) -> DeviceShard | None:
        """The shard with ``axis`` and the next as one; None where it cuts both.

        Where it cuts the second, the one axis runs over parts of that first, part by part.
        """
        first, second = self.index[axis : axis + 2]
        count, width = len(first), len(second)
        if len(second) == shape[axis + 1]:
            start = first.start * width
        elif count == shape[axis]:
            start = second.start * count
        else:
            return None

        def fetch(index: Any) -> Bits:
            bits = self.fetch(...)
            one: Bits = bits.reshape(*bits.shape[:axis], -1, *bits.shape[axis + 2 :])[index]
            return one

        span = Span(start, start + count * width)
        index = (*self.index[:axis], span, *self.index[axis + 2 :])
        return replace(self, index=index, fetch=fetch)

    def exchanged(self) -> DeviceShard:
        """The shard with its first two axes the other way round."""
        first, second, *others = self.index
        shape = tuple(map(len, self.index))
        return replace(
            self, index=(second, first, *others),
            held=replace(self.held, exchanged=shape) if self.held else None,
            fetch=lambda index: self.fetch(...).swapaxes(0, 1)[index],
        )  # fmt: skip

    def lifted(self) -> DeviceShard:
        """The shard with an axis of size 1 before all others."""
        return replace(
            self, index=(Span(0, 1), *self.index), fetch=lambda index: self.fetch(...)[None][index]
        )


class _Holding(NamedTuple):
    """A shard that holds some of a rectangle: where in the shard, where in it; None for all."""

    shard: DeviceShard
    within: tuple[slice, slice]
    there: tuple[slice, slice] | None


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the mesh: name, safetensors dtype, global shape, shards."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: tuple[DeviceShard, ...]

    def rectangle(self, expert: int, rows: Span, columns: Span) -> Bits:
        """The bits of one expert's rectangle of a [E, rows, columns] tensor, from its shards.

        A view of the one shard that holds it all, where there is one. Replicas are read once.
        """
        out: Bits | None = None
        for shard, within, there in self._holding(rows, columns):
            experts = shard.index[0]
            if not experts.start <= expert < experts.stop:
                continue
            part = shard.fetch(expert - experts.start)[within]
            if there is None:
                return part
            if out is None:
                out = self._zeros(rows, columns)
            out[there] = part
        return self._zeros(rows, columns) if out is None else out

    def _holding(self, rows: Span, columns: Span) -> list[_Holding]:
        """The shards that hold some of a rectangle, found once for all experts."""
        if (found := self._found.get((rows, columns))) is None:
            found = self._found[rows, columns] = list(self._search(rows, columns))
        return found

    def _search(self, rows: Span, columns: Span) -> Iterator[_Holding]:
        for shard in self.distinct_shards:
            _, own_rows, own_columns = shard.index
            down, across = rows.overlap(own_rows), columns.overlap(own_columns)
            if down and across:
                whole = (down, across) == (rows, columns)
                there = None if whole else (down.within(rows), across.within(columns))
                yield _Holding(shard, (down.within(own_rows), across.within(own_columns)), there)

    @cached_property
    def _found(self) -> dict[tuple[Span, Span], list[_Holding]]:
        return {}

    def _zeros(self, rows: Span, columns: Span) -> Bits:
        return np.zeros((len(rows), len(columns)), dtype=bits_dtype(self.dtype))

    def folded(self) -> DeviceTensor:
        """The tensor as [E, rows, columns]: axes between the first and the last count as one.

        Itself where a shard cuts one of those axes, and it is not the only one that is longer than
        one: no packing does that, and the shape tells.
        """
        middle = self.shape[1:-1]
        whole = sum(size > 1 for size in middle) < 2 or all(
            tuple(map(len, shard.index[1:-1])) == middle for shard in self.shards
        )
        if len(middle) < 2 or not whole:
            return self
        shape = (self.shape[0], math.prod(middle), self.shape[-1])
        return replace(self, shape=shape, shards=tuple(s.folded() for s in self.shards))

    def flattened(self) -> DeviceTensor:
        """The tensor as [E, numbers]: all axes but the first count as one.

        Itself where shards would be no runs of that axis: no packing does that, and the shape
        tells.
        """
        axes = range(1, len(self.shape))
        cut = {a for s in self.shards for a in axes if len(s.index[a]) != self.shape[a]}
        long = {axis for axis in axes if self.shape[axis] > 1}
        if len(axes) < 2 or (cut and (len(long) > 1 or cut != long)):
            return self
        shape = (self.shape[0], math.prod(self.shape[1:]))
        return replace(self, shape=shape, shards=tuple(s.flattened() for s in self.shards))

    def merged(self, axis: int) -> DeviceTensor:
        """The tensor with ``axis`` and the next, heads and their width, as one; see the shards'.

        Itself where it has too few axes, or a shard cuts both: the shape tells.
        """
        if len(self.shape) < axis + 2:
            return self
        shards = [shard.merged(axis, self.shape) for shard in self.shards]
        whole = tuple(shard for shard in shards if shard is not None)
        if len(whole) < len(shards):
            return self
        length = self.shape[axis] * self.shape[axis + 1]
        shape = (*self.shape[:axis], length, *self.shape[axis + 2 :])
        return replace(self, shape=shape, shards=whole)

    def exchanged(self) -> DeviceTensor:
        """The tensor with its first two axes the other way round; itself where it has fewer."""
        if len(self.shape) < 2:
            return self
        first, second, *others = self.shape
        shards = tuple(shard.exchanged() for shard in self.shards)
        return replace(self, shape=(second, first, *others), shards=shards)

    def lifted(self) -> DeviceTensor:
        """The tensor with an axis of size 1 before all others."""
        shards = tuple(shard.lifted() for shard in self.shards)
        return replace(self, shape=(1, *self.shape), shards=shards)

    def holder(self, expert: int, row: int, column: int) -> DeviceShard | None:
        """The first shard that holds one element."""
        return next(
            (s for s in self.shards if _contains(s.index, (expert, row, column))),
            None,
        )

    @cached_property
    def distinct_shards(self) -> tuple[DeviceShard, ...]:
        """Every part of the tensor once, as the first device holds it."""
        first: dict[tuple[Span, ...], DeviceShard] = {}
        for shard in self.shards:
            first.setdefault(shard.index, shard)
        return tuple(first.values())


def _contains(index: tuple[Span, ...], at: tuple[int, ...]) -> bool:
    return all(i in span for span, i in zip(index, at, strict=True))


@dataclass(frozen=True)
class DevicePart:
    """The expert arrays of one part of the stack, and those nobody asked for.

    Attributes:
        layers: layer number to its arrays.
        unknown: names of expert arrays that are neither of gate and up nor of down.
        mesh: device names in the order of the mesh axis that experts are sharded over.
        scales: layer number to the scales of its arrays; those count as unknown, too, where
            nothing is quantised.
        local: of ``mesh``, the devices this process addresses; None for all.
        others: layer number to all further arrays, by the end of their names.
    """

    layers: Mapping[int, Mapping[Parameter, DeviceTensor]]
    unknown: tuple[str, ...]
    mesh: tuple[str, ...]
    scales: Mapping[int, Mapping[Parameter, DeviceTensor]] = field(default_factory=dict)
    local: frozenset[str] | None = None
    others: Mapping[int, Mapping[str, DeviceTensor]] = field(default_factory=dict)


def device_part(
    tensors: Iterable[DeviceTensor],
    mesh: tuple[str, ...],
    local: frozenset[str] | None = None,
    *,
    module: str,
) -> DevicePart:
    """Pick the expert arrays out of a model's parameters, by upstream's names.

    Up to 0.25 they are called ``…mlp.experts.w13_weight``, from 0.26 on
    ``…mlp.experts.routed_experts.w13_weight``. What lies elsewhere is left to the comparison of
    parameters.

    Args:
        tensors: the model's parameters without those that its family describes
            (:func:`is_of_experts`).
        mesh: device names in mesh order.
        local: of those, the ones this process addresses; None for all.
        module: what the family calls a layer's module of experts.
    """
    layers: dict[int, dict[Parameter, DeviceTensor]] = {}
    scales: dict[int, dict[Parameter, DeviceTensor]] = {}
    others: dict[int, dict[str, DeviceTensor]] = {}
    unknown = []
    for tensor in tensors:
        if not (match := _expert_parameter(module).search(tensor.name)):
            continue
        if parameter := parameter_called(match["parameter"]):
            layers.setdefault(int(match["layer"]), {})[parameter] = tensor.folded()
            continue
        unknown.append(tensor.name)
        weight = match["parameter"].removesuffix("_inv").removesuffix("_scale")
        if weight in set(Parameter):
            scales.setdefault(int(match["layer"]), {})[Parameter(weight)] = tensor
        else:
            others.setdefault(int(match["layer"]), {})[weight] = tensor
    return DevicePart(layers, tuple(unknown), mesh, scales, local, others)
