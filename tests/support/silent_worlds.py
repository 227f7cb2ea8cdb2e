"""A checkpoint, its reference and what an honest load leaves on four devices, all made of arrays.

What a row of :mod:`tests.support.silent_passes` tampers with. :func:`judged` sends the result
through all that ``harness verify`` does, but for the load itself.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from harness.checkpoint.checkpoint import INDEX, SINGLE_FILE
from harness.devices.expert_layout import Parameter
from harness.devices.tensors import DeviceTensor
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.ledger import Ledger
from harness.load.loaded import Loaded
from harness.load.targets.known_targets import target_named
from harness.report.report import Report
from harness.verification import verify as verification
from harness.verification.job import run
from harness.verification.verify import verify
from tests.support.ledgers import call
from tests.support.packing import PackedDevice
from tests.support.parameter_packing import Array, Packed, PackedParameters

Mend = Callable[[DeviceTensor], DeviceTensor]


class Tensor(NamedTuple):
    """A tensor of a file: safetensors dtype, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Tensor]


def tensors_of(path: Path) -> Tensors:
    """All tensors of a checkpoint, in the order of their files."""
    entries = ModelCheckpoint(path).entries.values()
    return {e.name: Tensor(e.dtype, e.shape, np.asarray(e.bits()).tobytes()) for e in entries}


def write_tensors(file: Path, tensors: Tensors) -> None:
    """A safetensors file of them."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    encoded = json.dumps(header).encode()
    start = len(encoded).to_bytes(8, "little")
    file.write_bytes(start + encoded + b"".join(t.data for t in tensors.values()))


def change_tensors(path: Path, change: Callable[[Tensors], object]) -> None:
    """Change a checkpoint's tensors; they stand in a single file from then on."""
    tensors = tensors_of(path)
    change(tensors)
    for file in path.glob("*.safetensors"):
        file.unlink()
    (path / INDEX).unlink(missing_ok=True)
    write_tensors(path / SINGLE_FILE, tensors)


def change_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's config.json."""
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def some(shape: tuple[int, ...] = (128,), dtype: str = "BF16") -> Tensor:
    """A tensor that no model has use for."""
    size = math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
    return Tensor(dtype, shape, b"\x3f" * size)


@dataclass
class World:
    """What a row may tamper with.

    Attributes:
        checkpoint: the one under test, a copy of its own.
        reference: what it is compared with, another copy.
        experts: by part, the experts' arrays on the devices.
        parameters: by part, all others.
        ledger: fields of every part's ledger, instead of those of an honest load.
        mends: by the end of their name, arrays that are changed as a whole when they are read.
        options: of ``verify``.
    """

    checkpoint: Path
    reference: Path
    experts: dict[Part, PackedDevice]
    parameters: dict[Part, PackedParameters]
    ledger: dict[str, Any] = field(default_factory=dict)
    mends: dict[str, Mend] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def expert_array(self, which: Parameter, layer: int = 1, part: Part = Part.DECODER) -> Array:
        """An array of experts, to change."""
        array: Array = self.experts[part].arrays[layer][which]
        return array

    def packed(self, end: str, part: Part = Part.DECODER) -> Packed:
        """The parameter whose name ends so, with an array of its own, to change."""
        (name,) = [n for n in self.parameters[part].packed if n.endswith(end)]
        packed = self.parameters[part].packed[name]
        packed.array = packed.array.copy()
        return packed

    def loaded(self) -> Loaded:
        """What the comparison is given."""
        tensors = {part: list(map(self._mended, self._tensors(part))) for part in self.parameters}
        mesh = next(iter(self.experts.values())).mesh
        return Loaded(tensors, mesh, "entry", 1.0, 2.0, (("model", len(mesh)),))

    def _tensors(self, part: Part) -> list[DeviceTensor]:
        layers = self.experts[part].part().layers.values()
        experts = [tensor for layer in layers for tensor in layer.values()]
        return experts + self.parameters[part].tensors()

    def _mended(self, tensor: DeviceTensor) -> DeviceTensor:
        for end, mend in self.mends.items():
            tensor = mend(tensor) if tensor.name.endswith(end) else tensor
        return tensor


def world(honest: Path, base: Path, devices: int = 4) -> World:
    """An honest one; a row has yet to change it."""
    checkpoint = shutil.copytree(honest, base / "checkpoint")
    reference = shutil.copytree(honest, base / "reference")
    opened = ModelCheckpoint(honest)
    parts = reference_parts(opened)
    return World(
        checkpoint,
        reference,
        {part.part: PackedDevice(part, devices) for part in parts},
        {part.part: PackedParameters(opened, part.part, devices) for part in parts},
        options={"target": target_named("emulated", devices)},
    )


def judged(given: World, patch: pytest.MonkeyPatch, reference: Path | None = None) -> Report:
    """The report of what ``harness verify`` makes of it, without the load.

    ``reference`` is its own unless given. The ledger says that a loader was called for every
    tensor: it alone gives nothing away.
    """

    def load(checkpoint: str, *_: Any, ledgers: dict[Part, Ledger], **__: Any) -> Loaded:
        names = list(ModelCheckpoint(checkpoint).entries)
        calls = [call("some.weight", source=name) for name in names]
        facts: dict[str, Any] = {"finished": True, "streamed": names, "calls": calls}
        for part in given.parameters:
            ledgers[part] = Ledger(**facts | given.ledger)
        return given.loaded()

    patch.setattr(engine, "load", load)
    patch.setattr(engine, "leave", lambda target: None)
    patch.setattr(verification, "outcomes", lambda request, report, *_: [run(request, report)])
    return verify(given.checkpoint, reference=reference or given.reference, **given.options)


def without_shard(device: str) -> Mend:
    """One device holds nothing of it."""
    return lambda tensor: replace(
        tensor, shards=tuple(s for s in tensor.shards if s.device != device)
    )


def on(devices: dict[str, str]) -> Mend:
    """Shards on other devices."""

    def moved(tensor: DeviceTensor) -> DeviceTensor:
        shards = (replace(s, device=devices.get(s.device, s.device)) for s in tensor.shards)
        return replace(tensor, shards=tuple(shards))

    return moved
