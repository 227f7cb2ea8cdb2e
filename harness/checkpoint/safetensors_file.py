"""Reads one safetensors file: its header, checked, and the raw bits of its tensors.

The format: 8 bytes little-endian header length, that many bytes of JSON, then the data; offsets
in the header count from the data's start and cover it without hole or overlap (safetensors 0.8,
``Metadata::validate``). Read here by hand, so that the reference shares no code with the streamer
and so that each defect gets an error that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.stores.location import File

#: Bytes of JSON that are parsed; safetensors itself takes headers of 100 MB (MAX_HEADER_SIZE). The
#: largest published index has some 20 MB, a header of a file below 1 MB.
MAX_JSON = 64 * 2**20
#: Values of JSON: numbers, texts, lists, objects. A tensor's entry has about ten. What Python makes
#: of each takes up to 300 bytes, however few the file needs for it.
_MAX_VALUES = 2**21
_MAX_NAME = 1000  # characters; published names have some 80
_MAX_AXES = 64  # numpy's own limit; published tensors have up to five
_MAX_DIGITS = 20  # of a number of 64 bits

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: ``offset`` counts bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: File
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def bits(self, index: Index = ()) -> Bits:
        """The tensor's bits, or those at ``index``, read when touched or by one range.

        Leading integers, and a slice without step after them, are taken in the file: nothing
        before or after is read. What is left of the index is applied to that. Of a tensor cut
        along its first axis alone, a store may read the neighbourhood along, for the next slices.
        """
        offset, shape, rest = self.offset, self.shape, index
        while rest and isinstance(rest[0], int):
            offset += rest[0] * math.prod(shape[1:]) * ITEMSIZE[self.dtype]
            shape, rest = shape[1:], rest[1:]
        if rest and isinstance(rest[0], slice) and rest[0].step is None:
            start, stop, _ = rest[0].indices(shape[0])
            offset += start * math.prod(shape[1:]) * ITEMSIZE[self.dtype]
            shape, rest = (max(stop - start, 0), *shape[1:]), (slice(None), *rest[1:])
        whole = bool(index) and isinstance(index[0], slice)
        within = (self.offset, self.offset + self.nbytes) if whole else None
        return np.asarray(
            self.file.bits(offset, self.dtype, shape, within)[rest]
        )  # of a scalar, too

    def stream(self, start: int, nbytes: int, buffer: Bits) -> Iterator[Bits]:
        """Bytes of the tensor from ``start`` on, in order; see :meth:`File.stream`."""
        within = (self.offset, self.offset + self.nbytes)
        return self.file.stream(self.offset + start, nbytes, buffer, within)


def read_entries(file: File) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name; two ranges of it are read.

    Raises:
        BadInput: the file is truncated, is no safetensors file, or its header does not fit it.
    """
    header, data_start = _read_header(file)
    _require_metadata(file, header.pop("__metadata__", {}))
    entries = {name: _entry(file, name, fields, data_start) for name, fields in header.items()}
    _require_gapless(file, list(entries.values()), data_start)
    return entries


def read_metadata(file: File) -> dict[str, str]:
    """The texts that a safetensors file has beside its tensors, by name.

    Raises:
        BadInput: as :func:`read_entries`.
    """
    header, _ = _read_header(file)
    metadata: dict[str, str] = header.get("__metadata__", {})
    _require_metadata(file, metadata)
    return metadata


