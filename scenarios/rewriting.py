"""Checkpoints made other than published, from one in the published layout."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from harness.checkpoint.checkpoint import INDEX

_FUSED = re.compile(r".*\.experts\.(gate_up_proj|down_proj)")


def number_files(path: Path) -> None:
    """Rename ``model-00001-of-…`` to ``model-1.safetensors``, in the index, too."""
    index = path / INDEX
    text = index.read_text()
    for number, file in enumerate(sorted(path.glob("*.safetensors")), start=1):
        name = f"model-{number}.safetensors"
        text = text.replace(file.name, name)
        file.rename(path / name)
    index.write_text(text)


def swap_axes(path: Path) -> Path:
    """Store fused experts with their last two axes swapped; gives a copy left as it was.

    That is how transformers 5 saves Qwen3-VL-MoE: [E, 2F, D] and [E, D, F] where published
    checkpoints have [E, D, 2F] and [E, F, D].
    """
    published = path.with_name(f"{path.name}-published")
    shutil.copytree(path, published)
    for file in path.glob("*.safetensors"):
        file.write_bytes(_with_axes_swapped(file.read_bytes()))
    return published


def contradict_ties(path: Path) -> None:
    """Tie the head in ``text_config`` and leave the top of config.json, where it is not tied.

    That is how transformers 5 saves Qwen3-VL-MoE, whose head is not tied.
    """
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["tie_word_embeddings"] = True
    file.write_text(json.dumps(config, indent=2))


def state_dtype(path: Path, dtype: str) -> None:
    """Have config.json ask for another type of model than the tensors are stored in."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    file.write_text(json.dumps(config, indent=2))


def _with_axes_swapped(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    for name, entry in header.items():
        if _FUSED.fullmatch(name):
            start, end = entry["data_offsets"]
            bits = np.frombuffer(data[start:end], np.uint16).reshape(entry["shape"])
            data[start:end] = np.ascontiguousarray(bits.swapaxes(1, 2)).tobytes()
            entry["shape"] = list(bits.swapaxes(1, 2).shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)
