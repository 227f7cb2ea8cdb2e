"""FP8 linear layers: a faithful device is equal, and a scale out of place is seen and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.compare.difference import Difference, Kind
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.words import device_words, reference_words, source_words
from harness.devices.parameter_layout import Packing
from harness.explain.causes import Cause, Diagnosis
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.report.message import failure_text
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from tests.support.differences import elements, pattern
from tests.support.parameter_packing import LANGUAGE, PackedParameters, line
from tests.support.quantising import quantised
from tests.support.reports import a_report
from tests.support.retyping import cast, relabelled

QKV = f"{LANGUAGE}layers.1.self_attn.qkv_proj.weight"
O_PROJ = f"{LANGUAGE}layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCheckpoint]:
    base = tmp_path_factory.mktemp("fp8")
    return {
        name: ModelCheckpoint(
            write_checkpoint(name, base / name, shapes="tiny:blocks", quantised="fp8").path
        )
        for name in ("qwen3-vl-moe", "qwen3.5-mtp")
    }


def compared(
    checkpoint: ModelCheckpoint, part: Part, device: PackedParameters
) -> tuple[list[Difference], list[Diagnosis]]:
    (reference,) = [p for p in reference_parts(checkpoint) if p.part is part]
    mesh = line(device.devices)
    comparison = ParameterComparison(reference, device.tensors(), mesh, packing=Packing())
    differences = list(comparison.differences())
    return differences, ParameterExplainer(comparison).diagnose(differences)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("qwen3-vl-moe", Part.DECODER),
        ("qwen3.5-mtp", Part.DECODER),
        ("qwen3.5-mtp", Part.MTP),
    ],
)
def test_a_faithful_device_is_equal(
    checkpoints: dict[str, ModelCheckpoint], recipe: str, part: Part
) -> None:
    checkpoint = checkpoints[recipe]
    assert compared(checkpoint, part, quantised(checkpoint, part))[0] == []


Change = Callable[[PackedParameters], None]


def _roll(device: PackedParameters) -> None:
    packed = device.packed[f"{O_PROJ}_scale"]
    packed.array = np.roll(packed.array, 1)


def _lose(device: PackedParameters) -> None:
    packed = device.packed[f"{O_PROJ}_scale"]
    packed.array = np.full_like(packed.array, 0x3F800000)


def _another_shard(device: PackedParameters) -> None:
    packed = device.packed[f"{QKV}_scale"]
    packed.array = np.roll(packed.array, len(packed.array) // 4)


def _one_replica(device: PackedParameters) -> None:
    device.reading[f"{O_PROJ}_scale", "cpu:3"] = lambda bits: bits ^ np.uint32(1)


def _remove(device: PackedParameters) -> None:
    del device.packed[f"{QKV}_scale"]


def _replicate(device: PackedParameters) -> None:
    device.packed[f"{QKV}_scale"].axis = None


@pytest.mark.parametrize(
    ("change", "kind", "cause"),
    [
        (_roll, Kind.VALUES, Cause.SCALE),
        (_lose, Kind.VALUES, Cause.SCALE),
        (_another_shard, Kind.VALUES, Cause.SCALE),
        (_one_replica, Kind.REPLICAS, Cause.REPLICAS_DIFFER),
        (_remove, Kind.MISSING, Cause.STRUCTURE),
        (_replicate, Kind.SHARDING, Cause.REPLICATED),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_fault_of_scales_is_named(
    checkpoints: dict[str, ModelCheckpoint], change: Change, kind: Kind, cause: Cause
) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    device = quantised(checkpoint, Part.DECODER)
    change(device)
    differences, diagnoses = compared(checkpoint, Part.DECODER, device)
    assert {d.kind for d in differences} == {kind}
    assert {d.cause for d in diagnoses} == {cause}
    assert {d.layer for d in differences} == {1}


@pytest.mark.parametrize("change", [_remove, _replicate])
def test_a_parameter_whose_scales_cannot_be_used_is_not_counted_as_compared(
    checkpoints: dict[str, ModelCheckpoint], change: Change
) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    device = quantised(checkpoint, Part.DECODER)
    change(device)
    reference = reference_parts(checkpoint)[0]
    mesh = line(device.devices)
    comparison = ParameterComparison(reference, device.tensors(), mesh, packing=Packing())
    assert list(comparison.differences())
    assert comparison.tally.compared == comparison.tally.parameters - 1


def test_a_code_of_one_tensor_is_placed(checkpoints: dict[str, ModelCheckpoint]) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    device = quantised(checkpoint, Part.DECODER)
    packed = device.packed[QKV]
    packed.array = packed.array.copy()
    row, column = np.argwhere((packed.array[:, :256] & 0x78) > 0x60)[0]
    packed.array[row, column] ^= 0x08
    (difference,), _ = compared(checkpoint, Part.DECODER, device)
    assert source_words(difference).endswith("layers.1.self_attn.q_proj.weight")
    assert elements(difference).index == (column, row)
    assert pattern(difference) == "no scale is off as a whole: some codes are other ones"


def test_an_odd_replica_is_counted_and_told(checkpoints: dict[str, ModelCheckpoint]) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    device = quantised(checkpoint, Part.DECODER)
    _one_replica(device)
    (difference,), (diagnosis,) = compared(checkpoint, Part.DECODER, device)
    scales = device.packed[f"{O_PROJ}_scale"].array
    assert (elements(difference).count, elements(difference).total) == (scales.size, scales.size)
    assert (difference.device_name, elements(difference).index) == ("cpu:3", (0,))
    assert reference_words(difference) == f"0x{scales[0]:08x} on cpu:1"
    assert device_words(difference) == f"0x{scales[0] ^ 1:08x}"
    assert diagnosis.evidence.startswith("at [0] cpu:3 holds 0x")
    report = a_report(status=Status.DIFFERENT, differences=[difference], diagnoses=[diagnosis])
    assert f"{scales.size} of {scales.size} elements (100.00%)" in failure_text(report)


@pytest.mark.parametrize("dtype", ["U8", "F8_E5M2"])
@pytest.mark.parametrize("leaf", "qkv")
def test_codes_of_another_type_differ(
    checkpoints: dict[str, ModelCheckpoint], tmp_path: Path, leaf: str, dtype: str
) -> None:
    """Of three tensors in a parameter each counts, not the first alone."""
    checkpoint = checkpoints["qwen3-vl-moe"]
    pattern = rf".*layers\.1\.self_attn\.{leaf}_proj\.weight"
    spoiled = ModelCheckpoint(relabelled(Path(checkpoint.path), tmp_path / "r", {pattern: dtype}))
    differences, _ = compared(spoiled, Part.DECODER, quantised(checkpoint, Part.DECODER))
    assert (differences[0].kind, differences[0].parameter) == (Kind.UNACCOUNTED, QKV)
    assert f"tensors of F8_E4M3, {dtype}" in reference_words(differences[0])


@pytest.mark.parametrize("dtype", ["F16", "I16"])
def test_scales_of_another_type_with_the_same_bytes_differ(
    checkpoints: dict[str, ModelCheckpoint], tmp_path: Path, dtype: str
) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    pattern = r".*layers\.1\.self_attn\.o_proj\.weight_scale_inv"
    spoiled = ModelCheckpoint(relabelled(Path(checkpoint.path), tmp_path / "r", {pattern: dtype}))
    (difference,), _ = compared(spoiled, Part.DECODER, quantised(checkpoint, Part.DECODER))
    assert (difference.kind, difference.parameter) == (Kind.VALUES, O_PROJ)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_scales_of_a_wider_type_are_equal(
    checkpoints: dict[str, ModelCheckpoint], tmp_path: Path, dtype: str
) -> None:
    checkpoint = checkpoints["qwen3-vl-moe"]
    path = cast(Path(checkpoint.path), tmp_path / "r", {".*_scale_inv": dtype}, exact=True)
    device = quantised(checkpoint, Part.DECODER)
    assert compared(ModelCheckpoint(path), Part.DECODER, device)[0] == []
