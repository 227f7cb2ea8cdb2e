"""FP8 matrices with block scales, and what upstream makes of them."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import numpy.typing as npt

from harness.checkpoint.fp8_blocks import (
    EXPERTS,
    LINEAR,
    SCALE_SUFFIX,
    Arithmetic,
    Values,
    block_values,
    scales_as_f32,
)
from harness.devices.tensors import DevicePart, DeviceTensor, device_part
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.packing import sharded
from tests.support.parameter_packing import Array, Packed, PackedParameters

MESH = ("cpu:1", "cpu:2", "cpu:3", "cpu:4")
Codes = npt.NDArray[np.uint8]


def quantised_anew(values: Values, arithmetic: Arithmetic = EXPERTS) -> tuple[Codes, Values]:
    """As upstream does it: one scale for each output, values times its inverse, rounded."""
    dtype = np.dtype(np.float32) if arithmetic is EXPERTS else np.dtype(ml_dtypes.bfloat16)
    taken = values.astype(dtype)
    scale = np.abs(taken).max(axis=1) / dtype.type(448)
    inverse = dtype.type(1) / scale
    codes = np.clip(taken * inverse[:, None], dtype.type(-448), dtype.type(448))
    return codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scale.astype(np.float32)


def matrix(rows: int = 300, columns: int = 260) -> tuple[np.ndarray, Values]:
    random = np.random.default_rng(8)
    codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x31
    grid = (-(-rows // 128), -(-columns // 128))
    return codes, np.exp(random.normal(-4, 1, grid)).astype(np.float32)


Grid = Callable[[ReferencePart, ExpertKey], Values]


def checkpoint_grid(reference: ReferencePart, key: ExpertKey) -> Values:
    entry = reference.checkpoint.entries[f"{reference.source(key).tensor}{SCALE_SUFFIX}"]
    return scales_as_f32(entry.bits(), entry.dtype)


def fp8_experts(reference: ReferencePart, grid: Grid = checkpoint_grid) -> DevicePart:
    """All experts whole (GMM_EP): values by ``grid``, quantised anew, gate beside up."""
    tensors: list[DeviceTensor] = []
    for layer in reference.layers:
        made: dict[Projection, list[tuple[np.ndarray, Values]]] = {p: [] for p in Projection}
        for key in reference.keys_of(layer):
            values = block_values(reference[key], grid(reference, key))
            made[key.projection].append(quantised_anew(values))
        w13 = [
            np.concatenate([gate.T, up.T], axis=1)
            for (gate, _), (up, _) in zip(made[Projection.GATE], made[Projection.UP], strict=True)
        ]
        s13 = [
            np.concatenate([gate, up])[None]
            for (_, gate), (_, up) in zip(made[Projection.GATE], made[Projection.UP], strict=True)
        ]
        arrays = {
            "w13_weight": np.stack(w13),
            "w2_weight": np.stack([codes.T for codes, _ in made[Projection.DOWN]]),
            "w13_weight_scale_inv": np.stack(s13).view("<u4"),
            "w2_weight_scale_inv": np.stack([s[None] for _, s in made[Projection.DOWN]]).view(
                "<u4"
            ),
        }
        for name, array in arrays.items():
            full = f"vllm_model.model.layers.{layer}.mlp.experts.routed_experts.{name}"
            dtype = "F32" if "scale" in name else "F8_E4M3"
            tensor = sharded(full, array, 0, MESH)
            tensors.append(DeviceTensor(full, dtype, tensor.shape, tensor.shards))
    return device_part(tensors, MESH, module="mlp.experts")


class Quantised(PackedParameters):
    """Parameters packed forward, FP8 ones quantised anew; ``scales`` packs their scales instead."""

    def __init__(self, checkpoint: ModelCheckpoint, part: Part, *, scales: bool = False) -> None:
        self.scales = scales
        super().__init__(checkpoint, part)

    def get(self, name: str) -> Array:
        entry = self.checkpoint.entries[name]
        if entry.dtype != "F8_E4M3":
            return super().get(name)
        grid = self.checkpoint.entries[f"{name}{SCALE_SUFFIX}"]
        values = block_values(entry.bits(), scales_as_f32(grid.bits(), grid.dtype))
        codes, scale = quantised_anew(values, LINEAR)
        return scale.view("<u4")[:, None] if self.scales else codes


def quantised(checkpoint: ModelCheckpoint, part: Part) -> PackedParameters:
    """Codes and, beside each, its scales: in one row, divided where the outputs are."""
    device, scales = Quantised(checkpoint, part), Quantised(checkpoint, part, scales=True)
    for name, packed in list(device.packed.items()):
        if packed.array.dtype == np.uint8:
            packed.dtype = "F8_E4M3"
            axis = 0 if packed.axis == 1 else None
            row = scales.packed[name].array.ravel()
            device.packed[f"{name}_scale"] = Packed(row, axis, "F32")
    return device
