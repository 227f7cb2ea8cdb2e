"""A tensor's type counts, not its width: conversions are exact, and another type is a difference.

The devices here are numpy's, packed from the checkpoint in bf16; the references are of other
types. ``test_loaded_dtypes.py`` has the same with loads by the real stack.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from harness.base.bits import ITEMSIZE, bits_dtype, converted, is_nan, model_dtype
from harness.base.errors import BadInput
from harness.compare.difference import Difference, Kind
from harness.compare.digest_comparison import Method
from harness.compare.expert_comparison import PartComparison
from harness.compare.words import device_words, reference_words, source_words
from harness.explain.causes import Cause, Diagnosis
from harness.explain.diagnosis import Explainer
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.differences import elements
from tests.support.packing import PackedDevice
from tests.support.parameter_cases import Case, Paths
from tests.support.parameter_packing import LANGUAGE, PackedParameters, line
from tests.support.retyping import NUMPY, cast, overwrite, relabelled

TARGETS = ("F32", "BF16", "F16")
QWEN = "qwen3.5-moe"
DECAY = r".*layers\.0\.linear_attn\.A_log"
OTHERS = r"(?!.*\.experts\.).*"
EXPERTS = r".*\.experts\.(gate_up|down)_proj"
#: A tensor of every kind: state, step bias, convolution, norms, linear layers, router, gate,
#: vocabulary, vision.
KINDS = {
    "state": DECAY,
    "step bias": r".*layers\.0\.linear_attn\.dt_bias",
    "convolution": r".*layers\.0\.linear_attn\.conv1d\.weight",
    "norm": r"model\.language_model\.norm\.weight",
    "one of three in a linear layer": r".*layers\.1\.self_attn\.q_proj\.weight",
    "another one of three": r".*layers\.1\.self_attn\.k_proj\.weight",
    "the last of three": r".*layers\.1\.self_attn\.v_proj\.weight",
    "one of two in linear attention": r".*layers\.0\.linear_attn\.in_proj_z\.weight",
    "linear layer divided by inputs": r".*layers\.1\.self_attn\.o_proj\.weight",
    "router": r".*layers\.0\.mlp\.gate\.weight",
    "shared expert": r".*layers\.0\.mlp\.shared_expert\.up_proj\.weight",
    "shared expert's gate": r".*layers\.0\.mlp\.shared_expert_gate\.weight",
    "embedding": r".*embed_tokens\.weight",
    "head": r"lm_head\.weight",
    "vision bias": r"model\.visual\.blocks\.0\.attn\.qkv\.bias",
}


def every(dtype: str) -> npt.NDArray[np.unsignedinteger]:
    """All bits of a type of one or two bytes; of a wider one corners, ties and a sample."""
    width = ITEMSIZE[dtype]
    if width <= 2:
        return np.arange(1 << 8 * width, dtype=bits_dtype(dtype))
    sample = np.frombuffer(np.random.default_rng(7).bytes(width << 18), bits_dtype(dtype))
    if dtype not in ("F32", "F64"):
        return sample
    sixteen = np.arange(1 << 16, dtype="<u4") << np.uint32(16)
    ties = [sixteen | np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    halves = np.arange(1 << 16, dtype="<u2").view(np.float16).astype(np.float32).view("<u4")
    below = [halves | np.uint32(low) for low in (0, 0xFFF, 0x1000, 0x1001)]
    bits = np.concatenate([*ties, *below])
    if dtype == "F32":
        return np.concatenate([bits, sample])
    with np.errstate(invalid="ignore"):
        wide = bits.view(np.float32).astype(np.float64).view("<u8")
    return np.concatenate([wide, wide + np.uint64(1), wide - np.uint64(1), sample])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_a_conversion_rounds_as_numpy_does_by_way_of_f32(dtype: str, target: str) -> None:
    bits = every(dtype)
    with np.errstate(all="ignore"):
        values = bits.view(NUMPY[dtype]).astype(np.float32)
        wanted = values.astype(NUMPY[target]).view(bits_dtype(target))
    made = converted(bits, dtype, target)
    number = ~np.isnan(values)
    assert number.any()
    assert made.dtype == bits_dtype(target)
    assert np.array_equal(made[number], wanted[number])
    assert np.array_equal(is_nan(made, target), ~number)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I32", "I8"])
def test_a_conversion_is_what_torch_copies(dtype: str, target: str) -> None:
    """That is what vLLM's weight loaders call."""
    torch = pytest.importorskip("torch")
    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8",
    }  # fmt: skip
    signed = {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}
    bits = every(dtype)
    given = torch.from_numpy(bits.view(signed[ITEMSIZE[dtype]]).copy())
    parameter = torch.empty(len(bits), dtype=getattr(torch, names[target]))
    parameter.copy_(given.view(getattr(torch, names[dtype])))
    integers = {2: torch.int16, 4: torch.int32}[ITEMSIZE[target]]
    found = parameter.view(integers).numpy().view(bits_dtype(target))
    made = converted(bits, dtype, target)
    number = ~is_nan(made, target)
    assert np.array_equal(made[number], found[number])
    assert is_nan(found, target)[~number].all()


