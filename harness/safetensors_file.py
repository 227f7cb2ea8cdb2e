"""Reads one safetensors file: its header, checked, and the raw bits of its tensors.

The format: 8 bytes little-endian header length, that many bytes of JSON, then the data; offsets
in the header count from the data's start and cover it without hole or overlap (safetensors 0.8,
``Metadata::validate``). Read here by hand, so that the reference shares no code with the streamer
and so that each defect gets an error that names it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.dtypes import ITEMSIZE, Bits, bits_dtype
from harness.errors import BadInput

_MAX_HEADER = 100_000_000  # the limit of safetensors itself, MAX_HEADER_SIZE


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: ``offset`` counts bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def bits(self) -> Bits:
        """The tensor's bits, shape :attr:`shape`, mapped from the file and read when touched."""
        return np.memmap(
            self.file, dtype=bits_dtype(self.dtype), mode="r", offset=self.offset, shape=self.shape
        )


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of the safetensors file ``path``, by name.

    Raises:
        BadInput: the file is truncated, is no safetensors file, or its header does not fit it.
    """
    size = path.stat().st_size
    header, data_start = _read_header(path, size)
    entries = {
        name: _entry(path, name, fields, data_start)
        for name, fields in header.items()
        if name != "__metadata__"
    }
    _require_gapless(path, list(entries.values()), data_start, size)
    return entries


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _broken(
                path,
                f"its first 8 bytes announce a header of {length} bytes, the file has {size}",
                "a safetensors header that fits into the file",
            )
        encoded = file.read(length)
    try:
        header = json.loads(encoded)
    except ValueError as error:
        raise _broken(path, f"its header is not JSON: {error}", "a JSON object") from error
    if not isinstance(header, dict):
        raise _broken(path, f"its header is a JSON {type(header).__name__}", "a JSON object")
    return header, 8 + length


def _entry(path: Path, name: str, fields: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = fields["dtype"], tuple(map(_natural, fields["shape"]))
        start, end = map(_natural, fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(
            path,
            f"the header's entry of tensor {name!r} is malformed: {fields!r}",
            "dtype, shape and two data_offsets",
        ) from error
    if dtype not in ITEMSIZE:
        raise _broken(path, f"tensor {name!r} has dtype {dtype!r}", "one of " + ", ".join(ITEMSIZE))
    entry = TensorEntry(name, dtype, shape, path, data_start + start)
    if end - start != entry.nbytes:
        raise _broken(
            path,
            f"the header lies about tensor {name!r}: its data_offsets span {end - start} bytes",
            f"{entry.nbytes} bytes for {dtype} {list(shape)}",
        )
    return entry


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _require_gapless(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    end = data_start
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != end:
            raise _broken(
                path,
                f"tensor {entry.name!r} begins at byte {entry.offset}",
                f"byte {end}, where the tensor before it ends",
            )
        end += entry.nbytes
    if end != size:
        state = "truncated" if size < end else "too long"
        raise _broken(path, f"the file is {state}: {size} bytes", f"{end} bytes by its header")


def _broken(path: Path, what: str, expected: str) -> BadInput:
    return BadInput(
        f"broken safetensors file: {what}",
        where=str(path),
        expected=expected,
        hint="download or copy the file again and compare its checksum",
    )
