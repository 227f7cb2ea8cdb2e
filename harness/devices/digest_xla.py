"""The digest of :mod:`harness.devices.digest` by XLA, on the device where a shard lies.

One program for all that a device is asked at once: it reads each shard once in its own order, and
gives four words for each expert and rectangle, or for each feature. What shards add to a digest is
added up on the host. JAX is imported when a program is first asked for, never by importing this
file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from harness.devices.digest import LANES, Words, keys, mixed, turned, weights, words_of
from harness.devices.digest_triton import column_sums, fits
from harness.devices.programs import AnySet, FeatureSums, Programs, Question, Rectangle, Shares

_BITS = {1: "uint8", 2: "uint16", 4: "uint32"}


class XlaPrograms(Programs):
    """Programs of XLA; arrays are ``jax.Array``s, each on one device."""

    def start(self, asked: Sequence[tuple[Any, Question]]) -> Callable[[], Words]:
        """See :meth:`Programs.start`."""
        arrays = [array for array, _ in asked]
        questions = tuple(question for _, question in asked)
        device = arrays[0].device
        tables = [tables_of(q, array.itemsize, device) for array, q in asked]
        words = program(questions, device.platform)(arrays, tables)
        words.copy_to_host_async()
        return lambda: np.asarray(words)


@lru_cache(256)
def tables_of(question: Question, itemsize: int, device: Any) -> tuple[tuple[Any, Any], ...]:
    """For each sum: the factors of its words, and the keys of its features; on the device."""
    import jax

    match question:
        case Shares():
            made = [_of_rectangle(r, itemsize) for r in question.rectangles]
        case FeatureSums():
            made = [(_of_features(question, itemsize), np.zeros(0, np.uint32))]
        case AnySet():
            made = []
    return tuple((jax.device_put(w, device), jax.device_put(k, device)) for w, k in made)


def _of_rectangle(rectangle: Rectangle, itemsize: int) -> tuple[Words, Words]:
    """The factors of the words and the keys of the rectangle's intermediate features."""
    sizes = (len(rectangle.rows), len(rectangle.columns))
    features = sizes[1 - rectangle.hidden_axis]
    part = keys(rectangle.width)[:, rectangle.first : rectangle.first + features]
    return weights(words_of(sizes[rectangle.hidden_axis], itemsize)), part


def _of_features(question: FeatureSums, itemsize: int) -> Words:
    count = words_of(question.sizes[1 - question.features_axis], itemsize)
    return weights(question.first + count)[:, question.first :]


#: Axes along which XLA reduces several operands at once well, and those for which there is a kernel
#: of ours, by what XLA calls the devices (docs/speed.md has the rates of each).
_TOGETHER: dict[str, tuple[int, ...]] = {"cpu": (1, 2), "gpu": (2,)}
_BY_KERNEL: dict[str, tuple[int, ...]] = {"gpu": (1,)}


@lru_cache(1024)
def program(questions: tuple[Question, ...], platform: str) -> Any:
    """The program for devices of ``platform``: all answers as one array of words."""
    import jax
    import jax.numpy as jnp

    def answers(arrays: Any, tables: Any) -> Any:
        asked = zip(arrays, questions, tables, strict=True)
        return jnp.concatenate([_answer(a, q, t, platform).ravel() for a, q, t in asked])

    return jax.jit(answers)


def _answer(array: Any, question: Question, tables: Any, platform: str) -> Any:
    """What is asked of one array, uint32 in the question's shape."""
    import jax
    import jax.numpy as jnp

    bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
    if isinstance(question, FeatureSums):
        ((factors, _),), axis = tables, 1 - question.features_axis
        return _sums(question.matrix(bits)[None], axis, factors, platform)[:, 0]
    bits = bits.reshape(bits.shape[0], -1, bits.shape[-1])
    if not question.rectangles:
        return jnp.zeros(question.shape, np.uint32)
    if isinstance(question, AnySet):
        parts = [bits[:, r.as_slice(), c.as_slice()] for r, c in question.rectangles]
        return jnp.stack([(part != 0).any(axis=(1, 2)) for part in parts]).astype(np.uint32)
    rectangles = zip(question.rectangles, tables, strict=True)
    return jnp.stack([_share(bits, r, w, k, platform) for r, (w, k) in rectangles])


def _share(bits: Any, rectangle: Rectangle, factors: Any, part: Any, platform: str) -> Any:
    """Both levels over one rectangle of [E, rows, columns], uint32 [E, 4]."""
    import jax.numpy as jnp

    rows, columns = rectangle.rows.as_slice(), rectangle.columns.as_slice()
    axis, height = rectangle.hidden_axis, len(rectangle.rows)
    if _has_kernel((bits.shape[0], height, bits.shape[2]), bits.dtype.itemsize, axis, platform):
        # of whole rows: what lies beside the columns costs less than to copy them
        sums = _sums(bits[:, rows], axis, factors, platform)[:, :, columns]
    else:
        sums = _sums(bits[:, rows, columns], axis, factors, platform)
    words = mixed(sums + part[:, None])
    return jnp.sum(words, axis=2, dtype=np.uint32).T


def _has_kernel(shape: tuple[int, ...], itemsize: int, axis: int, platform: str) -> bool:
    return 1 + axis in _BY_KERNEL.get(platform, ()) and fits(shape, itemsize)


def _sums(bits: Any, hidden_axis: int, factors: Any, platform: str) -> Any:
    """The first level of matrices [E, rows, columns], uint32 [4, E, features].

    Four operands are reduced together where XLA is good at that, one by one elsewhere.
    """
    import jax.numpy as jnp
    from jax import lax

    if _has_kernel(bits.shape, bits.dtype.itemsize, hidden_axis, platform):
        return column_sums(bits, factors).transpose(1, 0, 2)
    axis = 1 + hidden_axis
    z = turned(_words(bits, axis))
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