@pytest.mark.parametrize(
    ("dtype", "target", "bits", "wanted"),
    [
        ("F32", "BF16", 0x7F800001, 0x7FC0),
        ("F32", "BF16", 0xFFFFFFFF, 0xFFFF),
        ("F32", "BF16", 0xFFC12345, 0xFFC1),
        ("F32", "F16", 0xFF802000, 0xFE01),
        ("F16", "F32", 0x7C01, 0x7FC02000),
        ("F16", "BF16", 0xFE12, 0xFFC2),
        ("F64", "F32", 0x7FF0000020000000, 0x7FC00001),
        ("BF16", "F32", 0x7F81, 0x7F810000),
        ("BF16", "BF16", 0x7F81, 0x7F81),
    ],
)
def test_a_nan_stays_one_quiet_and_of_its_sign(
    dtype: str, target: str, bits: int, wanted: int
) -> None:
    """But for BF16 as F32, which torch only shifts."""
    made = converted(np.array([bits], bits_dtype(dtype)), dtype, target)
    assert [hex(bits) for bits in made] == [hex(wanted)]


def test_no_parameter_is_made_in_codes() -> None:
    with pytest.raises(ValueError, match="no conversion from BF16 to F8_E4M3"):
        converted(np.zeros(1, "<u2"), "BF16", "F8_E4M3")


@pytest.mark.parametrize(
    ("config", "stored", "wanted"),
    [
        ({"dtype": "bfloat16"}, {"F32"}, "BF16"),
        ({"dtype": "float16"}, {"BF16"}, "F16"),
        ({"dtype": "float32"}, {"F32"}, "BF16"),
        ({"torch_dtype": "float16"}, {"BF16"}, "F16"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, {"BF16"}, "F16"),
        ({"dtype": "bfloat16", "text_config": {"dtype": "float16"}}, {"BF16"}, "BF16"),
        ({"vision_config": {"dtype": "float16"}}, {"BF16"}, "F16"),
        ({}, {"F16"}, "F16"),
        ({}, {"F16", "F32"}, "BF16"),
        ({}, {"F32"}, "BF16"),
        ({}, set(), "BF16"),
    ],
)
def test_the_type_a_model_is_made_in(
    config: dict[str, object], stored: set[str], wanted: str
) -> None:
    assert model_dtype(config, stored, "config.json") == wanted


@pytest.mark.parametrize("stated", ["int8", "", 16, {"text": "bfloat16"}, "x" * 10_000])
def test_a_type_no_model_is_made_in_is_bad_input(stated: object) -> None:
    with pytest.raises(BadInput, match="dtype is") as caught:
        model_dtype({"dtype": stated}, {"BF16"}, "config.json")
    assert len(str(caught.value)) < 1000


@pytest.fixture(scope="module")
def packed(tiny_checkpoints: Paths) -> PackedParameters:
    """What devices hold of the checkpoint as it is published, in bf16."""
    return PackedParameters(ModelCheckpoint(tiny_checkpoints[QWEN]), Part.DECODER)


def parameters(reference: Path, device: PackedParameters) -> Case:
    return Case(ModelCheckpoint(reference), Part.DECODER, device, line(device.devices))


