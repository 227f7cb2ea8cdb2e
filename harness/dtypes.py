"""Element types as the safetensors format names them, and the raw bits they are compared as.

The reference and the device are compared as unsigned integers of the element's width, so that
NaN payloads, the sign of zero and fp8 codes count like any other bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.unsignedinteger]
"""An array of raw element bits: uint8, uint16, uint32 or uint64."""

_BITS_OF_WIDTH: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}

#: Bytes an element takes, by safetensors dtype name (safetensors 0.8, ``Dtype::bitsize``).
ITEMSIZE: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

#: The same types as numpy and JAX (ml_dtypes) name them.
FROM_ARRAY_NAME: dict[str, str] = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16", "int16": "I16", "float16": "F16", "bfloat16": "BF16",
    "uint32": "U32", "int32": "I32", "float32": "F32",
    "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip


def bits_dtype(dtype: str) -> np.dtype[np.unsignedinteger]:
    """The unsigned integer type as wide as an element of the safetensors type ``dtype``."""
    return _BITS_OF_WIDTH[ITEMSIZE[dtype]]


def as_hex(value: int, dtype: str) -> str:
    """``value`` as the fixed-width hexadecimal bit pattern of one element, ``0x3f80``."""
    return f"0x{value:0{2 * ITEMSIZE[dtype]}x}"
