"""Ways to spoil a checkpoint in a directory: its files, its config and its index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.checkpoint.checkpoint import INDEX

Spoil = Callable[[Path], None]

FIRST = "model-00001-of-00004.safetensors"
SECOND = "model-00002-of-00004.safetensors"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors header; the data after it stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


def no_directory(at: Path) -> None:
    shutil.rmtree(at)


def a_file_instead(at: Path) -> None:
    shutil.rmtree(at)
    at.touch()


def no_config(at: Path) -> None:
    (at / "config.json").unlink()


def config_not_json(at: Path) -> None:
    (at / "config.json").write_text("{")


def config_is_a_list(at: Path) -> None:
    (at / "config.json").write_text("[]")


def unknown_architecture(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"]))


def quantised(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))


def no_sizes(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].pop("num_experts"))


def fewer_experts_announced(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].update(num_experts=7))


def more_layers_announced(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].update(num_hidden_layers=3))


def no_index(at: Path) -> None:
    (at / INDEX).unlink()


def index_without_map(at: Path) -> None:
    (at / INDEX).write_text("{}")


def absent_file(at: Path) -> None:
    (at / FIRST).unlink()


def outside(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x="../other.safetensors"))


def absolute(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x="/etc/passwd"))


def tensor_not_in_file(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x=FIRST))


def truncated(at: Path) -> None:
    (at / FIRST).write_bytes((at / FIRST).read_bytes()[:-100])


def too_long(at: Path) -> None:
    (at / FIRST).write_bytes((at / FIRST).read_bytes() + b"\0")


def empty_file(at: Path) -> None:
    (at / FIRST).write_bytes(b"")


def header_longer_than_file(at: Path) -> None:
    raw = (at / FIRST).read_bytes()
    (at / FIRST).write_bytes((1 << 40).to_bytes(8, "little") + raw[8:])


def header_not_json(at: Path) -> None:
    raw = (at / FIRST).read_bytes()
    (at / FIRST).write_bytes(raw[:8] + b"!" + raw[9:])


def header_lies_about_shape(at: Path) -> None:
    edit_header(at / FIRST, lambda h: next(iter(list(h.values())[1:])).update(shape=[3, 3]))


def header_overlaps(at: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        tensors = [fields for name, fields in header.items() if name != "__metadata__"]
        last = tensors[-1]["data_offsets"]
        tensors[-1]["data_offsets"] = [last[0] - 2, last[1] - 2]

    edit_header(at / FIRST, overlap)


def header_entry_malformed(at: Path) -> None:
    edit_header(at / FIRST, lambda h: h.update(x={"dtype": "BF16"}))


def header_dtype_unknown(at: Path) -> None:
    edit_header(at / FIRST, lambda h: list(h.values())[1].update(dtype="F4"))


def two_layouts(at: Path) -> None:
    """[E, 2F, D] beside a down projection of [E, F, D]: vLLM 0.26 loads it without a word."""
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    edit_header(at / FIRST, lambda h: h[name].update(shape=[*h[name]["shape"][:1], 96, 128]))


def stray_expert(at: Path) -> None:
    def rename(header: dict[str, Any]) -> None:
        header["a.experts.b"] = header.pop("model.language_model.embed_tokens.weight")

    edit_header(at / FIRST, rename)
    edit_json(at / INDEX, lambda c: c["weight_map"].update({"a.experts.b": FIRST}))
    edit_json(at / INDEX, lambda c: c["weight_map"].pop("model.language_model.embed_tokens.weight"))


DEFECTS: list[tuple[Callable[[Path], None], str]] = [
    (no_directory, "no such directory"),
    (a_file_instead, "not a directory"),
    (no_config, "no config.json"),
    (config_not_json, "config.json is not JSON"),
    (config_is_a_list, "config.json holds a JSON list"),
    (unknown_architecture, "unknown architecture LlamaForCausalLM"),
    (quantised, "an unsupported quantisation"),
    (no_sizes, "num_experts is absent"),
    (fewer_experts_announced, r"gate_up_proj' is BF16 \[8, 128, 96\]"),
    (more_layers_announced, r"layers with experts in the files: \[0, 1\]"),
    (no_index, "no index and no single weight file"),
    (index_without_map, "no weight_map"),
    (absent_file, "absent file: 'model-00001-of-00004.safetensors'"),
    (outside, "a file outside the directory: '../other.safetensors'"),
    (absolute, "a file outside the directory: '/etc/passwd'"),
    (tensor_not_in_file, "in this file, which does not hold it"),
    (truncated, "the file is truncated"),
    (too_long, "the file is too long"),
    (empty_file, "the file has 0"),
    (header_longer_than_file, "announce a header of 1099511627776 bytes"),
    (header_not_json, "its header is not JSON"),
    (header_lies_about_shape, "the header lies about tensor"),
    (header_overlaps, "begins at byte"),
    (header_entry_malformed, "entry of tensor 'x' is malformed"),
    (header_dtype_unknown, "has dtype 'F4'"),
    (two_layouts, r"is BF16 \[8, 96, 128\].*BF16 \[8, 128, 96\], by config.json"),
    (stray_expert, "would not be compared, the first is 'a.experts.b'"),
]
