"""What a slice holds instead: found by its bytes among those of the reference.

Built only when something differs. Whole slices of experts are looked up by digest, in their own
layer first and then in all others; rows and columns by digest among those that could have come in
their place, so that a slice pieced together from parts of others is recognised; and runs of bytes
anywhere in the checkpoint's files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits
from harness.compare.equality import on_all_cores
from harness.families.experts import ExpertKey, ReferencePart, announced_layers
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint

_NEEDLE_ELEMENTS = 24
_SEARCHED = 8 << 30
#: Bytes of files that are searched for the slices of a layer, and for those of all: thousands of
#: slices of garbage must not take longer than a job may.
OF_LAYER, OF_ALL = 8 * _SEARCHED, 24 * _SEARCHED


#: A tensor and a byte of it.
Occurrence = tuple[str, int]


class Line(NamedTuple):
    """A row or a column of a reference slice."""

    key: ExpertKey
    number: int


class ReferenceIndex:
    """Digests of experts' reference slices and their lines, made as they are asked for.

    Args:
        parts: all parts of the checkpoint.
        bits_of: what the device is to hold for a key, [output, input].
    """

    def __init__(
        self, parts: Sequence[ReferencePart], bits_of: Callable[[ExpertKey], Bits]
    ) -> None:
        self._parts = {part.part: part for part in parts}
        self.bits_of = bits_of
        self._slices: dict[tuple[str, int], dict[bytes, ExpertKey]] = {}
        self._lines: dict[tuple[str, int, int], dict[bytes, Line]] = {}  # of one layer
        self._orders: dict[ExpertKey, dict[int, int | None]] = {}

    def slice(self, near: ExpertKey, bits: Bits) -> ExpertKey | None:
        """The slice whose bytes ``bits`` are; those nearest to ``near`` are looked at first."""
        wanted = digest(bits)
        for part, layer in self._layers(near):
            if found := self._layer(part, layer).get(wanted):
                return found
        return None

    def order(
        self, near: ExpertKey, experts: Iterable[int], bits_of: Callable[[ExpertKey], Bits]
    ) -> dict[int, int | None]:
        """For each of these experts, whose matrix of the same kind and layer stands in its place.

        Args:
            near: a matrix of the kind and layer.
            experts: of the layer.
            bits_of: what the devices hold for a key.
        """
        place = near._replace(expert=0)
        if place not in self._orders:
            known = self._layer(near.part, near.layer)
            keys = {expert: near._replace(expert=expert) for expert in experts}
            held = {e: known.get(digest(bits_of(key))) for e, key in keys.items()}
            self._orders[place] = {
                e: found.expert if found and found.projection is near.projection else None
                for e, found in held.items()
            }
        return self._orders[place]

    def lines(self, near: ExpertKey, axis: int) -> dict[bytes, Line]:
        """By digest, the rows (axis 0) or columns (axis 1) of all slices of a layer."""
        place = (near.part, near.layer, axis)
        if place not in self._lines:
            self._lines = {p: k for p, k in self._lines.items() if p[:2] == place[:2]}
            known: dict[bytes, Line] = {}
            for key in self._keys(near.part, near.layer):
                for number, line in enumerate(lines_of(self.bits_of(key), axis)):
                    known.setdefault(line, Line(key, number))
            self._lines[place] = known
        return self._lines[place]

    def _layers(self, near: ExpertKey) -> Iterator[tuple[str, int]]:
        yield near.part, near.layer
        for part in self._parts.values():
            for layer in part.layers:
                if (part.part, layer) != (near.part, near.layer):
                    yield part.part, layer

    def _layer(self, part: str, layer: int) -> dict[bytes, ExpertKey]:
        if (part, layer) not in self._slices:
            keys = list(self._keys(part, layer))
            digests = on_all_cores(lambda key: digest(self.bits_of(key)), keys)
            self._slices[part, layer] = dict(zip(digests, keys, strict=True))
        return self._slices[part, layer]

    def _keys(self, part: str, layer: int) -> Iterator[ExpertKey]:
        return next(p for name, p in self._parts.items() if name == part).keys_of(layer)


class FileSearch:
    """A search for runs of bytes in the checkpoint's files, which ends when it has read enough.

    Args:
        checkpoint: the files.
        of_layer: bytes that are searched for the slices of a layer.
        of_all: those for all slices.

    Attributes:
        checkpoint: the files.
        unsearched: slices whose bytes were not looked for, since the searches were spent.
    """

    def __init__(
        self, checkpoint: ModelCheckpoint, of_layer: int = OF_LAYER, of_all: int = OF_ALL
    ) -> None:
        self.checkpoint = checkpoint
        self._of_layer, self._of_all = of_layer, of_all
        self._searched: Counter[Hashable] = Counter()
        self._last_found: dict[Hashable, str] = {}
        self.unsearched: set[Hashable] = set()

    def bytes_at(self, near: Hashable, layer: Hashable, run: bytes) -> Occurrence | None:
        """Where ``run``, of slice ``near``, stands in the files; None, too, if not looked for.

        What was found for the last slice of its layer is looked at first, and always.
        """
        last = self._last_found.get(layer)
        if last and (at := self.checkpoint.bits(last).tobytes().find(run)) >= 0:
            return last, at
        spent = self._searched.total() >= self._of_all
        if spent or self._searched[layer] >= self._of_layer:
            self.unsearched.add(near)
            return None
        if found := find_bytes(self.checkpoint, run):
            self._last_found[layer] = found[0]
        self._searched[layer] += _read(self.checkpoint, found)
        return found


def needle(bits: Bits, unequal: Bits) -> bytes | None:
    """Bytes of the first run of unequal elements along a row that is worth looking for.

    A run of one repeated value could stand anywhere and is none.
    """
    for row, differs in zip(bits, unequal, strict=True):
        (starts,) = np.nonzero(differs)
        for start in starts[:: _NEEDLE_ELEMENTS // 2]:
            run = row[start : start + _NEEDLE_ELEMENTS]
            if run.size == _NEEDLE_ELEMENTS and np.unique(run).size > _NEEDLE_ELEMENTS // 2:
                return np.ascontiguousarray(run).tobytes()
    return None


def find_bytes(checkpoint: ModelCheckpoint, run: bytes) -> Occurrence | None:
    """The tensor that holds ``run``, and the byte of it; the first _SEARCHED bytes are searched."""
    searched = 0
    for name, entry in checkpoint.entries.items():
        if (searched := searched + entry.nbytes) > _SEARCHED:
            return None
        if (at := checkpoint.bits(name).tobytes().find(run)) >= 0:
            return name, at
    return None


def depth(checkpoint: ModelCheckpoint, part: Part, layer: int) -> int:
    """The place of a layer in the stack: drafts stand after the decoder, however numbered."""
    if part is Part.DECODER or checkpoint.family.drafts_follow:
        return layer
    return announced_layers(checkpoint, Part.DECODER) + layer


def lines_of(bits: Bits, axis: int) -> Iterator[bytes]:
    """A digest of every row (axis 0), or of every column (axis 1), further axes taken as one."""
    if bits.ndim == 1:
        bits = bits[:, None]
    folded = bits.reshape(len(bits), -1)
    for line in folded if axis == 0 else folded.T:
        yield digest(line)


def _read(checkpoint: ModelCheckpoint, found: Occurrence | None) -> int:
    """Bytes that :func:`find_bytes` went through."""
    if found is None:
        return min(checkpoint.nbytes, _SEARCHED)
    names = list(checkpoint.entries)
    before = names[: names.index(found[0]) + 1]
    return sum(checkpoint.entries[name].nbytes for name in before)


def digest(bits: Bits) -> bytes:
    """128 bits that stand for an array: its shape and its bits, in C order."""
    shape = str(bits.shape).encode()
    return hashlib.blake2b(
        np.ascontiguousarray(bits).data, digest_size=16, person=shape[:16]
    ).digest()
