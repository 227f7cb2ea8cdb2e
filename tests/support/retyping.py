"""Checkpoints whose tensors are of other types: their bytes relabelled, or their values cast.

Casts are numpy's and ml_dtypes', so that they and :func:`harness.base.bits.converted` check each
other.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from harness.families.model_checkpoint import ModelCheckpoint

NUMPY: dict[str, npt.DTypeLike] = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "I8": np.int8, "I16": np.int16, "I32": np.int32,
    "I64": np.int64, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
    "BOOL": np.bool_,
}  # fmt: skip

Tensors = Mapping[str, str]
_Fields = dict[str, Any]


def relabelled(path: Path, out: Path, dtypes: Tensors) -> Path:
    """A copy whose headers give other types, of equal width, to the tensors that fit a pattern."""

    def change(fields: _Fields, data: bytes, dtype: str) -> bytes:
        fields["dtype"] = dtype
        return data

    return _rewritten(path, out, dtypes, change)


def cast(path: Path, out: Path, dtypes: Tensors, *, exact: bool = False) -> Path:
    """A copy that stores the tensors which fit a pattern in another type.

    Not ``exact``: with bits below bf16's last place in a wider one.
    """

    def change(fields: _Fields, data: bytes, dtype: str) -> bytes:
        values = np.frombuffer(data, NUMPY[fields["dtype"]])
        fields["dtype"] = dtype
        with np.errstate(over="ignore", invalid="ignore"):
            made = values.astype(np.float64).astype(NUMPY[dtype])
        if dtype in ("F32", "F64") and not exact:  # less than half of bf16's last place
            made = np.where(np.abs(made) > 1e-30, made * (1 + made.dtype.type(2**-11)), made)
        return made.astype(NUMPY[dtype]).tobytes()

    return _rewritten(path, out, dtypes, change)


def overwrite(path: Path, name: str, data: bytes) -> None:
    """Write other bytes, as many, in a tensor's place."""
    entry = ModelCheckpoint(path).entries[name]
    with (path / entry.file.name).open("r+b") as file:
        file.seek(entry.offset)
        file.write(data)


def _rewritten(
    path: Path, out: Path, dtypes: Tensors, change: Callable[[_Fields, bytes, str], bytes]
) -> Path:
    shutil.copytree(path, out)
    unused = set(dtypes)
    for file in out.glob("*.safetensors"):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
        made = b""
        for name, fields in header.items():
            if name == "__metadata__":
                continue
            bits = data[slice(*fields["data_offsets"])]
            for pattern, dtype in dtypes.items():
                if re.fullmatch(pattern, name):
                    bits = change(fields, bits, dtype)
                    unused.discard(pattern)
            fields["data_offsets"] = [len(made), len(made) + len(bits)]
            made += bits
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + made)
    assert not unused, f"no tensor fits {unused}"
    return out