@pytest.mark.parametrize("dtype", ["F16", "I16", "U16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_of_another_type_with_the_same_bytes_differs(
    tiny_checkpoints: Paths, tmp_path: Path, packed: PackedParameters, kind: str, dtype: str
) -> None:
    reference = relabelled(tiny_checkpoints[QWEN], tmp_path / "r", {KINDS[kind]: dtype})
    differences, (diagnosis,), _ = parameters(reference, packed).compared()
    assert {d.kind for d in differences} == {Kind.BITS}
    assert len({source_words(d).partition(" (copy")[0] for d in differences}) == 1
    if dtype == "F16":
        assert diagnosis.cause is Cause.OTHER_DTYPE
        assert "is F16 in the reference, and came as BF16" in diagnosis.summary


def test_of_all_kinds_the_bytes_taken_for_bf16_are_named(
    tiny_checkpoints: Paths, tmp_path: Path, packed: PackedParameters
) -> None:
    reference = relabelled(tiny_checkpoints[QWEN], tmp_path / "r", {OTHERS: "F16"})
    case = parameters(reference, packed)
    assert case.causes() == {Cause.OTHER_DTYPE}
    assert len(case.compared()[0]) > 40


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_a_wider_reference_is_equal_where_it_rounds_to_the_device(
    tiny_checkpoints: Paths, tmp_path: Path, packed: PackedParameters, dtype: str
) -> None:
    """All kinds but the state, which is as wide as f32 on the device."""
    reference = cast(tiny_checkpoints[QWEN], tmp_path / "r", {r"(?!.*(experts\.|A_log)).*": dtype})
    differences, _, comparison = parameters(reference, packed).compared()
    assert differences == []
    assert comparison.tally.compared == comparison.tally.parameters > 40


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_equal_values_of_another_type_are_equal(
    tiny_checkpoints: Paths, tmp_path: Path, packed: PackedParameters, dtype: str
) -> None:
    """What is compared is the conversion of the reference's value, and the device's type.

    That a reference has the same numbers in a wider type says nothing of the load.
    """
    reference = cast(
        tiny_checkpoints[QWEN], tmp_path / "r", {r"(?!.*experts\.).*": dtype}, exact=True
    )
    assert parameters(reference, packed).compared()[0] == []


def f32_of_state(bits: npt.NDArray[np.unsignedinteger], way: str) -> npt.NDArray[np.uint32]:
    """F16 bits as f32: by value, by value and bf16, or taken for bf16."""
    values = bits.view(NUMPY["BF16" if way == "taken for bf16" else "F16"])
    if way == "by bf16":
        values = values.astype(NUMPY["BF16"])
    return values.astype(np.float32).view("<u4")


@pytest.mark.parametrize(
    ("way", "causes"),
    [
        ("by value", set()),
        ("taken for bf16", {Cause.OTHER_DTYPE}),
        ("by bf16", {Cause.DTYPE_ROUND_TRIP}),
    ],
)
def test_state_that_is_stored_as_f16(
    tiny_checkpoints: Paths, tmp_path: Path, way: str, causes: set[Cause]
) -> None:
    """The device is to hold its values, exact, as f32."""
    stored = cast(tiny_checkpoints[QWEN], tmp_path / "f16", {DECAY: "F16"})
    name = "model.language_model.layers.0.linear_attn.A_log"
    count = ModelCheckpoint(stored).entries[name].shape[0]
    overwrite(stored, name, np.linspace(0.1, 7, count, dtype=np.float16).tobytes())
    device = PackedParameters(ModelCheckpoint(tiny_checkpoints[QWEN]), Part.DECODER)
    held = device.packed[f"{LANGUAGE}layers.0.linear_attn.A_log"]
    held.array = f32_of_state(ModelCheckpoint(stored).bits(name), way)
    assert parameters(stored, device).causes() == causes


def test_truncating_where_rounding_is_due_differs(tiny_checkpoints: Paths, tmp_path: Path) -> None:
    reference = cast(tiny_checkpoints[QWEN], tmp_path / "r", {KINDS["head"]: "F32"})
    shape = ModelCheckpoint(reference).entries["lm_head.weight"].shape
    overwrite(reference, "lm_head.weight", np.full(shape, 0x3F80FFFF, "<u4").tobytes())
    device = PackedParameters(ModelCheckpoint(tiny_checkpoints[QWEN]), Part.DECODER)
    held = device.packed["vllm_model.language_model.lm_head.weight"]
    held.array = np.full_like(held.array, 0x3F81)
    assert parameters(reference, device).compared()[0] == []
    held.array[3, 5] = 0x3F80
    (difference,), _, _ = parameters(reference, device).compared()
    assert (elements(difference).index, reference_words(difference), device_words(difference)) == (
        (3, 5), "0x3f81", "0x3f80",
    )  # fmt: skip


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFFF])
def test_nans_that_a_conversion_made_others_are_named(
    tiny_checkpoints: Paths, tmp_path: Path, bits: int
) -> None:
    """torch makes either of an F32 NaN: neither is this one's, nor called equal."""
    reference = cast(tiny_checkpoints[QWEN], tmp_path / "r", {KINDS["norm"]: "F32"}, exact=True)
    name = "model.language_model.norm.weight"
    values = np.array(ModelCheckpoint(reference).bits(name))
    values[7] = 0xFFC1_0000
    overwrite(reference, name, values.tobytes())
    device = PackedParameters(ModelCheckpoint(tiny_checkpoints[QWEN]), Part.DECODER)
    device.packed[f"{LANGUAGE}norm.weight"].array[7] = bits
    (difference,), (diagnosis,), _ = parameters(reference, device).compared()
    assert (elements(difference).index, reference_words(difference)) == ((7,), "0xffc1")
    assert diagnosis.cause is Cause.NAN_CANONICALISED
    assert "NaNs stored as F32 are others as BF16" in diagnosis.summary


