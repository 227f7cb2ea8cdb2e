"""Quantised releases in which more is quantised than experts, or not all experts are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.restored import write_safetensors

Tensors = Mapping[str, tuple[str, Bits]]


def with_attention_quantised(path: Path, out: Path) -> Path:
    """Attention's matrices in the format of the experts, as most builds have them."""
    checkpoint = ModelCheckpoint(path)
    assert checkpoint.format
    taken = [name for name in checkpoint.entries if name.endswith("_proj.weight")]
    taken = [name for name in taken if ".self_attn." in name]
    made: dict[str, tuple[str, Bits]] = {}
    for name in taken:
        outputs, inputs = checkpoint.entries[name].shape
        for kind in checkpoint.format.tensors:
            shape = kind.shape(outputs, inputs)
            bits = np.ones(shape, f"<u{ITEMSIZE[kind.dtype]}")
            if kind.sizes:
                bits = np.array([outputs, inputs], "<u8")
            made[name.removesuffix("weight") + kind.suffix] = kind.dtype, bits
    _write(checkpoint, out, set(taken), made, kept=())
    return out


def with_cache_scales(path: Path, out: Path) -> Path:
    """A scale for the cache of keys."""
    scale = {"model.layers.0.self_attn.k_proj.k_scale": ("F32", np.ones((), "<u4"))}
    _write(ModelCheckpoint(path), out, set(), scale, kept=())
    return out


def with_a_layer_in_bf16(path: Path, out: Path, layer: int = 1) -> Path:
    """The experts of one layer as they were, by the format's list of what is not quantised."""
    _unquantised(path, out, Part.DECODER, [layer])
    return out


def with_the_draft_in_bf16(path: Path, out: Path) -> Path:
    """The draft model's experts alike."""
    _unquantised(path, out, Part.MTP, None)
    return out


def _unquantised(path: Path, out: Path, which: Part, layers: Sequence[int] | None) -> None:
    checkpoint, random = ModelCheckpoint(path), np.random.default_rng(7)
    (part,) = (each for each in reference_parts(checkpoint) if each.part is which)
    made: dict[str, tuple[str, Bits]] = {}
    gone: set[str] = set()
    for layer in part.layers if layers is None else layers:
        gone |= set(part.names_of(layer))
        for key in part.keys_of(layer):
            stem = part.stored_matrix(key)[0].removesuffix(part.naming.suffix)
            bits = random.integers(0x3C00, 0x3F80, part.sizes_of(key.projection), "<u2")
            made[f"{stem}weight"] = "BF16", bits
    _write(checkpoint, out, gone, made, kept=[name.removesuffix(".weight") for name in made])


def _write(
    checkpoint: ModelCheckpoint, out: Path, without: set[str], made: Tensors, kept: Iterable[str]
) -> None:
    """One file with other tensors, and a list of what is not quantised that fits it."""
    tensors = {
        name: (entry.dtype, np.asarray(entry.bits()))
        for name, entry in checkpoint.entries.items()
        if name not in without
    }
    out.mkdir()
    write_safetensors(out / "model.safetensors", tensors | dict(made))
    config = json.loads(json.dumps(checkpoint.config))
    quantization = config["quantization_config"]
    for key in ("ignore", "modules_to_not_convert"):
        if key in quantization:
            gone = {name.removesuffix(".weight") for name in without}
            fused = {name.replace(".q_proj", ".qkv_proj") for name in gone}
            stay = [name for name in quantization[key] if name not in gone | fused]
            quantization[key] = [*stay, *kept]
    (out / "config.json").write_text(json.dumps(config))


def with_its_own_quantisation_file(path: Path, out: Path) -> Path:
    """ModelOpt's ``hf_quant_config.json`` in the place of what config.json says."""
    shutil.copytree(path, out)
    config = json.loads((out / "config.json").read_text())
    said: dict[str, Any] = config.pop("quantization_config")
    (out / "config.json").write_text(json.dumps(config))
    quantization = {
        "quant_algo": said["quant_algo"],
        "kv_cache_quant_algo": None,
        "group_size": said["group_size"],
        "exclude_modules": said["ignore"],
    }
    content = {"producer": said["producer"], "quantization": quantization}
    (out / "hf_quant_config.json").write_text(json.dumps(content))
    return out
