"""Values made to be told apart: seeded, distinct in every slice, with bf16's corners in each.

A slice's bits are a window into one seeded pool, XORed chunk by chunk with a key hashed from
(seed, tensor, expert, chunk). That costs a memory pass, so that checkpoints are written at disk
speed, and any slice can be made again alone. The pool holds no exponent 0xff and a key touches
only signs and mantissas, so NaN never arises by accident; infinities come as planted corners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from harness.base.errors import BadInput

Bf16Bits = npt.NDArray[np.uint16]

_POOL_ELEMENTS = 1 << 22
_CHUNK_ELEMENTS = 1 << 20
_EXPONENT = np.uint16(0x7F80)
_KEY_MASK = 0x807F_807F_807F_807F
_MAX_SEED = 2**63
_RUNS = 32
_SPREAD = 0x9E37_79B9_7F4A_7C15  # 2**64 over the golden ratio

#: +inf, -inf, -0.0, +0.0, least and greatest subnormals of both signs, least normal, max, -max.
CORNERS: tuple[int, ...] = (
    0x7F80, 0xFF80, 0x8000, 0x0000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x7F7F, 0xFF7F,
)  # fmt: skip

#: Quiet and signalling NaNs with payloads that a canonicalising cast would rewrite.
NAN_PAYLOADS: tuple[int, ...] = (0x7F81, 0x7FFF, 0xFF81, 0xFFC1, 0x7FC0, 0xFFC0)


class Values(StrEnum):
    """Which special values a slice holds besides random ones."""

    CORNERS = "corners"
    NAN_PAYLOADS = "nan-payloads"


class SliceValues:
    """Makes the bf16 bits of any slice of a checkpoint from the seed alone.

    Args:
        seed: 0 <= seed < 2**63.
        values: ``corners``, or ``nan-payloads`` for the corners and NaNs with payloads.

    Raises:
        BadInput: the seed is out of range.
    """

    def __init__(self, seed: int, values: Values = Values.CORNERS) -> None:
        if not 0 <= seed < _MAX_SEED:
            raise BadInput(
                f"seed {seed}", where="--seed", expected="0 <= seed < 2**63", hint="--seed 0"
            )
        self._seed = seed
        self._planted = np.array(
            CORNERS + (NAN_PAYLOADS if values is Values.NAN_PAYLOADS else ()), dtype="<u2"
        )
        self._pool = _pool(seed)

    def chunks(self, tensor: str, count: int, expert: int | None = None) -> Iterator[Bf16Bits]:
        """Yield the elements of one tensor, or of one expert's slice of a fused tensor.

        Args:
            tensor: the tensor's name in the checkpoint.
            count: number of elements.
            expert: index on the fused tensor's first axis, None for a whole tensor.

        Yields:
            uint16 bit patterns, shape [n], n <= 2**20, ``count`` in all. The special values
            stand in the first of them.
        """
        for chunk, start in enumerate(range(0, count, _CHUNK_ELEMENTS)):
            out = np.empty(min(_CHUNK_ELEMENTS, count - start), dtype="<u2")
            self._fill(out, f"{tensor}\0{expert}\0{chunk}")
            if chunk == 0:
                self._plant(out, f"{tensor}\0{expert}\0corners")
            yield out

    def _fill(self, out: Bf16Bits, identity: str) -> None:
        key, place = self._hash(identity)
        lanes = np.array([key & _KEY_MASK], dtype="<u8").view("<u2")
        start = 4 * (place % ((_POOL_ELEMENTS - _CHUNK_ELEMENTS) // 4))
        whole = out.size - out.size % 4
        source = self._pool[start : start + out.size]
        np.bitwise_xor(source[:whole].view("<u8"), lanes.view("<u8"), out=out[:whole].view("<u8"))
        out[whole:] = source[whole:] ^ lanes[: out.size - whole]

    def _plant(self, out: Bf16Bits, identity: str) -> None:
        """Write the special values into ``out`` many times over, as runs of all of them.

        A fused slice holds gate and up, by rows or by columns: runs all over it reach both.
        """
        planted = self._planted[: out.size // 2]
        stride = max(out.size // _RUNS, 2 * planted.size, 1)
        _, place = self._hash(identity)
        for run, start in enumerate(range(0, out.size - stride + 1, stride)):
            # Spread within each stride, lest a stride of whole rows hits the same columns always.
            at = start + (place + run * _SPREAD) % (1 << 64) % (stride - planted.size + 1)
            out[at : at + planted.size] = planted

    def _hash(self, identity: str) -> tuple[int, int]:
        digest = hashlib.blake2b(f"{self._seed}\0{identity}".encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _pool(seed: int) -> Bf16Bits:
    # random_raw is the stream numpy promises never to change; Generator methods are not.
    raw = np.random.PCG64(seed).random_raw(_POOL_ELEMENTS // 4).astype("<u8").view("<u2")
    not_finite = (raw & _EXPONENT) == _EXPONENT
    raw[not_finite] ^= np.uint16(0x4000)
    return raw
