"""What the device holds, as arrays of raw bits with their place on the mesh.

A tensor is seen through its shards: which device, which part of the whole, which bits. The bits of
one expert are fetched at a time, so host memory stays at an expert slice; on emulated devices
they are a view of the device's own memory. This file knows arrays only: jax is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.dtypes import FROM_ARRAY_NAME, Bits, bits_dtype
from harness.layout import Parameter, Span

_EXPERT_PARAMETER = re.compile(
    r"(?:^|\.)layers\.(?P<layer>\d+)\.mlp\.experts\.(?:routed_experts\.)?(?P<parameter>\w+)$"
)


@dataclass(frozen=True)
class DeviceShard:
    """One device's part of a tensor.

    Attributes:
        device: the device's name, ``cpu:3``.
        index: the part, as one span per axis of the whole tensor.
        expert_bits: gives the bits of one expert of this part, [rows, columns]; its argument
            counts experts from the part's first.
    """

    device: str
    index: tuple[Span, ...]
    expert_bits: Callable[[int], Bits]


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor [E, rows, columns] on the mesh: name, safetensors dtype, global shape, shards."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: tuple[DeviceShard, ...]

    def rectangle(self, expert: int, rows: Span, columns: Span) -> Bits:
        """The bits of one expert's rectangle, [rows, columns], gathered from the shards.

        A view of the one shard that holds it all, where there is one. Replicas are read once.
        """
        out = np.zeros((len(rows), len(columns)), dtype=bits_dtype(self.dtype))
        for shard in self._distinct_shards(expert):
            _, shard_rows, shard_columns = shard.index
            down, across = _overlap(rows, shard_rows), _overlap(columns, shard_columns)
            if not down or not across:
                continue
            part = self._bits(shard, expert)[
                _relative(down, shard_rows), _relative(across, shard_columns)
            ]
            if part.shape == out.shape:
                return part
            out[_relative(down, rows), _relative(across, columns)] = part
        return out

    def holder(self, expert: int, row: int, column: int) -> DeviceShard | None:
        """The first shard that holds one element."""
        return next(
            (s for s in self.shards if _contains(s.index, (expert, row, column))),
            None,
        )

    def _distinct_shards(self, expert: int) -> Iterable[DeviceShard]:
        seen = set()
        for shard in self.shards:
            if shard.index not in seen and shard.index[0].start <= expert < shard.index[0].stop:
                seen.add(shard.index)
                yield shard

    def _bits(self, shard: DeviceShard, expert: int) -> Bits:
        return shard.expert_bits(expert - shard.index[0].start)


def _overlap(one: Span, other: Span) -> Span | None:
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return Span(start, stop) if start < stop else None


def _relative(span: Span, origin: Span) -> slice:
    return slice(span.start - origin.start, span.stop - origin.start)


def _contains(index: tuple[Span, ...], at: tuple[int, ...]) -> bool:
    return all(span.start <= i < span.stop for span, i in zip(index, at, strict=True))


def from_jax(name: str, array: Any) -> DeviceTensor:
    """See a ``jax.Array`` as a :class:`DeviceTensor`; shards in order of device id."""
    dtype = FROM_ARRAY_NAME.get(str(array.dtype), str(array.dtype))
    shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
    return DeviceTensor(
        name=name,
        dtype=dtype,
        shape=tuple(array.shape),
        shards=tuple(_shard_from_jax(shard, array.shape, dtype) for shard in shards),
    )


def _shard_from_jax(shard: Any, shape: tuple[int, ...], dtype: str) -> DeviceShard:
    index = tuple(
        Span(*part.indices(size)[:2]) for part, size in zip(shard.index, shape, strict=True)
    )
    device = f"{shard.device.platform}:{shard.device.id}"

    def expert_bits(expert: int) -> Bits:
        if shard.device.platform == "cpu":
            data = np.asarray(shard.data)[expert]  # a view: CPU devices share the host's memory
        else:
            data = np.asarray(shard.data[expert])  # sliced on the device, so only it travels
        bits: Bits = data.view(bits_dtype(dtype))
        return bits

    return DeviceShard(device, index, expert_bits)


@dataclass(frozen=True)
class DevicePart:
    """The expert arrays of one part of the stack, and those nobody asked for.

    Attributes:
        layers: layer number to its arrays.
        unknown: names of expert arrays that are neither ``w13_weight`` nor ``w2_weight``.
        mesh: device names in the order of the mesh axis that experts are sharded over.
    """

    layers: Mapping[int, Mapping[Parameter, DeviceTensor]]
    unknown: tuple[str, ...]
    mesh: tuple[str, ...]


def device_part(
    tensors: Mapping[str, Any],
    mesh: tuple[str, ...],
    read: Callable[[str, Any], DeviceTensor] = from_jax,
) -> DevicePart:
    """Pick the expert arrays out of a model's parameters, by upstream's names.

    Up to 0.25 they are called ``…mlp.experts.w13_weight``, from 0.26 on
    ``…mlp.experts.routed_experts.w13_weight``.

    Args:
        tensors: parameter names to arrays.
        mesh: device names in mesh order.
        read: turns an array into a :class:`DeviceTensor`.
    """
    layers: dict[int, dict[Parameter, DeviceTensor]] = {}
    unknown = []
    for name, array in tensors.items():
        if not (match := _EXPERT_PARAMETER.search(name)):
            continue
        if match["parameter"] in set(Parameter):
            parameters = layers.setdefault(int(match["layer"]), {})
            parameters[Parameter(match["parameter"])] = read(name, array)
        else:
            unknown.append(name)
    return DevicePart(layers, tuple(unknown), mesh)
