"""Writes a synthetic checkpoint: safetensors files, their index, and ``config.json``.

Values are made and written chunk by chunk, so memory stays at a few MiB whatever the checkpoint's
size. The directory appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from harness.base.bits import ITEMSIZE
from harness.base.errors import BadInput, NotWritten
from harness.base.writing import require_writable_directory
from harness.families.family import TensorSpec
from harness.families.formats.known_formats import format_named
from harness.families.known_families import recipe_named
from harness.families.sections import VISION
from harness.synthetic.quantised_release import quantised_config, quantised_specs, stored
from harness.synthetic.values import SliceValues, Values


class Order(StrEnum):
    """The order tensors are written in: as published, or with the vision tower first."""

    PUBLISHED = "published"
    VISION_FIRST = "vision-first"


@dataclass(frozen=True)
class Written:
    """What was written: where, how many files and tensors, how many bytes of tensors."""

    path: Path
    files: int
    tensors: int
    nbytes: int


def write_checkpoint(
    family: str,
    out: str | os.PathLike[str],
    *,
    shapes: str = "tiny",
    layers: int | None = None,
    experts: int | None = None,
    files: int = 4,
    seed: int = 0,
    values: Values = Values.CORNERS,
    order: Order = Order.PUBLISHED,
    tied: bool = False,
    quantised: str = "",
) -> Written:
    """Write a synthetic checkpoint of ``family`` in its published layout to ``out``.

    Args:
        family: a recipe's name, see :func:`harness.families.known_families.recipes`.
        out: the directory to make; it must not exist.
        shapes: ``tiny`` or ``published:<model>``.
        layers: decoder layers, instead of the shape's own.
        experts: experts a layer, instead of the shape's own.
        files: safetensors files to spread the tensors over.
        seed: the values follow from it alone.
        values: which special values each slice holds.
        order: the order of the tensors over the files.
        tied: the head is the embedding: config.json says so, and no ``lm_head`` is written.
        quantised: the format of a quantised release (:mod:`harness.families.formats`), whose blocks
            divide the matrices.

    Raises:
        BadInput: an unknown family or shape, unusable counts, or ``out`` exists or cannot be made.
        NotWritten: there is no room for it; nothing of it stays.
    """
    described, recipe = recipe_named(family)
    shape = described.shape_named(shapes, layers, experts)
    maker = SliceValues(seed, values)
    first = VISION if order is Order.VISION_FIRST else ""
    specs = list(described.tensors(shape, recipe.mtp, first, recipe.decoder))
    specs = [spec for spec in specs if not (tied and spec.name == described.head)]
    form = format_named(quantised) if quantised else None
    specs = list(quantised_specs(specs, form)) if form else specs
    groups = _split(specs, files)
    target = _require_absent(Path(out))
    require_writable_directory(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".harness-", dir=target.parent))
    try:
        _write_files(partial, groups, maker)
        config = described.write_config(shape, 0 if recipe.mtp is None else 1, tied)
        config |= {"quantization_config": quantised_config(specs, form)} if form else {}
        _write_json(partial / "config.json", config)
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise _no_room(target, error) from error
        raise
    return Written(target, len(groups), len(specs), sum(_nbytes(spec) for spec in specs))


def _no_room(target: Path, error: OSError) -> NotWritten:
    return NotWritten(
        f"the checkpoint could not be written: {error.strerror or error}",
        where=str(target),
        expected="enough room for the whole checkpoint",
        hint="choose a directory with more room, or a smaller shape",
    )


def _require_absent(out: Path) -> Path:
    if os.path.lexists(out):
        raise BadInput(
            "the output path already exists",
            where=str(out),
            expected="a path that does not exist yet",
            hint="choose another path, or remove this one",
        )
    return out


def _nbytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * ITEMSIZE[spec.dtype]


def _split(specs: list[TensorSpec], files: int) -> list[list[TensorSpec]]:
    """Cut ``specs``, in order, into at most ``files`` groups of near-equal bytes."""
    if not 1 <= files <= len(specs):
        raise BadInput(
            f"{files} files for {len(specs)} tensors",
            where="files",
            expected=f"between 1 and {len(specs)}",
            hint="files=4",
        )
    goal = sum(_nbytes(spec) for spec in specs) / files
    groups: list[list[TensorSpec]] = [[]]
    written = 0
    for spec in specs:
        if groups[-1] and written >= goal * len(groups):
            groups.append([])
        groups[-1].append(spec)
        written += _nbytes(spec)
    return groups


def _write_files(directory: Path, groups: list[list[TensorSpec]], maker: SliceValues) -> None:
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        with (directory / name).open("wb") as file:
            _write_tensors(file, group, maker)
        weight_map |= {spec.name: name for spec in group}
    total = sum(_nbytes(spec) for group in groups for spec in group)
    _write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _write_tensors(file: BinaryIO, specs: list[TensorSpec], maker: SliceValues) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + _nbytes(spec)
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for spec in specs:
        _write_slices(file, spec, maker)


def _write_slices(file: BinaryIO, spec: TensorSpec, maker: SliceValues) -> None:
    count = -(-_nbytes(spec) // 2)  # of two bytes, which values come in
    slices = [None] if spec.experts is None else range(spec.experts)
    for expert in slices:
        for chunk in maker.chunks(spec.name, count // len(slices), expert):
            file.write(stored(spec, chunk).data)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
