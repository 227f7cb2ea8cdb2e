"""What parts of a checkpoint's files digest to, at the speed of memory.

A part is read into a buffer that stays in a core's cache, and digested there, a megabyte at a time:
what is read leaves the processor once. Of a local file one compiled call does both for a whole part
and holds no lock, so that as many cores as there are do not wait for each other in Python.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, bits_dtype, converted
from harness.checkpoint.safetensors_file import TensorEntry
from harness.devices.digest import (
    LANES,
    Words,
    by_rows,
    digest,
    factors,
    feature_sums,
    finished,
    kernels,
)
from harness.devices.expert_layout import Span
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Projection


class HeldForm(NamedTuple):
    """How a parameter is to hold bits.

    Attributes:
        made: gives them, of bits and their dtype.
        keeps: the dtype whose bits are held as they are; empty for none.
    """

    made: Callable[[Bits, str], Bits]
    keeps: str = ""


#: Bytes that are read at a time; with a core's other data they fit into its second-level cache.
CHUNK_BYTES = 1 << 20
_local = threading.local()


def form_of(dtype: str) -> HeldForm:
    """The form in which a parameter of a type holds bits."""
    return HeldForm(partial(_converted, dtype), dtype)


def _converted(target: str, bits: Bits, dtype: str) -> Bits:
    return converted(bits, dtype, target)


def digests_of_rows(
    entry: TensorEntry, rows: Span, forms: Sequence[HeldForm], chunk: int = CHUNK_BYTES
) -> list[Words]:
    """What rows of a tensor add to its digest, uint32 [4], in each form.

    Args:
        entry: the tensor; a scalar has one row.
        rows: of its first axis.
        forms: of bits of its dtype.
        chunk: bytes that are read at a time.

    Raises:
        BadInput: it cannot be read.
    """
    count = entry.shape[0] if entry.shape else 1
    width = entry.nbytes // ITEMSIZE[entry.dtype] // max(count, 1)
    region = _Region(entry, rows.start * width, len(rows), width, chunk)
    return [finished(sums, rows.start, count) for sums in region.sums(0, forms)]


def digests_of_expert(
    part: ReferencePart, layer: int, expert: int, forms: Sequence[HeldForm]
) -> list[Words]:
    """The digests of an expert's matrices, uint32 [3, 4], in each form.

    Gate and up that lie in one tensor are read once.

    Raises:
        BadInput: they cannot be read.
    """
    found = [np.zeros((len(Projection), LANES), np.uint32) for _ in forms]
    seen: dict[tuple[str, int], list[Words]] = {}
    for number, projection in enumerate(Projection):
        key = ExpertKey(part.part, layer, expert, projection)
        place = _placed(part, key)
        if place is None:
            bits, dtype = part.stored(key)
            for words, form in zip(found, forms, strict=True):
                words[number] = digest_of_matrix(form.made(bits, dtype), projection)
            continue
        region, axis, features = place
        at = region.entry.name, region.start
        sums = seen[at] if at in seen else seen.setdefault(at, region.sums(axis, forms))
        width = part.shape.intermediate
        for words, each in zip(found, sums, strict=True):
            words[number] = finished(each[:, features], 0, width)
    return found


def extents_of_expert(
    part: ReferencePart, layer: int, expert: int
) -> Iterator[tuple[TensorEntry, int, int]]:
    """Where an expert's matrices lie: of which tensors, the first byte and how many."""
    keys = (ExpertKey(part.part, layer, expert, projection) for projection in Projection)
    places = dict.fromkeys((at.tensor, at.at[:1]) for at in map(part.stored_matrix, keys))
    for name, index in places:
        entry = part.checkpoint.entries[name]
        if index and isinstance(index[0], int):
            nbytes = entry.nbytes // entry.shape[0]
            yield entry, index[0] * nbytes, nbytes
        else:
            yield entry, 0, entry.nbytes


def digest_of_matrix(bits: Bits, projection: Projection) -> Words:
    """The digest of an expert's whole matrix [output, input], uint32 [4]."""
    return digest(bits, 0 if projection is Projection.DOWN else 1)


