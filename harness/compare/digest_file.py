"""Digest files: 128 bits of every matrix and tensor of a checkpoint, as an authority on them.

One file in the safetensors container, so that any reader of those opens it: arrays of uint32, and
beside them, in ``__metadata__``, texts:

- ``format``: :data:`FORMAT`.
- ``definition``: the number of the digest's definition (:data:`harness.devices.digest.DEFINITION`).
- ``contents``: JSON of :class:`Contents`; names, dtypes, shapes, where it was made from.
- ``identity``: in the harness's own cache, the name of the entry that this is.
- ``checksum``: SHA-256, in hexadecimal, of the file with zeros in the checksum's place.

``experts.<part>.<type>`` is [layers, experts, 3, 4]: gate, up and down of each expert, as a
parameter of that type holds them. ``tensors`` is [rows, 4]: of every other tensor, in the order of
the contents, a row for each of its types, the one it is stored in first. Experts' matrices are
digested as [output, input], all other tensors along their first axis; so the same values in another
storage have the same digests. What is written follows from the checkpoint and where it lies: no
date, no path.

A file comes from outside: it is read in bounded time and memory, and whatever is wrong with it is
:class:`BadInput`. Who writes it is trusted all the same: the checksum keeps accidents out, not
forgers, and the digest is no cryptographic hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from harness.base.bits import ITEMSIZE, Bits, bits_dtype
from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import parsed_json, read_entries, read_metadata
from harness.checkpoint.stores.directory import LocalFile
from harness.checkpoint.stores.location import File
from harness.compare.authority import Authority, What
from harness.devices.digest import DEFINITION, LANES, Words
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint

FORMAT = "moe-load-harness digests"
#: Of a file that is read; the largest published checkpoint needs 3 MB.
MOST_BYTES = 64 * 2**20
_TENSORS = "tensors"
_AGAIN = "harness digest CHECKPOINT -o FILE makes one"

_Count = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Types = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=len(ITEMSIZE))]


class DigestedPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The experts of one part: sizes, the types they are stored in, those they are digested in."""

    part: Part
    layers: tuple[_Natural, ...]
    experts: _Count
    hidden: _Count
    intermediate: _Count
    stored: _Types
    types: _Types


class DigestedTensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Any other tensor: as its file's header has it, and the types it is digested in."""

    name: str
    dtype: str
    shape: tuple[_Natural, ...]
    types: _Types


class DigestedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the checkpoint, and what its place knew of it: :meth:`File.known`."""

    name: str
    size: _Natural
    known: dict[str, str] = {}


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was digested.

    Attributes:
        family: its name.
        revision: ``org/name@commit`` of the hub's, or empty.
        tied: whether config.json ties the head to the embedding.
        files: those that have its tensors.
        parts: its experts.
        tensors: all others.
    """

    family: str
    revision: str
    tied: bool
    files: tuple[DigestedFile, ...]
    parts: tuple[DigestedPart, ...]
    tensors: tuple[DigestedTensor, ...]