def parsed_json(encoded: bytes) -> dict[str, Any]:
    """A JSON object, strictly: no name twice, no NaN, no number beyond 64 bits, UTF-8.

    Takes less than 512 MiB and 2 s, whatever stands in it: what costs more is refused unparsed.

    Raises:
        ValueError: it is something else; the message says what.
    """
    if len(encoded) > MAX_JSON:
        raise ValueError(f"has {len(encoded)} bytes, more than {MAX_JSON}")
    if sum(map(encoded.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError(f"holds more than {_MAX_VALUES} values")
    try:
        content = json.loads(
            encoded.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant,
            parse_int=_integer, parse_float=_fraction,
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds a JSON {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"names {shown(name)} twice")
        seen.add(name)
    return content


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits, more than 64 bits have")
    return int(text)


def _fraction(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"holds the number {shown(text)}, beyond 64 bits")
    return number


def _no_constant(text: str) -> None:
    raise ValueError(f"is not JSON: it holds {text}")


def _read_header(file: File) -> tuple[dict[str, Any], int]:
    size, first = file.size, file.read(0, 8)
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(size - 8, MAX_JSON):
        kind = _other_format(first)
        raise _broken(
            file,
            f"its first 8 bytes announce a header of {length} bytes, the file has {size}{kind}",
            "a safetensors header that fits into the file",
        )
    try:
        return parsed_json(file.read(8, 8 + length)), 8 + length
    except ValueError as error:
        raise _broken(file, f"its header {error}", "a JSON object") from error


def _other_format(first: bytes) -> str:
    """What the file may be instead; never opened as such."""
    if first.startswith((b"PK\3\4", b"\x80")):
        return "; it looks like a pickle of PyTorch's"
    if first.startswith(b"version "):
        return "; it looks like a git-lfs pointer"
    return "; it looks like GGUF" if first.startswith(b"GGUF") else ""


def _require_metadata(file: File, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(file, "its __metadata__ is malformed", "an object of strings")


def _entry(file: File, name: str, fields: Any, data_start: int) -> TensorEntry:
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise _broken(
            file,
            f"a tensor has the name {name[:80]!a} of {len(name)} characters",
            f"1 to {_MAX_NAME} printable characters",
        )
    try:
        dtype, shape = fields["dtype"], _naturals(fields["shape"], _MAX_AXES)
        start, end = _naturals(fields["data_offsets"], 2)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(
            file,
            f"the header's entry of tensor {name!r} is malformed: {shown(fields)}",
            "dtype, shape and two data_offsets",
        ) from error
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise _broken(
            file, f"tensor {name!r} has dtype {shown(dtype)}", "one of " + ", ".join(ITEMSIZE)
        )
    entry = TensorEntry(name, dtype, shape, file, data_start + start)
    nbytes = entry.nbytes
    if end - start != nbytes:
        raise _broken(
            file,
            f"the header lies about tensor {name!r}: its data_offsets span {end - start} bytes",
            f"{nbytes} bytes for {dtype} {list(shape)}",
        )
    if not nbytes and math.prod(filter(None, shape)) * ITEMSIZE[dtype] >= 2**63:
        raise _broken(
            file,
            f"tensor {name!r} of no elements has the shape {list(shape)}",
            "axes an array can have: less than 2**63 bytes without those of size 0",
        )
    return entry


def _naturals(values: Any, most: int) -> tuple[int, ...]:
    """At most so many unsigned integers of 64 bits, as safetensors has them (``usize``)."""
    if type(values) is not list or len(values) > most:
        raise ValueError(f"not a list of at most {most}")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**64:
            raise ValueError("not a natural number of 64 bits")
    return tuple(values)


def _require_gapless(file: File, entries: list[TensorEntry], data_start: int) -> None:
    end = data_start
    for offset, nbytes, name in sorted((e.offset, e.nbytes, e.name) for e in entries):
        if offset != end:
            raise _broken(
                file,
                f"tensor {name!r} begins at byte {offset}",
                f"byte {end}, where the tensor before it ends",
            )
        end += nbytes
    if end != file.size:
        state = "truncated" if file.size < end else "too long"
        raise _broken(file, f"the file is {state}: {file.size} bytes", f"{end} bytes by its header")


def _broken(file: File, what: str, expected: str) -> BadInput:
    return BadInput(
        f"broken safetensors file: {what}",
        where=str(file),
        expected=expected,
        hint="download or copy the file again and compare its checksum",
    )
