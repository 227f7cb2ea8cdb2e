"""The truth: a checkpoint's files, index, headers and bytes, read without the stack under test.

This is the reference CPU load. It imports neither vllm nor tpu_inference nor transformers, and it
maps files rather than reading them, so that a slice costs its own bytes and no more.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from harness.dtypes import Bits
from harness.errors import BadInput
from harness.family import FAMILIES, Family, family_of_architecture
from harness.safetensors_file import TensorEntry, read_entries

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Checkpoint:
    """A checkpoint in a directory: ``config.json``, an index and safetensors files.

    Args:
        path: the directory.

    Raises:
        BadInput: anything of it is absent, contradicts itself, or is of no known family.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _require_directory(Path(path))
        self.config = _read_json(self.path / "config.json")
        self.family = _family(self.path, self.config)
        _require_unquantized(self.path, self.config)
        self.entries = _read_all(self.path)

    def bits(self, name: str) -> Bits:
        """The raw bits of tensor ``name``, in its stored shape, mapped from the file."""
        return self.entries[name].bits()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())


def _require_directory(path: Path) -> Path:
    if not path.is_dir():
        raise BadInput(
            "no such directory" if not path.exists() else "not a directory",
            where=str(path),
            expected="a directory with config.json and safetensors files",
            hint="the path of a downloaded model, or harness checkpoint FAMILY OUT to write one",
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"no {path.name}",
            where=str(path.parent),
            expected=f"a file {path.name}",
            hint="the directory that holds it; a partial download lacks it",
        ) from error
    except ValueError as error:
        raise BadInput(
            f"{path.name} is not JSON: {error}",
            where=str(path),
            expected="a JSON object",
            hint="download the file again",
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{path.name} holds a JSON {type(content).__name__}",
            where=str(path),
            expected="a JSON object",
            hint="download the file again",
        )
    return content


def _family(path: Path, config: dict[str, Any]) -> Family:
    architectures = config.get("architectures") or []
    for architecture in architectures:
        if family := family_of_architecture(architecture):
            return family
    raise BadInput(
        f"unknown architecture {', '.join(map(str, architectures)) or '(none)'}",
        where=str(path / "config.json"),
        expected="architectures: one of " + ", ".join(f.architecture for f in FAMILIES),
        hint="a checkpoint of a supported family, or add a row to harness/family.py",
    )


def _require_unquantized(path: Path, config: dict[str, Any]) -> None:
    text = config.get("text_config") or {}
    if quantization := config.get("quantization_config") or text.get("quantization_config"):
        raise BadInput(
            f"a quantised checkpoint ({quantization.get('quant_method', 'unknown method')})",
            where=str(path / "config.json"),
            expected="unquantised weights: no quantization_config",
            hint="the bf16 release of the model; quantised layouts are not covered yet",
        )


def _read_all(path: Path) -> dict[str, TensorEntry]:
    if not (path / INDEX).exists():
        return _read_single(path)
    weight_map = _read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(
            "the index has no weight_map",
            where=str(path / INDEX),
            expected="an object weight_map of tensor names and file names",
            hint="download the index again",
        )
    files = {name: read_entries(_file_in(path, name)) for name in sorted(set(weight_map.values()))}
    for tensor, name in weight_map.items():
        if tensor not in files[name]:
            raise BadInput(
                f"the index names tensor {tensor!r}, its file does not hold it",
                where=str(path / name),
                expected=f"the tensor that {INDEX} promises",
                hint="download index and files from the same revision",
            )
    return {tensor: files[name][tensor] for tensor, name in weight_map.items()}


def _read_single(path: Path) -> dict[str, TensorEntry]:
    if (path / SINGLE_FILE).is_file():
        return read_entries(path / SINGLE_FILE)
    raise BadInput(
        "no index and no single weight file",
        where=str(path),
        expected=f"{INDEX} or {SINGLE_FILE}",
        hint="finish the download; weights in .bin files are not streamed by the loader under test",
    )


def _file_in(directory: Path, name: Any) -> Path:
    """The file ``name`` of the index; by name inside the directory (the hub's cache links out)."""
    plain = isinstance(name, str) and name != "" and "\\" not in name and "\0" not in name
    if not plain or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadInput(
            f"the index names a file outside the directory: {name!r}",
            where=str(directory / INDEX),
            expected="file names relative to the index, without '..'",
            hint="do not trust this index; download the checkpoint again",
        )
    file = directory / str(name)
    if not file.is_file():
        raise BadInput(
            f"the index names an absent file: {name!r}",
            where=str(directory / INDEX),
            expected="every file of weight_map in the directory",
            hint="finish the download",
        )
    return file