@dataclass(frozen=True)
class DigestFile(Authority):
    """The digests of one checkpoint.

    Attributes:
        contents: what was digested.
        experts: by part and type, uint32 [layers, experts, 3, 4].
        rows: of all other tensors, uint32 [rows, 4], in the order of the contents.
        path: where it was read from; empty where it was made here.
        checksum: its own.
        identity: which entry of a cache it is; empty for any other file.
        read: the tensors of the checkpoint that had to be read, though there are digests.
    """

    contents: Contents
    experts: Mapping[tuple[Part, str], Words]
    rows: Words
    path: str = ""
    checksum: str = ""
    identity: str = ""
    read: set[str] = field(default_factory=set)
    finds = True

    def digest(self, what: What, dtype: str) -> Words | None:
        """See :meth:`Authority.digest`; None of another type than those that were digested."""
        if isinstance(what, str):
            return self._rows.get((what, dtype))
        layers, found = self._layers.get(what.part, {}), self.experts.get((what.part, dtype))
        if found is None or what.layer not in layers or not 0 <= what.expert < found.shape[1]:
            return None
        words: Words = found[layers[what.layer], what.expert, _MATRICES.index(what.projection)]
        return words

    def vouches(self, what: What, dtype: str, made: Callable[[], Words]) -> bool:
        """See :meth:`Authority.vouches`; not for what it has no digest of."""
        known = self.digest(what, dtype)
        return known is not None and np.array_equal(made(), known)

    def find(self, words: Words, dtype: str) -> What | None:
        """See :meth:`Authority.find`."""
        return self._found.get((words.tobytes(), dtype))

    def had_to_read(self, tensor: str) -> None:
        """See :meth:`Authority.had_to_read`."""
        self.read.add(tensor)

    @property
    def revision(self) -> str:
        """The hub's, ``org/name@commit``; empty where there is none."""
        return self.contents.revision

    @property
    def matrices(self) -> int:
        """Experts' matrices that it has digests of."""
        return sum(len(p.layers) * p.experts * len(_MATRICES) for p in self.contents.parts)

    @cached_property
    def _layers(self) -> dict[Part, dict[int, int]]:
        return {p.part: {layer: n for n, layer in enumerate(p.layers)} for p in self.contents.parts}

    @cached_property
    def _rows(self) -> dict[tuple[str, str], Words]:
        names = ((t.name, dtype) for t in self.contents.tensors for dtype in t.types)
        return dict(zip(names, self.rows, strict=True))

    @cached_property
    def _found(self) -> dict[tuple[bytes, str], What]:
        found: dict[tuple[bytes, str], What] = {
            (words.tobytes(), dtype): name for (name, dtype), words in self._rows.items()
        }
        for part in self.contents.parts:
            for dtype in part.types:
                digests = self.experts[part.part, dtype]
                for n, expert, matrix in np.ndindex(digests.shape[:3]):
                    key = ExpertKey(part.part, part.layers[n], expert, _MATRICES[matrix])
                    found[digests[n, expert, matrix].tobytes(), dtype] = key
        return found

    def encoded(self, identity: str = "") -> bytes:
        """The file; as the entry of a cache, where it has the name of one."""
        arrays = {array_name(*key): words for key, words in self.experts.items()}
        return _encoded(arrays | {_TENSORS: self.rows}, self.contents, identity)

    def require_of(
        self,
        checkpoint: ModelCheckpoint,
        parts: Sequence[ReferencePart],
        asked: Collection[Part] = tuple(Part),
    ) -> None:
        """See that these are digests of this checkpoint, as far as its headers tell.

        It may be stored otherwise, as long as names of other tensors than experts' stay the same.

        Args:
            checkpoint: whose bits are to be judged.
            parts: all of its parts, uncut.
            asked: those that are to be compared; the file may lack others, and have more.

        Raises:
            BadInput: it is of another revision, or other tensors or sizes are there.
        """
        mine, its = self.revision, checkpoint.location.revision
        if mine and its and mine != its:
            raise self._of_another(checkpoint, f"it is of {shown(mine)}, the checkpoint is {its}")
        if told := next(self._unlike(checkpoint, parts, asked), ""):
            raise self._of_another(checkpoint, told)

    def _unlike(
        self,
        checkpoint: ModelCheckpoint,
        parts: Sequence[ReferencePart],
        asked: Collection[Part],
    ) -> Iterator[str]:
        """How a checkpoint differs from the one that was digested, by the headers."""
        if checkpoint.tied is not self.contents.tied:
            yield "only one of the two ties the head to the embedding"
        known = {p.part: p for p in self.contents.parts if p.part in asked}
        wanted = {p.part: p for p in parts if p.part in asked}
        if known.keys() != wanted.keys():
            named = [", ".join(names) or "no part" for names in (known, wanted)]
            yield f"the file has experts of {named[0]}, the checkpoint experts of {named[1]}"
            return
        for part in wanted.values():
            own, shape = known[part.part], part.shape
            here = (part.layers, shape.experts, shape.hidden, shape.intermediate)
            if here != (own.layers, own.experts, own.hidden, own.intermediate):
                yield f"the {part.part}'s layers with experts, or their sizes, differ"
            if shape.dtype not in own.types:
                yield f"it has no digests of the {part.part}'s experts as {shape.dtype}"
        tensors = {tensor.name: tensor for tensor in self.contents.tensors}
        others = other_tensors(checkpoint, parts)
        there = {p.part for p in self.contents.parts} | {p.part for p in parts}
        left = there - set(asked)  # what no part is announced for is excused by nothing
        compared = {
            n for n in tensors.keys() | set(others) if checkpoint.family.part_of(n) not in left
        }
        for name in sorted((tensors.keys() ^ set(others)) & compared):
            side = "the file" if name in tensors else "the checkpoint"
            yield f"only {side} has a tensor {shown(name)}"
        for name in sorted(tensors.keys() & compared):
            entry, tensor = checkpoint.entries[name], tensors[name]
            if entry.shape != tensor.shape or entry.dtype not in tensor.types:
                yield (
                    f"tensor {shown(name)} is {tensor.dtype} {list(tensor.shape)} in the file and "
                    f"{entry.dtype} {list(entry.shape)} in the checkpoint"
                )

    def _of_another(self, checkpoint: ModelCheckpoint, told: str) -> BadInput:
        return BadInput(
            f"this digest file is of another checkpoint: {told}",
            where=self.path,
            expected=f"the digests of {checkpoint.path}",
            hint=_AGAIN,
        )


