"""Makes the digests of a checkpoint: every byte of it is read once, on all cores.

A matrix or a tensor may be held on the device in another type than it is stored in; what it
digests to then is made of the bits that the conversion gives (:func:`harness.base.bits.converted`),
for each type that a parameter of it is made in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, converted, model_dtype
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.checkpoint.safetensors_file import Index, TensorEntry
from harness.checkpoint.stores.location import File
from harness.compare.authority import What
from harness.compare.digest_file import (
    Contents,
    DigestedFile,
    DigestedPart,
    DigestedTensor,
    DigestFile,
    other_tensors,
)
from harness.compare.equality import on_all_cores
from harness.compare.file_sums import (
    digest_of_matrix,
    digests_of_expert,
    digests_of_rows,
    extents_of_expert,
    form_of,
)
from harness.devices.digest import LANES, Words, digest_of_rows
from harness.devices.expert_layout import Span
from harness.families.experts import ExpertKey, Listener, ReferencePart, reference_parts
from harness.families.family import Projection
from harness.families.model_checkpoint import ModelCheckpoint

#: Bytes of a tensor that are read and digested at a time.
PIECE_BYTES = 8 << 20
DIGEST = "digest"  # the phase, as progress calls it


def digests_of(checkpoint: ModelCheckpoint, meter: Meter | None = None) -> DigestFile:
    """Read a checkpoint and digest all of it.

    Memory stays at some experts' matrices, and some pieces of other tensors, for each core.

    Args:
        checkpoint: to be read.
        meter: counts bytes that were.

    Raises:
        BadInput: it cannot be read, changed meanwhile, or is quantised: its values are compared
            then, for which there are no digests.
    """
    return Digesting(checkpoint).completed(meter)


class Digesting(Listener):
    """Digests of a checkpoint that come about while others read it; the rest is read in the end.

    Args:
        checkpoint: it listens to, once it is made its listener.

    Raises:
        BadInput: it is quantised, or its experts are not to be found.
    """

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        if checkpoint.format:
            raise BadInput(
                "digests cannot be used for a quantised release",
                where=checkpoint.path,
                expected="a checkpoint whose bits reach the device unchanged",
                hint="harness verify without a digest file, which compares values",
            )
        self.checkpoint = checkpoint
        parts = reference_parts(checkpoint, asked=())
        self._experts = {part.part: _Experts(part) for part in parts}
        self._tensors = _tensors(checkpoint, other_tensors(checkpoint, parts))

    def matrix(self, key: ExpertKey, bits: Bits, dtype: str) -> None:
        """See :meth:`Listener.matrix`."""
        self._experts[key.part].add(key, bits, dtype)

    def tensor(self, name: str, index: Index, bits: Bits) -> None:
        """See :meth:`Listener.tensor`; experts come as matrices."""
        if (found := self._tensors.get(name)) is not None:
            found.add(index, bits)

    def digests(
        self, what: ExpertKey | str, digests: Mapping[str, Words], rows: Span | None = None
    ) -> None:
        """See :meth:`Listener.digests`."""
        if isinstance(what, ExpertKey):
            self._experts[what.part].take(what, digests)
        elif (found := self._tensors.get(what)) is not None:
            found.take(rows, digests)

    @property
    def missing(self) -> int:
        """Bytes of the checkpoint that nobody has read yet, or not in a way that adds up."""
        others = sum(t.entry.nbytes for t in self._tensors.values() if not t.complete)
        return others + sum(experts.missing for experts in self._experts.values())

    def completed(self, meter: Meter | None = None) -> DigestFile:
        """The digests of all of it; what is missing is read.

        Raises:
            BadInput: it cannot be read, or changed meanwhile.
        """
        meter = meter or Meter()
        self.checkpoint.listener = None  # it would hear of what is read here
        meter.begin(DIGEST, self.missing)
        for experts in self._experts.values():
            for nbytes in on_all_cores(experts.read, experts.unread()):
                meter.advance(nbytes)
        for tensor, nbytes, words in on_all_cores(_digested, self._pieces()):
            tensor.sums += words
            meter.advance(nbytes)
        location, tensors = self.checkpoint.location, self._tensors.values()
        contents = Contents(
            family=self.checkpoint.family.name,
            revision=location.revision,
            tied=self.checkpoint.tied,
            files=tuple(
                DigestedFile(name=name, size=file.size, known=dict(sorted(file.known().items())))
                for name, file in sorted(_weight_files(self.checkpoint).items())
            ),
            parts=tuple(experts.told for experts in self._experts.values()),
            tensors=tuple(tensor.told for tensor in tensors),
        )
        location.require_unchanged()
        rows = np.concatenate([np.zeros((0, LANES), "<u4"), *(tensor.sums for tensor in tensors)])
        return DigestFile(
            contents,
            {
                (part, dtype): words
                for part, experts in self._experts.items()
                for dtype, words in experts.words.items()
            },
            rows,
        )

    def _pieces(self) -> Iterator[_Piece]:
        """What is to be read of other tensors; those that add up are what was heard of them."""
        for tensor in self._tensors.values():
            if tensor.settle():
                continue
            for rows in spans_of(tensor.entry):
                yield _Piece(tensor, rows)


class _Experts:
    """The digests of a part's experts, and which of them there are."""

    def __init__(self, part: ReferencePart) -> None:
        self.told = _part(part)
        self._part = part
        self._at = {layer: n for n, layer in enumerate(part.layers)}
        count = len(part.layers), part.shape.experts, len(Projection)
        self.words = {dtype: np.zeros((*count, LANES), "<u4") for dtype in self.told.types}
        self._there = np.zeros(count, bool)

    def add(self, key: ExpertKey, bits: Bits, stored: str) -> None:
        """Digest a matrix [output, input] that was read."""
        at = self._at[key.layer], key.expert, _MATRICES.index(key.projection)
        for dtype, words in self.words.items():
            words[at] = digest_of_matrix(converted(bits, stored, dtype), key.projection)
        self._there[at] = True

    def unread(self) -> list[tuple[int, int]]:
        """The layers, by their place, and experts of which a matrix is missing."""
        return [(int(n), int(e)) for n, e in np.argwhere(~self._there.all(axis=2))]

    def read(self, which: tuple[int, int]) -> int:
        """Read an expert and digest it; how many bytes that were."""
        layer, expert = self._part.layers[which[0]], which[1]
        forms = [form_of(dtype) for dtype in self.words]
        found = digests_of_expert(self._part, layer, expert, forms)
        for words, of_expert in zip(self.words.values(), found, strict=True):
            words[which] = of_expert
        self._there[which] = True
        return sum(nbytes for *_, nbytes in extents_of_expert(self._part, layer, expert))

    def take(self, key: ExpertKey, digests: Mapping[str, Words]) -> None:
        """Take digests of a matrix, by type, if they are of all its types."""
        if digests.keys() >= self.words.keys():
            at = self._at[key.layer], key.expert, _MATRICES.index(key.projection)
            for dtype, words in self.words.items():
                words[at] = digests[dtype]
            self._there[at] = True

    @property
    def missing(self) -> int:
        """Bytes of the experts of which a matrix is missing."""
        size = self._part.shape.hidden * self._part.shape.intermediate * len(Projection)
        name = next(iter(self._part.names_of(self._part.layers[0])))
        return len(self.unread()) * size * ITEMSIZE[self._part.checkpoint.entries[name].dtype]


