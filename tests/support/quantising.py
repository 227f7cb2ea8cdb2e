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
from harness.checkpoint.grids import Quantised as QuantisedMatrix
from harness.devices.tensors import DevicePart, DeviceTensor, device_part
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.packing import replicated, sharded
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
#: What the device is given instead of the checkpoint's codes and scales.
Altered = Callable[[ExpertKey, QuantisedMatrix], QuantisedMatrix]


def checkpoint_grid(reference: ReferencePart, key: ExpertKey) -> Values:
    entry = reference.checkpoint.entries[f"{reference.source(key).tensor}{SCALE_SUFFIX}"]
    return scales_as_f32(entry.bits(), entry.dtype)


def fp8_experts(reference: ReferencePart, grid: Grid = checkpoint_grid) -> DevicePart:
    """All experts whole (GMM_EP): values by ``grid``, quantised anew, gate beside up."""
    return experts_on_device(reference, lambda key, q: q.with_scales(grid(reference, key)))


_TYPES = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F4_E2M1": ml_dtypes.float4_e2m1fn, "I4": ml_dtypes.int4,
}  # fmt: skip
_MOST = {"F8_E4M3": 448, "F4_E2M1": 6, "I4": 7}


def on_device(values: Values, dtype: str, block: int, nudged: float = 0) -> tuple[Codes, Values]:
    """Codes [outputs, inputs] and scales [outputs, blocks], as upstream quantises f32 anew.

    What is converted is first made larger by the share ``nudged``.
    """
    rows, columns = values.shape
    pieces = values.reshape(rows, columns // block, block)
    most = np.float32(_MOST[dtype])
    scales = np.abs(pieces).max(axis=2) / most
    with np.errstate(divide="ignore"):
        inverse = np.nan_to_num(np.float32(1) / scales)
    found = np.clip(
        pieces * inverse[..., None] * np.float32(1 + nudged), -8 if dtype == "I4" else -most, most
    )
    found = (np.trunc(found) if dtype == "I4" else found).astype(_TYPES[dtype])
    codes = found.reshape(rows, columns).view(np.uint8)
    return (codes & 0xF if dtype != "F8_E4M3" else codes), scales


def upstream_makes(
    reference: ReferencePart, key: ExpertKey, matrix: QuantisedMatrix, nudged: float = 0
) -> tuple[Codes, Values]:
    """Codes [outputs, inputs] and scales [outputs, blocks] of a matrix, padding and all."""
    assert reference.format
    form, shape = reference.format.form, reference.packed_shape
    if form.kept:
        return matrix.codes, matrix.by_outputs
    sizes = (shape.intermediate, shape.hidden)
    outputs, inputs = sizes[::-1] if key.projection is Projection.DOWN else sizes
    values = matrix.values
    more = [(0, outputs - values.shape[0]), (0, inputs - values.shape[1])]
    return on_device(np.pad(values, more), form.dtype, min(form.block or inputs, inputs), nudged)


def experts_on_device(
    reference: ReferencePart,
    altered: Altered = lambda key, matrix: matrix,
    mesh: tuple[str, ...] = MESH,
    *,
    cut: bool = False,
) -> DevicePart:
    """All experts whole (GMM_EP), codes and scales kept or quantised anew; gate beside up.

    Or each ``cut`` over all devices (GMM_TP); w2's scales are whole on each where there is one an
    output.
    """
    assert reference.format
    form = reference.format.form
    tensors: list[DeviceTensor] = []

    for layer in reference.layers:
        each = {
            key: upstream_makes(reference, key, altered(key, reference.quantised(key)))
            for key in reference.keys_of(layer)
        }
        of = {p: [m for key, m in each.items() if key.projection is p] for p in Projection}
        both = zip(of[Projection.GATE], of[Projection.UP], strict=True)
        pieces = len(mesh) if cut else 1
        w13 = [tuple(_beside(gate[n], up[n], pieces) for n in (0, 1)) for gate, up in both]
        w2 = [(codes.T, scales.T) for codes, scales in of[Projection.DOWN]]
        for name, pairs in (("w13_weight", w13), ("w2_weight", w2)):
            for number, end in enumerate(("", "_scale_inv")):
                full = f"vllm_model.model.layers.{layer}.mlp.experts.routed_experts.{name}{end}"
                array = np.stack([np.ascontiguousarray(pair[number]) for pair in pairs])
                array = array.view("<u4") if end else array
                axis = (2 if name == "w13_weight" else 1) if cut else 0
                whole = cut and array.shape[axis] == 1
                tensor = sharded(full, array, 0 if whole else axis, mesh)
                tensor = replicated(tensor, array) if whole else tensor
                dtype = "F32" if end else form.dtype
                tensors.append(DeviceTensor(full, dtype, tensor.shape, tensor.shards))
    return device_part(tensors, mesh, module="mlp.experts")


def _beside(gate: np.ndarray, up: np.ndarray, pieces: int) -> np.ndarray:
    """[inputs, outputs of both]: each piece of gate's, and beside it up's."""
    halves = [np.split(matrix.T, pieces, axis=1) for matrix in (gate, up)]
    return np.concatenate([half for pair in zip(*halves, strict=True) for half in pair], axis=1)


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
