"""Sees JAX's arrays as :class:`DeviceTensor`; JAX is imported only to read back from a device."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from harness.base.bits import FROM_ARRAY_NAME, ITEMSIZE, ON_DEVICES, Bits, bits_dtype
from harness.devices.digest_xla import XlaPrograms
from harness.devices.expert_layout import Span
from harness.devices.programs import Askable
from harness.devices.tensors import DeviceShard, DeviceTensor

_PROGRAMS = XlaPrograms()
#: Types that programs take as words: not those of half a byte or of eight, nor truth values.
_DIGESTED = {name for name, nbytes in ITEMSIZE.items() if nbytes <= 4} - {"BOOL"}


def from_jax(name: str, array: Any, *, in_host_memory: bool) -> DeviceTensor:
    """See a ``jax.Array`` as a :class:`DeviceTensor`; shards in order of device id.

    Only the shards this process can address are seen. ``in_host_memory``: whether its devices
    share the host's memory, as CPU devices do.
    """
    held = str(array.dtype)
    dtype = (FROM_ARRAY_NAME | ON_DEVICES).get(held, held)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
    return DeviceTensor(
        name=name,
        dtype=dtype,
        shape=tuple(array.shape),
        shards=tuple(
            _shard_from_jax(shard, array.shape, dtype, in_host_memory) for shard in shards
        ),
    )


def _shard_from_jax(
    shard: Any, shape: tuple[int, ...], dtype: str, in_host_memory: bool
) -> DeviceShard:
    @cache
    def view() -> Bits:
        """The whole part where it lies, in the host's memory."""
        whole: Bits = np.asarray(shard.data).view(bits_dtype(dtype))
        return whole

    def read_back(index: Any) -> Bits:
        """A part, sliced on the device, so that only it travels.

        A JAX array keeps what was read back of it, ``addressable_data`` gives the same one at
        every call, and ``a[...]`` is ``a`` (0.10.2): hence a new array of the same memory each
        time. What was read goes when the caller drops it and JAX is called again.
        """
        import jax

        held = shard.data.addressable_data(0)
        again = jax.make_array_from_single_device_arrays(held.shape, held.sharding, [held])
        bits: Bits = np.asarray(again[index]).view(bits_dtype(dtype))
        return bits

    def fetch(index: Any) -> Bits:
        return view()[index] if in_host_memory else read_back(index)

    device = f"{shard.device.platform}:{shard.device.id}"
    return DeviceShard(
        device,
        spans(shard.index, shape),
        fetch,
        held=Askable(shard.data, _PROGRAMS) if dtype in _DIGESTED else None,
        in_host_memory=in_host_memory,
    )


def spans(index: Any, shape: tuple[int, ...]) -> tuple[Span, ...]:
    """An index of slices as spans; axes it leaves out are whole."""
    parts = [*index, *[slice(None)] * (len(shape) - len(index))]
    return tuple(Span(*part.indices(size)[:2]) for part, size in zip(parts, shape, strict=True))
