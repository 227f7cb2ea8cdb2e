"""The first level of :mod:`harness.devices.digest` on a GPU where hidden features are rows.

XLA reads such an array once for each lane, since it does not fuse sums over rows; this kernel
reads it once. Sums over columns XLA does well itself (docs/speed.md has both rates).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from harness.devices.digest import LANES, turned

_COLUMNS = 128  # of a block; tpu-inference pads w13 to a multiple of it
_PAIRS = 8  # rows of words added up at a time


def fits(shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array [E, D, columns] divides into blocks."""
    return itemsize == 2 and shape[1] % (2 * _PAIRS) == 0 and shape[2] % _COLUMNS == 0


def column_sums(bits: Any, factors: Any) -> Any:
    """The sums of every column, uint32 [E, 4, columns].

    Args:
        bits: uint16 [E, D, columns], of which :func:`fits` holds.
        factors: uint32 [4, D / 2].
    """
    import jax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    experts, hidden, columns = bits.shape
    pairs = hidden // 2
    return pl.pallas_call(
        partial(_block, pairs),
        grid=(experts, columns // _COLUMNS),
        in_specs=[
            pl.BlockSpec((1, pairs, 2, _COLUMNS), lambda e, c: (e, 0, 0, c)),
            pl.BlockSpec((LANES, pairs), lambda e, c: (0, 0)),
        ],
        out_specs=pl.BlockSpec((1, LANES, _COLUMNS), lambda e, c: (e, 0, c)),
        out_shape=jax.ShapeDtypeStruct((experts, LANES, columns), np.uint32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
    )(bits.reshape(experts, pairs, 2, columns), factors)


def _block(pairs: int, bits: Any, factors: Any, out: Any) -> None:
    """One expert's block of columns: sums by row first, which cost no exchange between threads."""
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental import pallas as pl

    def step(number: Any, sums: Any) -> Any:
        rows = pl.ds(number * _PAIRS, _PAIRS)
        lower, upper = (bits[0, rows, half, :].astype(np.uint32) for half in (0, 1))
        z = turned(lower | (upper << 16))
        return tuple(sums[lane] + z * factors[lane, rows][:, None] for lane in range(LANES))

    zeros = tuple(jnp.zeros((_PAIRS, _COLUMNS), np.uint32) for _ in range(LANES))
    sums = lax.fori_loop(0, pairs // _PAIRS, step, zeros)
    for lane in range(LANES):
        out[0, lane, :] = jnp.sum(sums[lane], axis=0, dtype=np.uint32)