class _Tensor:
    """Another tensor, and what rows of it add to its digests."""

    def __init__(self, entry: TensorEntry, types: tuple[str, ...]) -> None:
        self.entry = entry
        self.told = DigestedTensor(entry.name, entry.dtype, entry.shape, types)
        self.sums = np.zeros((len(types), LANES), "<u4")
        self._count = entry.shape[0] if entry.shape else 1
        self._heard: dict[Span, Words] = {}

    def add(self, index: Index, bits: Bits) -> None:
        """Digest rows that were read; what is no run of whole rows is let go."""
        rows = Span(0, self._count)
        if index and self.entry.shape:
            if len(index) > 1 or not isinstance(index[0], slice) or index[0].step is not None:
                return
            rows = Span(*index[0].indices(self._count)[:2])
        if rows not in self._heard:
            self._heard[rows] = self.words(bits, rows)

    def take(self, rows: Span | None, digests: Mapping[str, Words]) -> None:
        """Take what rows add to digests, by type; of all rows where none are named."""
        types = self.told.types
        if digests.keys() >= set(types):
            found = np.array([digests[dtype] for dtype in types], "<u4")
            self._heard.setdefault(rows or Span(0, self._count), found)

    def words(self, bits: Bits, rows: Span) -> Words:
        """What rows add to each digest, uint32 [types, 4]."""
        stored = self.entry.dtype
        found = [
            digest_of_rows(converted(bits, stored, dtype), rows.start, self._count)
            for dtype in self.told.types
        ]
        return np.array(found, "<u4")

    @property
    def complete(self) -> bool:
        """Whether the rows that were heard of are all of it, each once."""
        at = 0
        for rows in sorted(self._heard, key=lambda rows: rows.start):
            if rows.start != at:
                return False
            at = rows.stop
        return at == self._count and bool(self._heard)

    def settle(self) -> bool:
        """Make what was heard its digests, where that is all of it."""
        if self.complete:
            self.sums += np.sum(list(self._heard.values()), axis=0, dtype=np.uint32)
            return True
        return False


class Work(NamedTuple):
    """Something of a checkpoint to be read and digested at once.

    Attributes:
        extents: bytes of which entries: first and number.
        pieces: in how many such pieces it comes; their digests are added up.
        run: gives what it adds to digests: of which matrix or tensor, held in which type.
    """

    extents: tuple[tuple[TensorEntry, int, int], ...]
    pieces: int
    run: Callable[[], list[tuple[What, str, Words]]]


