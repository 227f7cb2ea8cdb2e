"""Makes the digests of a checkpoint: every byte of it is read once, on all cores.

A matrix or a tensor may be held on the device in another type than it is stored in; what it
digests to then is made of the bits that the conversion gives (:func:`harness.base.bits.converted`),
for each type that a parameter of it is made in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits, converted, model_dtype
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.checkpoint.safetensors_file import TensorEntry
from harness.checkpoint.stores.location import File
from harness.compare.digest_file import (
    Contents,
    DigestedFile,
    DigestedPart,
    DigestedTensor,
    DigestFile,
    other_tensors,
)
from harness.compare.equality import on_all_cores
from harness.devices.digest import LANES, Words, digest, digest_of_rows
from harness.devices.expert_layout import Span
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
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
    if checkpoint.format:
        raise BadInput(
            "no digests of a quantised release",
            where=checkpoint.path,
            expected="a checkpoint whose bits reach the device unchanged",
            hint="harness verify without a digest file, which compares values",
        )
    meter = meter or Meter()
    meter.begin(DIGEST, checkpoint.nbytes)
    parts = reference_parts(checkpoint, asked=())
    told = [_part(part) for part in parts]
    experts = {
        (own.part, dtype): np.zeros((len(own.layers), own.experts, len(Projection), LANES), "<u4")
        for own in told
        for dtype in own.types
    }
    for part, own in zip(parts, told, strict=True):
        items = [(n, e) for n in range(len(own.layers)) for e in range(own.experts)]
        judged = on_all_cores(partial(_expert, part, own.types), items)
        for (n, expert), (nbytes, found) in zip(items, judged, strict=True):
            for dtype, words in found.items():
                experts[own.part, dtype][n, expert] = words
            meter.advance(nbytes)
    tensors, rows = _others(checkpoint, other_tensors(checkpoint, parts), meter)
    contents = Contents(
        family=checkpoint.family.name,
        revision=checkpoint.location.revision,
        tied=checkpoint.tied,
        files=tuple(
            DigestedFile(name=name, size=file.size, known=dict(sorted(file.known().items())))
            for name, file in sorted(_weight_files(checkpoint).items())
        ),
        parts=tuple(told),
        tensors=tensors,
    )
    checkpoint.location.require_unchanged()
    return DigestFile(contents, experts, rows)


def digest_of_tensor(entry: TensorEntry, dtype: str = "") -> Words:
    """The digest of a tensor, uint32 [4]; read a piece at a time, on all cores.

    Args:
        entry: the tensor.
        dtype: of the parameter it goes into; its own by default.
    """
    total = np.zeros(LANES, np.uint32)
    pieces = (_Piece(entry, rows, (dtype or entry.dtype,)) for rows in spans_of(entry))
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


def _expert(
    part: ReferencePart, types: Sequence[str], which: tuple[int, int]
) -> tuple[int, dict[str, Words]]:
    """An expert's bytes, and the digests of its matrices, uint32 [3, 4], by type."""
    layer, expert = part.layers[which[0]], which[1]
    found = {dtype: np.zeros((len(Projection), LANES), np.uint32) for dtype in types}
    nbytes = 0
    for number, projection in enumerate(Projection):
        bits, stored = part.stored(ExpertKey(part.part, layer, expert, projection))
        nbytes += bits.nbytes
        for dtype in types:
            found[dtype][number] = digest_of_matrix(converted(bits, stored, dtype), projection)
    return nbytes, found


def digest_of_matrix(bits: Bits, projection: Projection) -> Words:
    """The digest of an expert's whole matrix [output, input], uint32 [4]."""
    return digest(bits, 0 if projection is Projection.DOWN else 1)


class _Piece(NamedTuple):
    """Rows of a tensor, and the types they are digested in."""

    entry: TensorEntry
    rows: Span
    types: tuple[str, ...]


def _digested(piece: _Piece) -> tuple[str, int, list[Words]]:
    """The tensor's name, how many bytes were read, and what they add to its digests."""
    entry, rows, types = piece
    bits = entry.bits((rows.as_slice(),) if entry.shape else ())
    count = entry.shape[0] if entry.shape else 1
    return entry.name, bits.nbytes, [
        digest_of_rows(converted(bits, entry.dtype, dtype), rows.start, count) for dtype in types
    ]  # fmt: skip


def _others(
    checkpoint: ModelCheckpoint, names: Sequence[str], meter: Meter
) -> tuple[tuple[DigestedTensor, ...], Words]:
    entries = checkpoint.entries
    stored = {entry.dtype for entry in entries.values()}
    model = model_dtype(checkpoint.config, stored, checkpoint.location.where("config.json"))
    widened = _widened(checkpoint)
    tensors = [
        DigestedTensor(
            n, entries[n].dtype, entries[n].shape, _types(entries[n], model, n in widened)
        )
        for n in names
    ]
    found = {t.name: np.zeros((len(t.types), LANES), "<u4") for t in tensors}
    pieces = (
        _Piece(entries[t.name], rows, t.types)
        for t in tensors
        for rows in spans_of(entries[t.name])
    )
    for name, nbytes, words in on_all_cores(_digested, pieces):
        found[name] += np.array(words, "<u4")
        meter.advance(nbytes)
    rows = np.concatenate([np.zeros((0, LANES), "<u4"), *(found[t.name] for t in tensors)])
    return tuple(tensors), rows


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
