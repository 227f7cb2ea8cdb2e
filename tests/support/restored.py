"""A checkpoint's values saved again, its experts in another storage; other tensors stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.bits import Bits, bits_dtype
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import ExpertNaming, Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint


def restored(path: Path, out: Path, namings: Mapping[Part, ExpertNaming]) -> Path:
    """Write one file that holds the experts of these parts by these namings."""
    checkpoint = ModelCheckpoint(path)
    tensors: dict[str, tuple[str, Bits]] = {}
    parts = {part.part: part for part in reference_parts(checkpoint, asked=())}
    experts = {n for p in parts.values() for layer in p.layers for n in p.names_of(layer)}
    for name, entry in checkpoint.entries.items():
        if name not in experts:
            tensors[name] = entry.dtype, np.asarray(entry.bits())
    for part in parts.values():
        tensors.update(_experts(part, namings.get(part.part, part.naming)))
    out.mkdir()
    shutil.copy(path / "config.json", out)
    write_safetensors(out / "model.safetensors", tensors)
    return out


def _experts(part: ReferencePart, naming: ExpertNaming) -> Iterator[tuple[str, tuple[str, Bits]]]:
    dtype = part.shape.dtype
    for layer in part.layers:
        made = {
            tensor.name: np.zeros(tensor.shape, bits_dtype(dtype))
            for tensor in part.tensors_of(layer, naming)
        }
        for key in part.keys_of(layer):
            name, index, transposed = naming.matrix(
                layer, key.expert, Projection(key.projection), part.shape.intermediate
            )
            made[name][index or ...] = part[key].T if transposed else part[key]
        yield from ((name, (dtype, bits)) for name, bits in made.items())


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Bits]], **metadata: str) -> None:
    """A safetensors file of these tensors: dtype and bits."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, bits) in tensors.items():
        content = np.ascontiguousarray(bits).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