def work_of(checkpoint: ModelCheckpoint) -> Iterator[Work]:
    """All of a checkpoint, in the order of its layers; see :func:`digests_of`."""
    parts = reference_parts(checkpoint, asked=())
    for part in parts:
        types = _part(part).types
        for layer, expert in product(part.layers, range(part.shape.experts)):
            extents = tuple(extents_of_expert(part, layer, expert))
            yield Work(extents, 1, partial(_matrices, part, types, layer, expert))
    for tensor in _tensors(checkpoint, other_tensors(checkpoint, parts)).values():
        entry = tensor.entry
        spans = list(spans_of(entry))
        nbytes = entry.nbytes // (entry.shape[0] if entry.shape and entry.shape[0] else 1)
        for rows in spans:
            extents = ((entry, rows.start * nbytes, len(rows) * nbytes),)
            yield Work(extents, len(spans), partial(_rows, _Piece(tensor, rows)))


def _matrices(
    part: ReferencePart, types: Sequence[str], layer: int, expert: int
) -> list[tuple[What, str, Words]]:
    found = digests_of_expert(part, layer, expert, [form_of(dtype) for dtype in types])
    return [
        (ExpertKey(part.part, layer, expert, projection), dtype, words[number])
        for dtype, words in zip(types, found, strict=True)
        for number, projection in enumerate(Projection)
    ]


def _rows(piece: _Piece) -> list[tuple[What, str, Words]]:
    tensor, _, words = _digested(piece)
    types = tensor.told.types
    return [(tensor.entry.name, dtype, each) for dtype, each in zip(types, words, strict=True)]


def digest_of_tensor(entry: TensorEntry, dtype: str = "") -> Words:
    """The digest of a tensor, uint32 [4]; read a piece at a time, on all cores.

    Args:
        entry: the tensor.
        dtype: of the parameter it goes into; its own by default.
    """
    total = np.zeros(LANES, np.uint32)
    tensor = _Tensor(entry, (dtype or entry.dtype,))
    pieces = (_Piece(tensor, rows) for rows in spans_of(entry))
    for _, _, words in on_all_cores(_digested, pieces):
        total += words[0]
    return total


def spans_of(entry: TensorEntry, nbytes: int = PIECE_BYTES) -> Iterator[Span]:
    """The rows of a tensor in pieces of about so many bytes; a scalar has one."""
    count = entry.shape[0] if entry.shape else 1
    height = max(nbytes * count // max(entry.nbytes, 1), 1)
    for first in range(0, count, height):
        yield Span(first, min(first + height, count))


def _part(part: ReferencePart) -> DigestedPart:
    entries = part.checkpoint.entries
    names = [name for layer in part.layers for name in part.names_of(layer)]
    stored = tuple(sorted({entries[name].dtype for name in names}))
    return DigestedPart(
        part=part.part, layers=part.layers, experts=part.shape.experts,
        hidden=part.shape.hidden, intermediate=part.shape.intermediate, stored=stored,
        types=tuple(dict.fromkeys((part.shape.dtype, *(stored if len(stored) == 1 else ())))),
    )  # fmt: skip


_MATRICES = tuple(Projection)


class _Piece(NamedTuple):
    """Rows of a tensor that are to be read."""

    tensor: _Tensor
    rows: Span


def _digested(piece: _Piece) -> tuple[_Tensor, int, Words]:
    """The tensor, how many bytes were read, and what they add to its digests."""
    entry, rows, types = piece.tensor.entry, piece.rows, piece.tensor.told.types
    count = entry.shape[0] if entry.shape else 1
    words = digests_of_rows(entry, rows, [form_of(dtype) for dtype in types])
    return piece.tensor, entry.nbytes * len(rows) // max(count, 1), np.array(words, "<u4")


def _tensors(checkpoint: ModelCheckpoint, names: Sequence[str]) -> dict[str, _Tensor]:
    """Other tensors than experts', by name, with the types they are digested in."""
    entries = checkpoint.entries
    stored = {entry.dtype for entry in entries.values()}
    model = model_dtype(checkpoint.config, stored, checkpoint.location.where("config.json"))
    widened = _widened(checkpoint)
    return {n: _Tensor(entries[n], _types(entries[n], model, n in widened)) for n in names}


def _widened(checkpoint: ModelCheckpoint) -> set[str]:
    """The tensors that a parameter of f32 is made of, whatever they are stored in."""
    stored = [p for rule in checkpoint.family.rules if rule.row.widened for p in rule.stored]
    return {name for name in checkpoint.entries if any(p.fullmatch(name) for p in stored)}


def _types(entry: TensorEntry, model: str, widened: bool) -> tuple[str, ...]:
    """As stored first, then the type of the parameter that is made of it."""
    made = "F32" if widened else model
    return tuple(dict.fromkeys((entry.dtype, made)))


def _weight_files(checkpoint: ModelCheckpoint) -> dict[str, File]:
    return {entry.file.name: entry.file for entry in checkpoint.entries.values()}
