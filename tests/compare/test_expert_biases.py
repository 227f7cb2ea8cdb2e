"""Biases of experts, gpt-oss': packed forward as upstream tells it, and every fault is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.compare.difference import (
    BitsDiffer,
    Difference,
    DtypeDiffers,
    PaddingWritten,
    ShapeDiffers,
    ShardMisplaced,
    Unaccounted,
)
from harness.compare.parameter_comparison import ParameterComparison
from harness.devices.expert_layout import Backend, Span
from harness.devices.parameter_layout import HOST, Packing
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.explain.causes import Cause, Diagnosis
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import ReferencePart, reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger, LoaderCall
from tests.support.parameter_packing import line
from tests.support.retyping import cast

Array = npt.NDArray[Any]
STORED = "model.layers.{}.mlp.experts.{}_bias"
NAMES = {"w13_bias": "gate_up_proj", "w2_bias": "down_proj"}
E, D, F = 8, 128, 48


@pytest.fixture
def part(tiny_checkpoints: dict[str, Path]) -> ReferencePart:
    (part,) = reference_parts(ModelCheckpoint(tiny_checkpoints["gpt-oss"]))
    return part


@dataclass
class Packed:
    """One array and the axis it is cut along; None for a copy on every device."""

    array: Array
    axis: int | None
    dtype: str = "F32"


Spoil = Callable[[str, Array], object]


def packed(
    part: ReferencePart,
    layer: int,
    backend: Backend,
    devices: int,
    spoil: Spoil = lambda name, stored: None,
) -> dict[str, Packed]:
    """A layer's biases, from upstream's description.

    Every second number of gate_up_proj_bias is gate's. As f32 [E, 1, …]: gate's and up's pieces,
    one for each device or one in all, each padded to 128, side by side; for the fused kernel
    [E, 2, 1, F] padded to 256, and down's padded alike. ``spoil`` changes them as they are stored.
    """
    fused, down = (
        np.array(part.checkpoint.bits(STORED.format(layer, name))) for name in NAMES.values()
    )
    spoil("w13_bias", fused)
    spoil("w2_bias", down)
    if backend in (Backend.XLA_TP, Backend.XLA_EP):
        return {"w13_bias": Packed(fused, None, "BF16"), "w2_bias": Packed(down, None, "BF16")}
    halves = [fused[:, first::2].astype("<u4") << 16 for first in (0, 1)]
    wide = (down.astype("<u4") << 16)[:, None]
    if backend is Backend.FUSED_MOE:
        w13 = np.stack([_padded(half, 256)[:, None] for half in halves], axis=1)
        return {"w13_bias": Packed(w13, 0), "w2_bias": Packed(_padded(wide, 256), 0)}
    n = devices if backend is Backend.GMM_TP else 1
    pieces = [_padded(np.split(half, n, 1)[i], 128) for i in range(n) for half in halves]
    whole = backend is Backend.GMM_EP
    return {
        "w13_bias": Packed(np.concatenate(pieces, 1)[:, None], 0 if whole else 2),
        "w2_bias": Packed(wide, 0 if whole else None),
    }


def _padded(array: Array, multiple: int) -> Array:
    width = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % multiple)]
    return np.pad(array, width)


def tensor(name: str, what: Packed, devices: int) -> DeviceTensor:
    shards = []
    for number in range(devices):
        index = [Span(0, size) for size in what.array.shape]
        if what.axis is not None:
            size = what.array.shape[what.axis] // devices
            index[what.axis] = Span(number * size, (number + 1) * size)
        bits = what.array[tuple(span.as_slice() for span in index)]
        shards.append(
            DeviceShard(f"cpu:{number + 1}", tuple(index), bits.__getitem__, in_host_memory=True)
        )
    return DeviceTensor(name, what.dtype, what.array.shape, tuple(shards))


Change = Callable[[dict[str, Packed]], object]
Found = tuple[list[Difference], list[Diagnosis], ParameterComparison]


def compared(
    part: ReferencePart,
    backend: Backend = Backend.GMM_TP,
    devices: int = 4,
    change: Change = lambda _: None,
    spoil: Spoil = lambda name, stored: None,
    ledger: Ledger | None = None,
) -> Found:
    """Compare both layers' biases and nothing else, those of layer 1 changed or spoiled."""
    tensors = []
    for layer in part.layers:
        arrays = packed(part, layer, backend, devices, *[spoil] * (layer == 1))
        if layer == 1:
            change(arrays)
        prefix = f"vllm_model.model.layers.{layer}.mlp.experts.routed_experts"
        tensors += [tensor(f"{prefix}.{name}", what, devices) for name, what in arrays.items()]
    comparison = ParameterComparison(
        part, tensors, line(tuple(f"cpu:{n + 1}" for n in range(devices))), backend=backend,
        packing=HOST if backend in (Backend.XLA_TP, Backend.XLA_EP) else Packing(),
    )  # fmt: skip
    found: list[Difference] = []
    found += (d for d in comparison.differences() if not isinstance(d, Unaccounted))
    explainer = ParameterExplainer(comparison, ledger)
    return found, explainer.diagnose(found), comparison


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("backend", Backend)
def test_biases_as_upstream_lays_them_out_are_equal(
    part: ReferencePart, backend: Backend, devices: int
) -> None:
    found, _, comparison = compared(part, backend, devices)
    assert found == []
    assert comparison.tally.compared == 4
    of_biases = [n for n in part.checkpoint.entries if n.endswith("_proj_bias")]
    entries = part.checkpoint.entries
    assert comparison.tally.bytes_compared == sum(entries[name].nbytes for name in of_biases)
    padded = backend in (Backend.GMM_TP, Backend.GMM_EP, Backend.FUSED_MOE)
    assert bool(comparison.tally.padding_bytes) is padded