def test_a_model_in_f16(tiny_checkpoints: Paths, tmp_path: Path) -> None:
    """The device's type is the one config.json asks for, whatever the tensors are stored as."""
    reference = shutil.copytree(tiny_checkpoints[QWEN], tmp_path / "r")
    file = reference / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float16"}))
    device = PackedParameters(ModelCheckpoint(reference), Part.DECODER)
    case = parameters(reference, device)
    found = case.compared()[0]
    assert {(d.kind, reference_words(d), device_words(d)) for d in found} == {
        (Kind.DTYPE, "F16", "BF16")
    }
    for packed in device.packed.values():
        if packed.dtype == "BF16":
            wide = (packed.array.astype("<u4") << 16).view(np.float32)
            with np.errstate(over="ignore"):
                packed.array, packed.dtype = wide.astype(np.float16).view("<u2"), "F16"
    assert case.compared()[0] == []


def experts_of(path: Path) -> ReferencePart:
    return reference_parts(ModelCheckpoint(path))[0]


def explained(comparison: PartComparison) -> tuple[list[Difference], list[Diagnosis]]:
    differences = list(comparison.differences())
    return differences, Explainer(comparison).diagnose(differences)


@pytest.mark.parametrize("method", [Method.READBACK, Method.DIGESTS])
@pytest.mark.parametrize("recipe", ["qwen3-vl-moe", QWEN])
def test_experts_of_another_type_with_the_same_bytes_differ(
    tiny_checkpoints: Paths, tmp_path: Path, recipe: str, method: Method
) -> None:
    """One fused tensor of one layer: each expert of it, by bits and by digests."""
    device = PackedDevice(experts_of(tiny_checkpoints[recipe])).part()
    pattern = r".*layers\.1\.mlp\.experts\.down_proj"
    reference = relabelled(tiny_checkpoints[recipe], tmp_path / "r", {pattern: "F16"})
    part = experts_of(reference)
    differences, diagnoses = explained(PartComparison(part, device, method=method))
    assert len(differences) == part.shape.experts
    assert {(d.layer, d.projection) for d in differences} == {(1, "down_proj")}
    assert [d.cause for d in diagnoses] == [Cause.OTHER_DTYPE]
    assert "are F16 in the reference, and came as BF16" in diagnoses[0].summary


@pytest.mark.parametrize("method", [Method.READBACK, Method.DIGESTS])
@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("recipe", ["qwen3-vl-moe", QWEN])
def test_experts_of_a_wider_type_are_equal_where_they_round_to_the_device(
    tiny_checkpoints: Paths, tmp_path: Path, recipe: str, dtype: str, method: Method
) -> None:
    device = PackedDevice(experts_of(tiny_checkpoints[recipe]))
    reference = experts_of(cast(tiny_checkpoints[recipe], tmp_path / "r", {EXPERTS: dtype}))
    comparison = PartComparison(reference, device.part(), method=method)
    assert list(comparison.differences()) == []
    assert comparison.tally.experts_compared == comparison.tally.experts
    device.arrays[0][next(iter(device.arrays[0]))][3, 7, 5] ^= 1
    (difference,), (diagnosis,) = explained(PartComparison(reference, device.part()))
    assert difference.expert == 3
    assert diagnosis.cause is Cause.BIT_FLIP


def test_experts_on_a_device_of_another_type_differ(
    tiny_checkpoints: Paths, tmp_path: Path
) -> None:
    """An F16 release that is loaded as BF16: config.json says F16."""
    reference = cast(tiny_checkpoints[QWEN], tmp_path / "r", {EXPERTS: "F16"})
    file = reference / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float16"}))
    device = PackedDevice(experts_of(tiny_checkpoints[QWEN])).part()
    differences, _ = explained(PartComparison(experts_of(reference), device))
    assert {(d.kind, reference_words(d), device_words(d)) for d in differences} == {
        (Kind.DTYPE, "F16", "BF16")
    }
