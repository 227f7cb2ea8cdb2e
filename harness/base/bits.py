"""Element types as the safetensors format names them, and the raw bits they are compared as.

The reference and the device are compared as unsigned integers of the element's width, so that
NaN payloads, the sign of zero and fp8 codes count like any other bit. What a type means is asked
where the loader converts: there the device is to hold the conversion of the checkpoint's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.bounds import shown
from harness.base.errors import BadInput

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

#: Names of the types that codes of quantised weights have on a device; ``F8_E4M3`` and ``I8`` are
#: safetensors', the others have a byte for each code here, of which the lower four bits count.
F8_E4M3, F4_E2M1 = "F8_E4M3", "F4_E2M1"
I8, I4, U4 = "I8", "I4", "U4"
ON_DEVICES: dict[str, str] = {"int4": I4, "uint4": U4, "float4_e2m1fn": F4_E2M1}

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
    return _BITS_OF_WIDTH[itemsize(dtype)]


def itemsize(dtype: str) -> int:
    """Bytes an element takes, in a file or as it is read back from a device."""
    return 1 if dtype in ON_DEVICES.values() else ITEMSIZE[dtype]


def as_hex(value: int, itemsize: int) -> str:
    """``value`` as the fixed-width hexadecimal bit pattern of one element, ``0x3f80``."""
    return f"0x{value:0{2 * itemsize}x}"


def _e4m3() -> npt.NDArray[np.float32]:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -value, value).astype(np.float32)


#: The value of every code of F8_E4M3 ("fn": no infinities, 0x7f and 0xff are NaN).
E4M3: npt.NDArray[np.float32] = _e4m3()

_SIGNED = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def converted(bits: Bits, dtype: str, target: str) -> Bits:
    """The bits of ``target`` that a copy into a parameter of that type makes of a tensor's.

    vLLM's weight loaders copy with torch's ``Tensor.copy_``, which goes by way of f32 (c10
    ``TypeCast.h``, ``BFloat16.h`` and ``Half.h``) and rounds to the nearest, to even on a tie: so
    an F64 is rounded twice. Subnormals are kept, what is too large becomes infinite. Between equal
    types, and from BF16 to F32, every bit is kept.

    Any other NaN becomes the one IEEE 754 advises (6.2.3): quiet, with its sign and the leading
    bits of its payload. torch does not settle on one: 2.9.0 on x86 makes 0xffff of an F32 NaN in
    contiguous memory, and 0x7fc0 elsewhere. Such a NaN is a difference, and named.

    Args:
        bits: raw bits of ``dtype``.
        dtype: the tensor's safetensors dtype.
        target: the parameter's: ``dtype`` itself, ``F32``, ``BF16`` or ``F16``.

    Raises:
        ValueError: no parameter is made in ``target``.
    """
    if dtype == target:
        return bits
    if target == "F32":
        return _as_f32(bits, dtype)
    if target == "BF16":
        return _f32_as_bf16(_as_f32(bits, dtype))
    if target == "F16":
        return _f32_as_f16(_as_f32(bits, dtype))
    raise ValueError(f"no conversion from {dtype} to {target}")


def is_nan(bits: Bits, dtype: str) -> npt.NDArray[np.bool_]:
    """Which elements are NaN."""
    return np.asarray((_as_f32(bits, dtype) & 0x7FFF_FFFF) > 0x7F80_0000)


def _as_f32(bits: Bits, dtype: str) -> Bits:
    """f32 bits of the values; exact but for F64 and integers of 32 bits and more."""
    if dtype == "F32":
        return bits
    if dtype == "BF16":
        return bits.astype("<u4") << np.uint32(16)
    if dtype == "F8_E5M2":  # the upper half of an F16
        bits, dtype = bits.astype("<u2") << np.uint16(8), "F16"
    if dtype == "F8_E8M0":  # an exponent alone; the least is a subnormal
        wide = bits.astype("<u4")
        exponent = np.where(wide == 0, np.uint32(0x0040_0000), wide << np.uint32(23))
        return np.where(wide == 0xFF, np.uint32(0x7FC0_0000), exponent)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found: Bits = _values(bits, dtype).astype("<f4").view("<u4")
    if dtype in ("F16", "F64"):  # numpy leaves a signalling NaN to the processor
        found |= ((found & 0x7FFF_FFFF) > 0x7F80_0000).astype("<u4") << np.uint32(22)
    return found


def _values(bits: Bits, dtype: str) -> npt.NDArray[Any]:
    """The values that numpy has a type for, or that are in the table."""
    if dtype == "F8_E4M3":
        return E4M3[bits]
    if dtype == "BOOL":
        is_set: npt.NDArray[Any] = bits != 0
        return is_set
    numpy_dtype = {"F16": "<f2", "F64": "<f8"} | _SIGNED
    return bits.view(numpy_dtype[dtype]) if dtype in numpy_dtype else bits


def _f32_as_bf16(wide: Bits) -> Bits:
    rounded = wide >> np.uint32(16)
    rounded &= 1
    rounded += 0x7FFF
    rounded += wide  # a carry out of the top is a NaN's
    rounded >>= 16
    nan = (wide & 0x7FFF_FFFF) > 0x7F80_0000
    if nan.any():
        rounded[nan] = (wide[nan] >> np.uint32(16)) | 0x40
    return rounded.astype("<u2")


def _f32_as_f16(wide: Bits) -> Bits:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded: Bits = wide.view("<f4").astype("<f2").view("<u2")
    nan = (wide & 0x7FFF_FFFF) > 0x7F80_0000
    if nan.any():
        payload = (wide[nan] >> np.uint32(13)) & 0x3FF
        rounded[nan] = ((wide[nan] >> np.uint32(16)) & 0x8000) | 0x7E00 | payload
    return rounded


_STATED = {
    "bfloat16": "BF16", "float16": "F16", "half": "F16",
    "float32": "BF16", "float": "BF16", "float64": "BF16", "double": "BF16",
}  # fmt: skip


def model_dtype(config: Mapping[str, Any], stored: Iterable[str], where: str) -> str:
    """The type a model's parameters are made in: ``BF16`` or ``F16``.

    vLLM takes ``dtype`` of config.json, or of its parts, or, where none states one, of the tensors
    (``transformers_utils/model_arch_config_convertor.py``, ``get_torch_dtype``), and makes BF16 of
    whatever is wider (``config/model.py``, ``_resolve_auto_dtype``; TPUs and CPUs prefer BF16).

    Args:
        config: the content of config.json.
        stored: the dtypes of the checkpoint's tensors.
        where: config.json is, for the error.

    Raises:
        BadInput: config.json states a type that no model is made in.
    """
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if not isinstance(part, Mapping):
            continue
        stated = part.get("dtype")
        stated = part.get("torch_dtype") if stated is None else stated  # transformers 4
        if stated is None:
            continue
        if isinstance(stated, str) and (found := _STATED.get(stated)):
            return found
        raise BadInput(
            f"dtype is {shown(stated)}",
            where=where,
            expected="one of " + ", ".join(_STATED),
            hint="the config.json of the published model",
        )
    return "F16" if {"BF16", "F16", "F32", "F64"} & set(stored) == {"F16"} else "BF16"


class Nan(StrEnum):
    """How the reference's NaNs count.

    - ``payload``: like any other bits.
    - ``canonical``: as the quiet NaN of their sign, 0x7fc0 or 0xffc0. That is the exact effect of
      the bf16 -> f32 -> bf16 way to the device (torchax ``ops/mappings.py``, ``t2j``), and the
      only change of values this harness admits.
    """

    PAYLOAD = "payload"
    CANONICAL = "canonical"


def canonical_nans(bits: Bits) -> Bits:
    """bf16 bits with every NaN replaced by the quiet NaN of its sign; the rest untouched."""
    nan = (bits & 0x7FFF) > 0x7F80
    return np.where(nan, (bits & 0x8000) | 0x7FC0, bits).astype(bits.dtype)