def _placed(part: ReferencePart, key: ExpertKey) -> tuple[_Region, int, slice] | None:
    """Where a matrix lies: in which region, along which axis its features, and which of those.

    None where its features are no slice of an axis.
    """
    name, index, transposed = part.stored_matrix(key)
    entry = part.checkpoint.entries[name]
    axis = int((key.projection is Projection.DOWN) is not transposed)
    expert, *others = index or (None,)
    others += [slice(None)] * (2 - len(others))
    features, hidden = others[axis], others[1 - axis]
    matrix = entry.shape if expert is None else entry.shape[1:]
    if len(matrix) != 2 or not isinstance(features, slice) or hidden != slice(None):
        return None
    first = 0 if not isinstance(expert, int) else expert * matrix[0] * matrix[1]
    return _Region(entry, first, *matrix), axis, features


class _Region:
    """Elements of a tensor that lie together, as a matrix.

    Args:
        entry: the tensor.
        start: its first element.
        rows: how many.
        columns: elements of a row.
        chunk: bytes that are read at a time.
    """

    def __init__(
        self, entry: TensorEntry, start: int, rows: int, columns: int, chunk: int = CHUNK_BYTES
    ) -> None:
        self._chunk = chunk
        self.entry = entry
        self.start = start
        self._rows = rows
        self._columns = columns

    def sums(self, features_axis: int, forms: Sequence[HeldForm]) -> list[Words]:
        """The digest's first level, uint32 [4, features], in each form."""
        features = self._columns if features_axis else self._rows
        found = [np.zeros((LANES, features), np.uint32) for _ in forms]
        if not self._rows * self._columns:
            return found
        if all(form.keeps == self.entry.dtype for form in forms):
            sums = np.zeros((LANES, features), np.uint32)
            if self._compiled(features_axis, sums):
                return [sums for _ in forms]
        for first, bits in self._chunks():
            for sums, form in zip(found, forms, strict=True):
                held = by_rows(form.made(bits, self.entry.dtype))
                if features_axis:
                    sums += feature_sums(held.T, first=first * held.itemsize // 4)
                else:
                    sums[:, first : first + len(held)] = feature_sums(held)
        return found

    def _compiled(self, features_axis: int, sums: Words) -> bool:
        """Add up all of it in one compiled call; whether that can be done, and all could be read.

        Where not, reading in the other way tells why.
        """
        itemsize, compiled = ITEMSIZE[self.entry.dtype], kernels()
        nbytes = self._columns * itemsize
        turned = not features_axis or (itemsize == 2 and not self._rows % 2)
        if compiled is None or nbytes % 4 or not turned:
            return False
        words = nbytes // 4
        weights = factors(0, self._rows * itemsize // 4 if features_axis else words)
        buffer = _buffer(self._height * nbytes).view(np.uint32).reshape(-1, words)
        offset = self.entry.offset + self.start * itemsize

        def read(descriptor: int) -> int:
            rows: int = compiled.read_sums(
                descriptor, offset, self._rows, buffer, bool(features_axis), weights, sums
            )
            return rows

        total = self._rows * nbytes
        return self.entry.file.by_descriptor(offset, total, read) == self._rows

    @property
    def _height(self) -> int:
        """Rows that are read at a time, so that no word has elements of two of these."""
        nbytes = self._columns * ITEMSIZE[self.entry.dtype]
        return min(max(self._chunk // nbytes // 4 * 4, 4), self._rows)

    def _chunks(self) -> Iterator[tuple[int, Bits]]:
        """Some rows at a time, with the number of the first; they are overwritten by the next."""
        itemsize = ITEMSIZE[self.entry.dtype]
        nbytes = self._columns * itemsize
        buffer = _buffer(self._height * nbytes)
        dtype, row = bits_dtype(self.entry.dtype), 0
        for part in self.entry.stream(self.start * itemsize, self._rows * nbytes, buffer):
            bits = part.view(dtype).reshape(-1, self._columns)
            yield row, bits
            row += len(bits)


def _buffer(nbytes: int) -> Bits:
    """Memory of this thread, of just so many bytes."""
    kept: Bits | None = getattr(_local, "buffer", None)
    if kept is None or kept.nbytes < nbytes:
        kept = _local.buffer = np.empty(max(nbytes, CHUNK_BYTES), np.uint8)
    return kept[:nbytes]
