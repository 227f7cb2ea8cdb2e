"""One byte of a tiny checkpoint flipped, and which expert's element that is."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.checkpoint.checkpoint import Checkpoint
from harness.families.experts import ExpertKey
from harness.families.family import Part, Projection

D, F = 128, 48
DECODER = "model.language_model.layers.1.mlp.experts"

#: Recipe, the element whose low byte is flipped as (tensor, element in it), and what it is.
FLIPS = {
    "qwen3-vl-moe": (
        f"{DECODER}.gate_up_proj",
        (5 * D + 100) * 2 * F + F + 17,
        ExpertKey(Part.DECODER, 1, 5, Projection.UP),
        (17, 100),
    ),
    "qwen3-moe": (
        "model.layers.1.mlp.experts.3.up_proj.weight",
        11 * D + 90,
        ExpertKey(Part.DECODER, 1, 3, Projection.UP),
        (11, 90),
    ),
    "qwen3.5-moe": (
        f"{DECODER}.down_proj",
        (6 * D + 3) * F + 40,
        ExpertKey(Part.DECODER, 1, 6, Projection.DOWN),
        (3, 40),
    ),
    "qwen3.5-mtp": (
        "mtp.layers.0.mlp.experts.7.gate_proj.weight",
        47 * D + 127,
        ExpertKey(Part.MTP, 0, 7, Projection.GATE),
        (47, 127),
    ),
    "qwen3.6-mtp": (
        "mtp.layers.0.mlp.experts.gate_up_proj",
        (2 * 2 * F + F) * D,
        ExpertKey(Part.MTP, 0, 2, Projection.UP),
        (0, 0),
    ),
}


def with_one_byte_flipped(checkpoint: Path, copy: Path, tensor: str, element: int) -> Path:
    shutil.copytree(checkpoint, copy)
    entry = Checkpoint(copy).entries[tensor]
    with (copy / entry.file.name).open("r+b") as file:
        file.seek(entry.offset + 2 * element)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return copy
