"""A wrong, a lost, a transposed scale of FP8 weights is seen and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import BadInput
from harness.checkpoint.fp8_blocks import EXPERTS, Values, block_values
from harness.compare.difference import Difference, Kind
from harness.compare.digest_comparison import Method
from harness.compare.fp8_linear import departs
from harness.compare.quantised_experts import QuantisedPartComparison, part_comparison
from harness.compare.words import device_words, reference_words
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.tensors import DevicePart, DeviceShard, DeviceTensor
from harness.explain.causes import Cause
from harness.explain.diagnosis import Explainer
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import POISON
from harness.synthetic.writer import write_checkpoint
from tests.support.differences import elements
from tests.support.packing import replicated, sharded
from tests.support.quantising import MESH, checkpoint_grid, fp8_experts, matrix, quantised_anew
from tests.support.retyping import cast, relabelled


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8") / "vl"
    return write_checkpoint("qwen3-vl-moe", out, shapes="tiny:blocks", quantised="fp8").path


@pytest.fixture
def reference(path: Path) -> ReferencePart:
    return reference_parts(ModelCheckpoint(path))[0]


def test_an_fp8_release_is_read(reference: ReferencePart) -> None:
    assert reference.checkpoint.fp8
    assert reference.shape.dtype == "F8_E4M3"
    assert reference[ExpertKey(Part.DECODER, 1, 7, Projection.DOWN)].shape == (256, 512)


def test_digests_of_values_are_refused(reference: ReferencePart) -> None:
    with pytest.raises(BadInput, match="digests cannot be used for a quantised release"):
        part_comparison(reference, fp8_experts(reference), method=Method.DIGESTS)


def test_other_quantisation_is_refused(path: Path, tmp_path: Path) -> None:
    text = (path / "config.json").read_text().replace("128,\n      128", "64,\n      128")
    assert "64" in text
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match="an unsupported quantisation"):
        ModelCheckpoint(tmp_path)


def compared(reference: ReferencePart, part: DevicePart) -> list[Difference]:
    comparison = part_comparison(reference, part, backend=Backend.GMM_EP)
    assert isinstance(comparison, QuantisedPartComparison)
    differences = list(comparison.differences())
    diagnoses = Explainer(comparison).diagnose(differences)
    assert {d.cause for d in diagnoses} <= {Cause.SCALE, Cause.STRUCTURE, Cause.MISPLACED}
    return differences


def test_a_faithful_load_is_equal(reference: ReferencePart) -> None:
    assert compared(reference, fp8_experts(reference)) == []


WRONG_SCALES: dict[str, tuple[Callable[[Values], Values], Cause]] = {
    "lost": (np.ones_like, Cause.SCALE_LOST),
    "one wrong": (
        lambda grid: np.where(np.arange(grid.size).reshape(grid.shape) == 1, grid * 2, grid),
        Cause.SCALE,
    ),
    "slots exchanged": (lambda grid: grid[::-1].copy(), Cause.SCALE),
    "rows by one": (lambda grid: np.roll(grid, 1, axis=0), Cause.SCALE_OF_ANOTHER),
    "columns exchanged": (lambda grid: grid[:, ::-1].copy(), Cause.GROUP_ORDER),
    "zero": (lambda grid: grid * 0, Cause.SCALE_LOST),
    "twice": (lambda grid: grid * grid, Cause.DEQUANTISED_TWICE),
}


@pytest.mark.parametrize("wrong", WRONG_SCALES)
def test_a_wrong_scale_is_named(reference: ReferencePart, wrong: str) -> None:
    at, (change, cause) = ExpertKey(Part.DECODER, 1, 5, Projection.UP), WRONG_SCALES[wrong]

    def grid(part: ReferencePart, key: ExpertKey) -> Values:
        right = checkpoint_grid(part, key)
        return change(right) if key == at else right

    comparison = part_comparison(reference, fp8_experts(reference, grid), backend=Backend.GMM_EP)
    (difference,) = differences = list(comparison.differences())
    assert (difference.kind, difference.key) == (Kind.VALUES, at)
    (diagnosis,) = Explainer(comparison).diagnose(differences)
    assert diagnosis.cause is cause


def test_scales_of_another_expert_are_seen(reference: ReferencePart) -> None:
    wrong = ExpertKey(Part.DECODER, 1, 5, Projection.DOWN)

    def grid(part: ReferencePart, key: ExpertKey) -> Values:
        return checkpoint_grid(part, key._replace(expert=4) if key == wrong else key)

    comparison = part_comparison(reference, fp8_experts(reference, grid), backend=Backend.GMM_EP)
    (difference,) = differences = list(comparison.differences())
    assert (difference.kind, difference.key) == (Kind.VALUES, wrong)
    (diagnosis,) = Explainer(comparison).diagnose(differences)
    assert diagnosis.cause is Cause.SCALE_OF_ANOTHER
    assert "those of expert 4" in diagnosis.evidence


@pytest.mark.parametrize(
    ("bits", "device_value", "factor"),
    [(0, "-0", "0"), (POISON[4], "1.20189182e+21", "-4.48e+19"), (0x7FC00000, "nan", "nan")],
    ids=["zero", "never written", "NaN"],
)
def test_scales_that_were_lost_on_the_device(bits: int, device_value: str, factor: str) -> None:
    """The codes are right, the scales beside them are not."""
    codes, scales = matrix(256, 256)
    new_codes, new_scales = quantised_anew(block_values(codes, scales))
    held = np.full(new_scales.shape, bits, "<u4").view("<f4")
    found = departs(new_codes, held, codes, scales, EXPERTS)
    assert found is not None
    assert (found["count"], found["device"]) == (found["total"], device_value)
    assert found["pattern"] == f"4 of 4 blocks, [0, 0], [0, 1], [1, 0]; by a factor of {factor}"


def test_a_transposed_grid_is_named() -> None:
    codes, scales = matrix(256, 256)
    new_codes, new_scales = quantised_anew(block_values(codes, scales.T))
    found = departs(new_codes, new_scales, codes, scales, EXPERTS)
    assert found is not None
    assert found["pattern"] == "the scales' grid is transposed"


def test_a_code_that_is_another() -> None:
    codes, scales = matrix(256, 256)
    new_codes, new_scales = quantised_anew(block_values(codes, scales))
    large = np.argwhere(np.abs(block_values(codes, scales)) > new_scales[:, None] * 16)[0]
    assert departs(new_codes, new_scales, codes, scales, EXPERTS) is None
    new_codes[tuple(large)] ^= 2
    found = departs(new_codes, new_scales, codes, scales, EXPERTS)
    assert found is not None
    assert (found["index"], found["count"]) == (tuple(large), 1)


def with_scales(part: DevicePart, layer: int, *kept: DeviceTensor) -> DevicePart:
    """The part with these scales of a layer and no others."""
    by_name = {Parameter(t.name.rsplit(".", 1)[1].removesuffix("_scale_inv")): t for t in kept}
    scales = {**part.scales, layer: by_name}
    unknown = tuple(t.name for tensors in scales.values() for t in tensors.values())
    return replace(part, scales=scales, unknown=unknown)


def test_scales_that_are_absent_or_elsewhere(reference: ReferencePart) -> None:
    part = fp8_experts(reference)
    gone = DevicePart(part.layers, part.unknown, part.mesh, {0: part.scales[0]})
    differences = compared(reference, gone)
    missing = [(d.layer, d.parameter) for d in differences if d.kind is Kind.MISSING]
    assert missing == [(1, "w13_weight_scale"), (1, "w2_weight_scale")]
    turned = DevicePart(part.layers, part.unknown, MESH[::-1], part.scales)
    assert {d.kind for d in compared(reference, turned)} == {Kind.SHARDING}


@pytest.mark.parametrize("layer", [0, 1])
def test_absent_scales_of_one_array_leave_the_others_compared(
    reference: ReferencePart, layer: int
) -> None:
    part = fp8_experts(reference)
    lacking = with_scales(part, layer, part.scales[layer][Parameter.W13])
    comparison = part_comparison(reference, lacking, backend=Backend.GMM_EP)
    (difference,) = comparison.differences()
    assert (difference.kind, difference.parameter) == (Kind.MISSING, "w2_weight_scale")
    assert difference.layer == layer
    assert comparison.tally.experts_compared == reference.shape.experts


@pytest.mark.parametrize(
    ("array", "dtype", "kind", "told"),
    [
        (np.zeros((8, 256), "<u4"), "F32", Kind.SHAPE, "[8, 256]"),
        (np.zeros((8, 1, 128), "<u4"), "F32", Kind.SHAPE, "[8, 1, 128]"),
        (np.zeros((8, 2, 256), "<u4"), "F32", Kind.SHAPE, "[8, 2, 256]"),
        (np.zeros((8, 1, 256), "<u2"), "BF16", Kind.DTYPE, "BF16"),
    ],
)
def test_scales_of_another_shape_or_dtype(
    reference: ReferencePart, array: np.ndarray, dtype: str, kind: Kind, told: str
) -> None:
    part = fp8_experts(reference)
    right = part.scales[1][Parameter.W2]
    wrong = replace(sharded(right.name, array, 0, MESH), dtype=dtype)
    changed = with_scales(part, 1, part.scales[1][Parameter.W13], wrong)
    (difference,) = compared(reference, changed)
    assert (difference.kind, device_words(difference), difference.layer) == (kind, told, 1)
    wanted = "F32" if kind is Kind.DTYPE else "[8, 1, 256]"
    assert (reference_words(difference), difference.parameter) == (wanted, right.name)


def cut(part: DevicePart, odd: str = "") -> DevicePart:
    """The part as GMM_TP has it: gate and up by turns, w2's scales whole on every device.

    Device ``odd`` holds w2's scales of layer 1 with one of expert 3's doubled.
    """
    layers: dict[int, dict[Parameter, DeviceTensor]] = {}
    scales: dict[int, dict[Parameter, DeviceTensor]] = {}
    for layer, tensors in part.layers.items():
        layers[layer], scales[layer] = {}, {}
        for parameter, axis in ((Parameter.W13, 2), (Parameter.W2, 1)):
            for made, tensor in (
                (layers[layer], tensors[parameter]),
                (scales[layer], part.scales[layer][parameter]),
            ):
                array = np.concatenate([shard.fetch(...) for shard in tensor.shards])
                if parameter is Parameter.W13:
                    pieces = np.split(array, 2 * len(MESH), axis=2)
                    turns = [p for pair in zip(pieces[:4], pieces[4:], strict=True) for p in pair]
                    array = np.concatenate(turns, axis=2)
                new = replace(sharded(tensor.name, array, axis, MESH), dtype=tensor.dtype)
                if made is scales[layer] and parameter is Parameter.W2:
                    new = replicated(tensor, array)
                    new = replace(new, shards=tuple(_doubled(s, odd, layer) for s in new.shards))
                made[parameter] = new
    return replace(part, layers=layers, scales=scales)


def _doubled(shard: DeviceShard, odd: str, layer: int) -> DeviceShard:
    if shard.device != odd or layer != 1:
        return shard
    wrong = np.array(shard.fetch(...))
    wrong[3, 0, 7] += 1 << 23
    return replace(shard, fetch=lambda index: wrong[index])


def test_scales_whole_on_every_device_are_equal(reference: ReferencePart) -> None:
    comparison = part_comparison(reference, cut(fp8_experts(reference)), backend=Backend.GMM_TP)
    assert list(comparison.differences()) == []
    assert comparison.tally.experts_compared == comparison.tally.experts


def test_a_wrong_scale_on_one_device_alone_is_named(reference: ReferencePart) -> None:
    part = cut(fp8_experts(reference), odd="cpu:3")
    comparison = part_comparison(reference, part, backend=Backend.GMM_TP)
    (difference,) = differences = list(comparison.differences())
    assert (difference.kind, difference.layer, difference.device_name) == (
        Kind.REPLICAS,
        1,
        "cpu:3",
    )
    assert (elements(difference).index, elements(difference).count) == ((3, 0, 7), 1)
    assert elements(difference).total == 8 * 256
    assert reference_words(difference).endswith(" on cpu:1")
    (diagnosis,) = Explainer(comparison).diagnose(differences)
    assert diagnosis.cause is Cause.REPLICAS_DIFFER
    assert diagnosis.summary == ("replicas of decoder layer 1 w2_weight_scale_inv hold other bits")


def test_a_wrong_scale_on_the_first_device_is_named_by_its_values_too(
    reference: ReferencePart,
) -> None:
    part = cut(fp8_experts(reference), odd="cpu:1")
    comparison = part_comparison(reference, part, backend=Backend.GMM_TP)
    differences = list(comparison.differences())
    assert {d.device_name for d in differences if d.key is None} == {"cpu:2", "cpu:3", "cpu:4"}
    (of_values,) = [d for d in differences if d.key]
    assert of_values.key == ExpertKey(Part.DECODER, 1, 3, Projection.DOWN)


@pytest.mark.parametrize("dtype", ["U8", "I8", "F8_E5M2", "BOOL"])
def test_codes_of_another_type_are_refused(path: Path, tmp_path: Path, dtype: str) -> None:
    pattern = r".*layers\.0\.mlp\.experts\.3\.up_proj\.weight"
    spoiled = ModelCheckpoint(relabelled(path, tmp_path / "r", {pattern: dtype}))
    with pytest.raises(BadInput, match=rf"experts\.3\.up_proj\.weight' is {dtype}"):
        reference_parts(spoiled)


@pytest.mark.parametrize("dtype", ["F16", "I16"])
def test_scales_of_another_type_with_the_same_bytes_differ(
    reference: ReferencePart, path: Path, tmp_path: Path, dtype: str
) -> None:
    pattern = r".*layers\.0\.mlp\.experts\.3\.up_proj\.weight_scale_inv"
    spoiled = reference_parts(ModelCheckpoint(relabelled(path, tmp_path / "r", {pattern: dtype})))[
        0
    ]
    found = list(
        part_comparison(spoiled, fp8_experts(reference), backend=Backend.GMM_EP).differences()
    )
    assert {(d.kind, d.expert, d.projection) for d in found} == {(Kind.VALUES, 3, Projection.UP)}


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_scales_of_a_wider_type_are_equal(
    reference: ReferencePart, path: Path, tmp_path: Path, dtype: str
) -> None:
    wider = cast(path, tmp_path / "r", {r".*experts.*_scale_inv": dtype}, exact=True)
    part = reference_parts(ModelCheckpoint(wider))[0]
    comparison = part_comparison(part, fp8_experts(reference), backend=Backend.GMM_EP)
    assert list(comparison.differences()) == []