def test_the_measured_example(part: ReferencePart) -> None:
    """w13_bias is (8, 1, 1024) over four devices, w2_bias (8, 1, 128)."""
    arrays = packed(part, 0, Backend.GMM_TP, 4)
    assert [a.array.shape for a in arrays.values()] == [(8, 1, 1024), (8, 1, 128)]


@pytest.mark.parametrize("backend", [Backend.GMM_TP, Backend.GMM_EP, Backend.FUSED_MOE])
@pytest.mark.parametrize("expert", [0, 5])
@pytest.mark.parametrize(
    ("name", "column"), [("w13_bias", 2 * 17), ("w13_bias", 2 * 40 + 1), ("w2_bias", 100)]
)
def test_one_bit_is_named_where_it_is(
    part: ReferencePart, backend: Backend, expert: int, name: str, column: int
) -> None:
    """In the file's own index, whatever was between."""
    stored = STORED.format(1, NAMES[name])
    value = int(part.checkpoint.bits(stored)[expert, column]) << 16

    def flip(which: str, array: Array) -> None:
        if which == name:
            array[expert, column] ^= 1

    (difference,), (diagnosis,), _ = compared(part, backend, spoil=flip)
    assert isinstance(difference, BitsDiffer)
    assert difference.source is not None
    assert (difference.source.tensor, difference.index) == (stored, (expert, column))
    assert (difference.reference, difference.device) == (value, value ^ (1 << 16))
    assert diagnosis.cause is Cause.BIT_FLIP
    assert stored in diagnosis.summary


def _reordered(order: Array) -> Spoil:
    def spoil(name: str, stored: Array) -> None:
        if name == "w13_bias":
            stored[:] = stored[:, order]

    return spoil