_MATRICES = tuple(Projection)


def array_name(part: Part, dtype: str) -> str:
    """What the array of a part's experts, as a parameter of a type holds them, is called."""
    return f"experts.{part}.{dtype}"


def other_tensors(checkpoint: ModelCheckpoint, parts: Sequence[ReferencePart]) -> list[str]:
    """The tensors of a checkpoint that are no experts' of these parts, by name in order."""
    experts = {name for part in parts for layer in part.layers for name in part.names_of(layer)}
    return sorted(checkpoint.entries.keys() - experts)


def is_digest_file(reference: str | os.PathLike[str]) -> bool:
    """Whether a reference names a file: a checkpoint is a directory, a URL or a hub id."""
    text = os.fspath(reference)
    return isinstance(text, str) and "\0" not in text and os.path.isfile(text)


def read_digest_file(path: str | os.PathLike[str]) -> DigestFile:
    """Read a digest file and check all of it.

    Raises:
        BadInput: it cannot be read, is none, is of another definition, or was damaged.
    """
    local = LocalFile(Path(path))
    if local.size > MOST_BYTES:
        raise _none(str(path), f"a file of {local.size} bytes", f"at most {MOST_BYTES}")
    return decoded(local.read(0, MOST_BYTES), str(path))


def decoded(content: bytes, path: str) -> DigestFile:
    """The digests of a file that was read, all of it checked; ``path`` is where.

    Raises:
        BadInput: see :func:`read_digest_file`.
    """
    file = _InMemory(path, content)
    metadata = read_metadata(file)
    if metadata.get("format") != FORMAT:
        raise _none(path, "it is not one", f"the format {FORMAT!r} in its metadata")
    if (definition := metadata.get("definition", "")) != str(DEFINITION):
        raise _none(
            path, f"digests by definition {shown(definition)}",
            f"definition {DEFINITION}, which this release calculates by",
        )  # fmt: skip
    checksum = metadata.get("checksum", "")
    if _checksum(file.content, checksum) != checksum:
        raise _none(path, "its checksum does not match its content", "the file as written")
    contents = _contents(path, metadata.get("contents", ""))
    arrays = _arrays(file, contents)
    experts = {(p.part, t): arrays[array_name(p.part, t)] for p in contents.parts for t in p.types}
    return DigestFile(
        contents, experts, arrays[_TENSORS], path, checksum, metadata.get("identity", "")
    )


