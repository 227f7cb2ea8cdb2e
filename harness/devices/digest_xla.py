"""The digest of :mod:`harness.devices.digest` by XLA, on the device where a shard lies.

Per shard one program: it reads the shard once in its own order and gives four words for each
expert and rectangle. A shard's rectangle adds its features' share; shares are added on the host.
JAX is imported when a program is first asked for, never by importing this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from harness.devices.digest import LANES, Words, keys, mixed, turned, weights, words_of
from harness.devices.digest_triton import column_sums, fits
from harness.devices.expert_layout import Span

_BITS = {1: "uint8", 2: "uint16", 4: "uint32"}


@dataclass(frozen=True)
class Rectangle:
    """A part of a shard [E, rows, columns] that holds whole hidden axes of one projection.

    Attributes:
        rows: rows of the shard.
        columns: columns of the shard.
        hidden_axis: 0 where rows are hidden features, 1 where columns are.
        first: the first intermediate feature it holds.
        width: F, all intermediate features of the matrix.
    """

    rows: Span
    columns: Span
    hidden_axis: int
    first: int
    width: int


def shares(array: Any, rectangles: tuple[Rectangle, ...]) -> Any:
    """What each rectangle adds to the digest of each expert; started, not waited for.

    Args:
        array: a ``jax.Array`` on one device, [E, …, columns], of 1 to 4 bytes an element; axes
            between the first and the last count as one, rows.
        rectangles: what to sum up.

    Returns:
        a ``jax.Array``, uint32 [rectangles, E, 4], on the same device.
    """
    import jax

    device = array.device
    tables = [
        tuple(jax.device_put(table, device) for table in _tables(rectangle, array.itemsize))
        for rectangle in rectangles
    ]
    return _program(rectangles, device.platform)(array, tables)


def any_set(array: Any, rectangles: tuple[tuple[Span, Span], ...]) -> Any:
    """Whether any bit is set in ``(rows, columns)`` of each expert, bool [rectangles, E]."""
    return np.asarray(_any_program(rectangles)(array))


@cache
def _any_program(rectangles: tuple[tuple[Span, Span], ...]) -> Any:
    import jax
    import jax.numpy as jnp

    def program(array: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
        bits = bits.reshape(bits.shape[0], -1, bits.shape[-1])
        parts = [bits[:, rows.as_slice(), columns.as_slice()] for rows, columns in rectangles]
        return jnp.stack([(part != 0).any(axis=(1, 2)) for part in parts])

    return jax.jit(program)


def _tables(rectangle: Rectangle, itemsize: int) -> tuple[Words, Words]:
    """The factors of the words and the keys of the rectangle's intermediate features."""
    sizes = (len(rectangle.rows), len(rectangle.columns))
    features = sizes[1 - rectangle.hidden_axis]
    part = keys(rectangle.width)[:, rectangle.first : rectangle.first + features]
    return weights(words_of(sizes[rectangle.hidden_axis], itemsize)), part


#: Axes along which XLA reduces several operands at once well, and those for which there is a kernel
#: of ours, by what XLA calls the devices (docs/speed.md has the rates of each).
_TOGETHER: dict[str, tuple[int, ...]] = {"cpu": (1, 2), "gpu": (2,)}
_BY_KERNEL: dict[str, tuple[int, ...]] = {"gpu": (1,)}


@cache
def _program(rectangles: tuple[Rectangle, ...], platform: str) -> Any:
    """The program for devices of ``platform``."""
    import jax
    import jax.numpy as jnp

    def program(array: Any, tables: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
        bits = bits.reshape(bits.shape[0], -1, bits.shape[-1])
        return jnp.stack(
            [_share(bits, r, w, k, platform) for r, (w, k) in zip(rectangles, tables, strict=True)]
        )

    return jax.jit(program)


def _share(bits: Any, rectangle: Rectangle, factors: Any, part: Any, platform: str) -> Any:
    """Both levels over one rectangle of [E, rows, columns], uint32 [E, 4]."""
    import jax.numpy as jnp

    sums = _sums(bits, rectangle, factors, platform)
    words = mixed(sums + part[:, None])
    return jnp.sum(words, axis=2, dtype=np.uint32).T


def _sums(bits: Any, rectangle: Rectangle, factors: Any, platform: str) -> Any:
    """The first level of a rectangle, uint32 [4, E, features].

    Four operands are reduced together where XLA is good at that, one by one elsewhere.
    """
    import jax.numpy as jnp
    from jax import lax

    axis = 1 + rectangle.hidden_axis
    rows, columns = rectangle.rows.as_slice(), rectangle.columns.as_slice()
    if axis in _BY_KERNEL.get(platform, ()) and fits(bits[:, rows].shape, bits.dtype.itemsize):
        return column_sums(bits[:, rows], factors)[:, :, columns].transpose(1, 0, 2)
    z = turned(_words(bits[:, rows, columns], axis))
    shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
    products = [z * factors[lane].reshape(shape) for lane in range(LANES)]
    if axis in _TOGETHER.get(platform, ()):
        return jnp.stack(lax.reduce(products, [np.uint32(0)] * LANES, _added, (axis,)))
    return jnp.stack([jnp.sum(product, axis=axis, dtype=np.uint32) for product in products])


def _words(bits: Any, axis: int) -> Any:
    """The elements along ``axis``, taken together to words of 32 bits, the first lowest."""
    import jax.numpy as jnp
    from jax import lax

    itemsize = bits.dtype.itemsize
    each = 4 // itemsize
    if missing := -bits.shape[axis] % each:
        widths = [(0, missing if number == axis else 0) for number in range(3)]
        bits = jnp.pad(bits, widths)
    split = bits.reshape(*bits.shape[:axis], -1, each, *bits.shape[axis + 1 :])
    if each == 1:
        return bits
    if axis == 2:
        return lax.bitcast_convert_type(split, np.uint32)
    pieces = split.astype(np.uint32)
    words = pieces.take(0, axis=axis + 1)
    for number in range(1, each):
        words |= pieces.take(number, axis=axis + 1) << (8 * itemsize * number)
    return words


def _added(one: Any, other: Any) -> Any:
    return tuple(a + b for a, b in zip(one, other, strict=True))
