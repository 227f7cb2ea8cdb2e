"""The truth: a checkpoint's files, index, headers and bytes, read without the stack under test.

This is the reference CPU load. It imports neither vllm nor tpu_inference nor transformers. Files
of a directory and objects of a store are read by ranges, so that a slice costs its own bytes and
no more.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from harness.base.bits import Bits
from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import (
    MAX_JSON,
    Index,
    TensorEntry,
    parsed_json,
    read_entries,
)
from harness.checkpoint.stores.location import File, Location
from harness.checkpoint.stores.opening import open_location

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_WEIGHTS = ".safetensors"  # what the streamer takes for weights, whatever the index says
#: Tensors of a checkpoint; the largest published, a trillion parameters in FP8, has 140 000.
_MOST_TENSORS = 200_000


class Checkpoint:
    """A checkpoint: ``config.json``, an index and safetensors files, wherever they lie.

    Args:
        path: a directory, ``s3://bucket/prefix``, ``gs://bucket/prefix``, or a hub id with an
            optional ``@revision``.

    Raises:
        BadInput: there is no such location, or ``config.json`` is absent or no JSON object.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.location = open_location(path)
        self.config = _read_json(self.location, "config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A file of the checkpoint that holds a JSON object.

        Raises:
            BadInput: it is absent, or holds none.
        """
        return _read_json(self.location, name)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """By name, where each tensor stands.

        Raises:
            BadInput: the index or a file is malformed, or one contradicts the other.
        """
        with _uncollected():
            return _read_all(self.location)

    @cached_property
    def beside(self) -> tuple[TensorEntry, ...]:
        """Tensors of weight files that the index does not name: the loader streams them, too.

        It lists each ``*.safetensors`` beside ``config.json`` (``runai_streamer_loader.py``,
        ``_prepare_weights``, 0.26 and 0.32; vLLM #40765), so a consolidated file is read with the
        sharded ones. What counts is what the index says.

        Raises:
            BadInput: such a file is malformed.
        """
        used = {entry.file.name for entry in self.entries.values()}
        others = sorted(n for n in self.location.files if n.endswith(_WEIGHTS) and n not in used)
        found = [entry for n in others for entry in read_entries(self.location.files[n]).values()]
        _require_no_more(len(self.entries) + len(found), str(self.location))
        return tuple(found)

    def require_copies_equal(self) -> None:
        """Compare what :attr:`beside` and the index both have: dtype, shape and every byte.

        Raises:
            BadInput: a copy differs. Which of them arrives is a matter of the order of files, so
                there is nothing to compare the device with.
        """
        for copy in self.beside:
            own = self.entries.get(copy.name)
            if own is not None and (differs := _difference(own, copy)):
                raise BadInput(
                    f"this file also holds tensor {copy.name!r}, with {differs} than in "
                    f"{own.file.name!r}, where the index places it",
                    where=str(copy.file),
                    expected="equal copies: the loader under test streams all weight files, and "
                    "keeps the last copy of a tensor that comes twice",
                    hint="move consolidated or old files elsewhere",
                )

    @property
    def path(self) -> str:
        """The place as the user named it."""
        return str(self.location)

    @property
    def model(self) -> str:
        """What vLLM is given as the model's path."""
        return self.location.model

    def bits(self, name: str, index: Index = ()) -> Bits:
        """The raw bits of tensor ``name``, in its stored shape, or those at ``index`` of it.

        One range of a file, or of a store's object.
        """
        return self.entries[name].bits(index)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def require_checksums(self) -> int:
        """Read every file whole and compare it with the checksums its place keeps.

        Returns:
            How many files had any; a directory keeps none.

        Raises:
            BadInput: a checksum differs.
        """
        return sum(file.require_checksum() for file in self.location.files.values())


def _read_json(location: Location, name: str) -> dict[str, Any]:
    file = location.files.get(name)
    if file is None:
        raise BadInput(
            f"no {name}",
            where=str(location),
            expected=f"a file {name}",
            hint="name the directory that holds it, or finish the download",
        )
    try:
        if file.size > MAX_JSON:
            raise ValueError(f"has {file.size} bytes, more than {MAX_JSON}")
        return parsed_json(file.read(0, file.size))
    except ValueError as error:
        raise BadInput(
            f"{name} {error}",
            where=str(file),
            expected="a JSON object",
            hint="download the file again",
        ) from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles: all that is made here stays, and to look at it doubles the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _read_all(location: Location) -> dict[str, TensorEntry]:
    if INDEX not in location.files:
        return _read_single(location)
    weight_map = _read_json(location, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(
            "the index has no weight_map",
            where=location.where(INDEX),
            expected="an object weight_map of tensor names and file names",
            hint="download the index again",
        )
    _require_no_more(len(weight_map), location.where(INDEX))
    chosen = {
        name: _file_in(location, name) for name in dict.fromkeys(map(_text, weight_map.values()))
    }
    files: dict[str, dict[str, TensorEntry]] = {}
    for name in sorted(chosen):
        files[name] = read_entries(chosen[name])
        _require_no_more(sum(map(len, files.values())), location.where(name))
    for tensor, name in weight_map.items():
        if tensor not in files[name]:
            raise BadInput(
                f"the index places tensor {shown(tensor)} in this file, which does not hold it",
                where=location.where(name),
                expected=f"the tensor that {INDEX} promises",
                hint="download index and files from the same revision",
            )
    _require_each_once(location, weight_map, files)
    return {tensor: files[name][tensor] for tensor, name in weight_map.items()}


def _read_single(location: Location) -> dict[str, TensorEntry]:
    if SINGLE_FILE in location.files:
        entries = read_entries(location.files[SINGLE_FILE])
        _require_no_more(len(entries), location.where(SINGLE_FILE))
        return entries
    pickles = [name for name in location.files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    raise BadInput(
        "no index and no single weight file"
        + (f", only pickles such as {pickles[0]!r}" if pickles else ""),
        where=str(location),
        expected=f"{INDEX} or {SINGLE_FILE}",
        hint="finish the download; neither the loader under test nor the harness opens pickles",
    )


def _require_no_more(tensors: int, where: str) -> None:
    if tensors > _MOST_TENSORS:
        raise BadInput(
            f"the checkpoint has {tensors} tensors",
            where=where,
            expected=f"at most {_MOST_TENSORS}",
            hint="use the published files; no model has that many",
        )


def _require_each_once(
    location: Location, weight_map: dict[str, str], files: dict[str, dict[str, TensorEntry]]
) -> None:
    """The loader streams every tensor of every file, whatever the index says: the last one wins."""
    for name, entries in files.items():
        for tensor in entries:
            placed = weight_map.get(tensor)
            if placed != name:
                raise BadInput(
                    f"tensor {tensor!r} is in this file, but "
                    + (f"the index places it in {placed!r}" if placed else "not in the index"),
                    where=location.where(name),
                    expected="every tensor in one file, named by the index: the loader under test "
                    "streams everything that the files hold",
                    hint="download index and files from the same revision",
                )


#: Bytes of two copies that are compared at a time.
_PIECE = 32 * 2**20


def _difference(own: TensorEntry, copy: TensorEntry) -> str:
    """What a copy of a tensor has other than the tensor; empty where nothing."""
    if (own.dtype, own.shape) != (copy.dtype, copy.shape):
        return f"another type or shape, {copy.dtype} {list(copy.shape)},"
    for start in range(0, own.nbytes, _PIECE):
        stop = min(start + _PIECE, own.nbytes)
        first = own.file.read(own.offset + start, own.offset + stop)
        if first != copy.file.read(copy.offset + start, copy.offset + stop):
            return "other bytes"
    return ""


def _text(name: Any) -> str:
    return name if isinstance(name, str) else shown(name)


def _file_in(location: Location, name: str) -> File:
    """The file ``name`` of the index; right in the location, though the hub's cache links out."""
    plain = name != "" and "\\" not in name and "\0" not in name
    if not plain or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadInput(
            f"the index names a file outside the directory: {shown(name)}",
            where=location.where(INDEX),
            expected="file names relative to the index, without '..'",
            hint="do not trust this index; download the checkpoint again",
        )
    if "/" in name or not name.endswith(_WEIGHTS):
        raise BadInput(
            f"the index names a file that would not be streamed: {shown(name)}",
            where=location.where(INDEX),
            expected="*.safetensors beside the index: pickles are refused, folders not searched",
            hint="convert the weights to safetensors, all in one directory",
        )
    if name not in location.files:
        raise BadInput(
            f"the index names an absent file: {shown(name)}",
            where=location.where(INDEX),
            expected="every file of weight_map in the directory",
            hint="finish the download",
        )
    return location.files[name]