#: Nobody sorts gate's and up's numbers: halves of the tensor are taken for them.
HALVES = np.arange(2 * F).reshape(2, F).T.ravel()
EXCHANGED = np.arange(2 * F).reshape(F, 2)[:, ::-1].ravel()
ROTATED = np.roll(np.arange(2 * F), 2 * F // 4)


def _zeros(arrays: dict[str, Packed]) -> None:
    arrays["w13_bias"].array[:] = 0


def _poison(arrays: dict[str, Packed]) -> None:
    """As the bf16 parameter on the host is poisoned, and then made f32."""
    arrays["w2_bias"].array[:] = 0xDEAD0000


def _other_expert(arrays: dict[str, Packed]) -> None:
    arrays["w2_bias"].array[3] = arrays["w2_bias"].array[4]


def _padding(arrays: dict[str, Packed]) -> None:
    arrays["w13_bias"].array[2, 0, 200] = 7


def _whole(arrays: dict[str, Packed]) -> None:
    arrays["w13_bias"].axis = None


def _bf16(arrays: dict[str, Packed]) -> None:
    down = arrays["w2_bias"]
    arrays["w2_bias"] = Packed((down.array >> 16).astype("<u2"), None, "BF16")


def _unpadded(arrays: dict[str, Packed]) -> None:
    arrays["w13_bias"].array = arrays["w13_bias"].array[..., :512]


FAULTS: dict[str, tuple[Change, type[Difference], Cause]] = {
    "zeros": (_zeros, BitsDiffer, Cause.ZEROS),
    "never written": (_poison, BitsDiffer, Cause.UNWRITTEN),
    "another expert's": (_other_expert, BitsDiffer, Cause.ROWS_EXCHANGED),
    "padding": (_padding, PaddingWritten, Cause.PADDING),
    "replicated": (_whole, ShardMisplaced, Cause.REPLICATED),
    "left as bf16": (_bf16, DtypeDiffers, Cause.STRUCTURE),
    "without padding": (_unpadded, ShapeDiffers, Cause.STRUCTURE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_and_named(part: ReferencePart, fault: str) -> None:
    change, kind, cause = FAULTS[fault]
    found, diagnoses, _ = compared(part, change=change)
    assert {type(difference) for difference in found} == {kind}
    assert {difference.layer for difference in found} == {1}
    assert {diagnosis.cause for diagnosis in diagnoses} == {cause}


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        (HALVES, Cause.ROWS_EXCHANGED), (EXCHANGED, Cause.ROWS_EXCHANGED), (ROTATED, Cause.ROLLED)
    ],
    ids=["taken for halves", "gate and up exchanged", "cut for other devices"],
)  # fmt: skip
@pytest.mark.parametrize("backend", [Backend.GMM_TP, Backend.GMM_EP, Backend.FUSED_MOE])
def test_another_order_is_named(
    part: ReferencePart, backend: Backend, order: Array, cause: Cause
) -> None:
    (difference,), (diagnosis,), _ = compared(part, backend, spoil=_reordered(order))
    assert isinstance(difference, BitsDiffer)
    assert diagnosis.cause is cause
    assert "columns" in diagnosis.summary


def ledger(*names: str, **more: Any) -> Ledger:
    """Of a load that copied these tensors of layer 1 past every loader."""
    sources = [f"model.layers.1.mlp.experts.{name}" for name in names]
    calls = [
        LoaderCall(
            f"layers.1.mlp.experts.{name}", "RoutedExperts", source, (), {}, "m.py:1", False,
            "copy_", E,
        )
        for name, source in zip(("w13_weight", "w13_bias"), sources, strict=False)
    ]  # fmt: skip
    return Ledger(calls=calls, streamed=sources, finished=True, **more)


@pytest.mark.parametrize("held", [0, 0xDEAD0000])
@pytest.mark.parametrize(
    ("copied", "lost"), [(("gate_up_proj",), True), (("gate_up_proj", "gate_up_proj_bias"), False)]
)
def test_a_bias_that_nobody_copied_is_lost(
    part: ReferencePart, held: int, copied: tuple[str, ...], lost: bool
) -> None:
    def lose(arrays: dict[str, Packed]) -> None:
        arrays["w13_bias"].array[:] = held

    known = ledger(*copied)
    (difference, *padding), diagnoses, _ = compared(part, change=lose, ledger=known)
    assert isinstance(difference, BitsDiffer)
    assert all(isinstance(each, PaddingWritten) for each in padding)
    otherwise = Cause.UNWRITTEN if held else Cause.ZEROS
    assert diagnoses[0].cause is (Cause.BIAS_LOST if lost else otherwise)


def test_a_checkpoint_in_f32_is_rounded_to_the_parameter_and_widened_again(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The host's parameter is in the model's bf16: what the device holds went through it."""
    path = cast(tiny_checkpoints["gpt-oss"], tmp_path / "c", {r".*_proj_bias": "F32"})
    (wide,) = reference_parts(ModelCheckpoint(path))
    tensors = compared(reference_parts(ModelCheckpoint(tiny_checkpoints["gpt-oss"]))[0])
    comparison = tensors[2]
    view = next(iter(comparison.views.fitting.values()))
    stored = wide.checkpoint.bits(STORED.format(0, "gate_up_proj"))
    assert (stored & 0xFFFF).any()
    expected = comparison.expected(stored, "F32", view.layout)
    assert not (expected & 0xFFFF).any()
    assert expected.dtype == np.uint32