class _InMemory(File):
    """The content of a file, read once: what was checked is what is used."""

    def __init__(self, path: str, content: bytes) -> None:
        self.name = path
        self.content = content
        self.size = len(content)

    def __str__(self) -> str:
        return self.name

    def read(self, start: int, stop: int) -> bytes:
        return self.content[start:stop]

    def bits(
        self, offset: int, dtype: str, shape: tuple[int, ...], within: tuple[int, int] | None = None
    ) -> Bits:
        count = math.prod(shape)
        return np.frombuffer(self.content, bits_dtype(dtype), count, offset).reshape(shape)

    def require_checksum(self) -> bool:
        return False


def _contents(path: str, text: str) -> Contents:
    try:
        contents = msgspec.convert(parsed_json(text.encode()), Contents)
        types = [each.types for each in contents.parts]
        types += [tensor.types for tensor in contents.tensors]
        _require_each_once([part.part for part in contents.parts])
        _require_each_once([tensor.name for tensor in contents.tensors])
        for names in (*types, *(part.layers for part in contents.parts)):
            _require_each_once(names)
        if unknown := set().union(*types) - ITEMSIZE.keys():
            raise ValueError(f"names an unknown type, {shown(min(unknown))}")
    except (ValueError, msgspec.ValidationError) as error:
        raise _none(path, f"its contents are malformed: {error}", "the file as written") from error
    return contents


def _require_each_once(names: Sequence[object]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("names something twice")


def _arrays(file: _InMemory, contents: Contents) -> dict[str, Words]:
    """Its arrays, each of which the contents must ask for in just that shape."""
    wanted: dict[str, tuple[int, ...]] = {
        array_name(p.part, dtype): (len(p.layers), p.experts, len(_MATRICES), LANES)
        for p in contents.parts
        for dtype in p.types
    }
    wanted[_TENSORS] = (sum(len(tensor.types) for tensor in contents.tensors), LANES)
    entries = read_entries(file)
    found = {n: (entry.dtype, entry.shape) for n, entry in entries.items()}
    if found != {name: ("U32", shape) for name, shape in wanted.items()}:
        raise _none(str(file), "its arrays are not those that its contents name", "exactly those")
    return {name: entry.bits() for name, entry in entries.items()}


def _encoded(arrays: Mapping[str, Words], contents: Contents, identity: str) -> bytes:
    metadata = {
        "format": FORMAT,
        "definition": str(DEFINITION),
        "contents": msgspec.json.encode(contents).decode(),
        **({"identity": identity} if identity else {}),
        "checksum": _BLANK,
    }
    header: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name in sorted(arrays):
        words = np.ascontiguousarray(arrays[name], dtype="<u4").tobytes()
        offsets = [len(data), len(data) + len(words)]
        header[name] = {"dtype": "U32", "shape": arrays[name].shape, "data_offsets": offsets}
        data += words
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text + data
    first = blank.index(f'"checksum":"{_BLANK}"'.encode()) + len('"checksum":"')
    checksum = hashlib.sha256(blank).hexdigest().encode()
    return blank[:first] + checksum + blank[first + len(checksum) :]


_BLANK = "0" * 64


def _checksum(content: bytes, stated: str) -> str:
    """The checksum of a file that states one: it was made with zeros in its place."""
    if len(stated) != len(_BLANK) or not stated.isascii():
        return _BLANK
    mark = b'"checksum":"'
    return hashlib.sha256(
        content.replace(mark + stated.encode(), mark + _BLANK.encode(), 1)
    ).hexdigest()


def _none(path: str, what: str, expected: str) -> BadInput:
    return BadInput(
        f"cannot be used as a digest file: {what}", where=path, expected=expected, hint=_AGAIN
    )
