"""Every fault planted in a parameter besides experts is seen, named and view."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.bits import Nan, canonical_nans
from harness.compare.difference import Difference, Kind
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.words import device_words, reference_words, source_words
from harness.devices.expert_layout import Span
from harness.devices.mesh import Mesh
from harness.devices.parameter_layout import Packing
from harness.devices.tensors import DeviceTensor
from harness.explain.causes import Cause
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.values import Values
from harness.synthetic.writer import write_checkpoint
from scenarios.rewriting import contradict_ties
from tests.support.differences import elements
from tests.support.parameter_cases import Case, Paths, case
from tests.support.parameter_faults import (
    ATTENTION,
    FAULTS,
    HEAD,
    VL,
    Change,
    array_of,
    poison_the_head,
)
from tests.support.parameter_packing import LANGUAGE, Packed, PackedParameters, line


@pytest.fixture
def vl(tiny_checkpoints: Paths) -> Case:
    return case(tiny_checkpoints, "qwen3-vl-moe")


@pytest.fixture
def qwen3_5(tiny_checkpoints: Paths) -> Case:
    return case(tiny_checkpoints, "qwen3.5-moe")


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("recipe", "part"),
    [("qwen3-vl-moe", Part.DECODER), ("qwen3.5-moe", Part.DECODER), ("qwen3.6-mtp", Part.MTP)],
)
def test_a_faithful_device_is_equal(
    tiny_checkpoints: Paths, recipe: str, part: Part, devices: int
) -> None:
    differences, _, comparison = case(tiny_checkpoints, recipe, part, devices).compared()
    assert differences == []
    assert comparison.tally.compared == comparison.tally.parameters > 15
    assert comparison.tally.derived["attention scale"] >= 4


def test_every_byte_of_the_checkpoint_besides_experts_counts(vl: Case) -> None:
    tally = vl.compared()[2].tally
    entries = vl.checkpoint.entries
    assert tally.bytes_compared == sum(e.nbytes for n, e in entries.items() if "experts" not in n)


@pytest.mark.slow
def test_one_bit_of_any_parameter_is_found(
    qwen3_5: Case, vl: Case, tiny_checkpoints: Paths
) -> None:
    """For every parameter there is: a check that cannot fail is none."""
    mtp = case(tiny_checkpoints, "qwen3.5-mtp", Part.MTP)
    for each in (qwen3_5, vl, mtp):
        for name, packed in each.device.packed.items():
            if "rotary" in name:
                continue
            packed.array = packed.array.copy()
            packed.array[(-1,) * packed.array.ndim] ^= 1
            (difference,), (diagnosis,), _ = each.compared()
            assert difference.parameter == name
            assert difference.kind is Kind.BITS
            assert diagnosis.first == 0
            packed.array[(-1,) * packed.array.ndim] ^= 1


@pytest.mark.parametrize(
    ("recipe", "change", "cause", "evidence"), FAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_the_fault_is_named(
    tiny_checkpoints: Paths, recipe: str, change: Change, cause: Cause, evidence: str
) -> None:
    planted = case(tiny_checkpoints, recipe)
    change(planted.device)
    _, diagnoses, _ = planted.compared()
    assert {d.cause for d in diagnoses} == {cause}
    assert any(re.search(evidence, d.evidence) for d in diagnoses), diagnoses


def test_the_first_unequal_element_is_placed(vl: Case) -> None:
    """Column 40 of shard 2's columns is row 8 of q head 5: [168, 3] of q_proj, on cpu:3."""
    array_of(vl.device, ATTENTION)[3, 2 * 128 + 40] ^= 2
    (difference,), _, _ = vl.compared()
    assert elements(difference).index == (168, 3)
    assert (difference.device_name, difference.shard) == ("cpu:3", 2)
    assert source_words(difference).endswith("layers.1.self_attn.q_proj.weight")
    assert (elements(difference).count, elements(difference).total) == (1, 256 * 128)


def test_dirty_vocabulary_padding(tmp_path: Path) -> None:
    """A vocabulary of 500 is padded to 512; the padding must be zero."""
    path = write_checkpoint(VL, tmp_path / "uneven", shapes="tiny:vocabulary").path
    uneven = ModelCheckpoint(path)
    device = PackedParameters(uneven, Part.DECODER)
    each = Case(uneven, Part.DECODER, device, line(device.devices))
    assert each.compared()[0] == []
    assert each.compared()[2].tally.padding_bytes == 2 * 12 * 128 * 2
    array_of(device, HEAD)[505, 9] = 0x3F80
    (difference,), (diagnosis,), _ = each.compared()
    assert (difference.kind, elements(difference).index) == (Kind.PADDING, (505, 9))
    assert difference.device_name == "cpu:4"
    assert diagnosis.cause is Cause.PADDING
    poison_the_head(device)
    assert each.causes() == {Cause.UNWRITTEN}


@pytest.mark.parametrize("devices", [1, 2, 8, 16, 32, 64])
def test_a_vocabulary_is_cut_with_its_padding(tmp_path: Path, devices: int) -> None:
    """500 rows are no multiple of most counts; 512 are, and some devices hold zeros alone."""
    uneven = ModelCheckpoint(write_checkpoint(VL, tmp_path / "c", shapes="tiny:vocabulary").path)
    device = PackedParameters(uneven, Part.DECODER)
    device.devices = tuple(f"cpu:{number + 1}" for number in range(devices))
    device.n = devices
    head = device.packed[HEAD]
    device.packed = {HEAD: head}
    each = Case(uneven, Part.DECODER, device, line(device.devices))

    def found() -> list[Difference]:
        differences, _, comparison = each.compared()
        assert comparison.tally.padding_bytes == 12 * 128 * 2
        return [d for d in differences if d.parameter]

    assert found() == []
    for row, kind in ((0, Kind.BITS), (499, Kind.BITS), (500, Kind.PADDING), (511, Kind.PADDING)):
        head.array[row, 77] ^= 2
        assert [(d.kind, elements(d).index) for d in found()] == [(kind, (row, 77))]
        head.array[row, 77] ^= 2


def _on(tensor: DeviceTensor, devices: dict[str, str]) -> DeviceTensor:
    shards = tuple(replace(s, device=devices.get(s.device, s.device)) for s in tensor.shards)
    return replace(tensor, shards=shards)


def test_shards_on_each_others_devices(vl: Case) -> None:
    tensors = vl.device.tensors()
    at = next(i for i, t in enumerate(tensors) if t.name == ATTENTION)
    tensors[at] = _on(tensors[at], {"cpu:2": "cpu:3", "cpu:3": "cpu:2"})
    differences, (diagnosis,), _ = vl.compared(tensors)
    assert [d.device_name for d in differences] == ["cpu:2", "cpu:3"]
    assert diagnosis.cause is Cause.MISPLACED


def test_a_shard_outside_the_mesh(vl: Case) -> None:
    tensors = vl.device.tensors()
    at = next(i for i, t in enumerate(tensors) if t.name == ATTENTION)
    tensors[at] = _on(tensors[at], {"cpu:2": "cpu:0"})
    differences, diagnoses, _ = vl.compared(tensors)
    assert [(d.device_name, reference_words(d), device_words(d)) for d in differences] == [
        ("cpu:2", "[0:128, 128:256]", "nothing"),
        ("cpu:0", "nothing", "[0:128, 128:256]"),
    ]
    assert {d.cause for d in diagnoses} == {Cause.MISPLACED}


def test_replicated_where_it_should_be_sharded(vl: Case) -> None:
    vl.device.packed[ATTENTION].axis = None
    differences, (diagnosis,), _ = vl.compared()
    assert len(differences) == 4
    assert diagnosis.cause is Cause.REPLICATED


def test_sharded_where_it_should_be_replicated(vl: Case) -> None:
    vl.device.packed[f"{LANGUAGE}norm.weight"].axis = 0
    differences, (diagnosis,), _ = vl.compared()
    assert len(differences) == 4
    assert diagnosis.cause is Cause.MISPLACED


def test_sharded_along_the_other_axis(vl: Case) -> None:
    """The placement is wrong; what each device holds of it is right."""
    vl.device.packed[ATTENTION].axis = 0
    differences, (diagnosis,), _ = vl.compared()
    assert [d.kind for d in differences] == [Kind.SHARDING] * 4
    assert diagnosis.cause is Cause.MISPLACED


def test_an_unknown_parameter_and_a_tensor_nobody_holds(vl: Case) -> None:
    name = f"{LANGUAGE}layers.0.input_layernorm.weight"
    vl.device.packed[f"{LANGUAGE}layers.0.new.weight"] = vl.device.packed.pop(name)
    differences, (diagnosis,), _ = vl.compared()
    assert [(d.kind, d.layer) for d in differences] == [(Kind.UNACCOUNTED, 0)] * 2
    assert diagnosis.cause is Cause.UNACCOUNTED
    assert source_words(differences[1]).endswith("layers.0.input_layernorm.weight")


@pytest.mark.parametrize("contradict", [True, False])
def test_a_head_that_nobody_holds(
    tiny_checkpoints: Paths, tmp_path: Path, contradict: bool
) -> None:
    """Only a config.json that says both of it explains that."""
    path = shutil.copytree(tiny_checkpoints["qwen3.5-moe"], tmp_path / "untied")
    if contradict:
        contradict_ties(path)
    given = case({"": path}, "")
    del given.device.packed[HEAD]
    (difference,), (diagnosis,), _ = given.compared()
    assert (difference.kind, difference.parameter) == (Kind.UNACCOUNTED, "")
    assert diagnosis.cause is (Cause.TIED_EMBEDDINGS if contradict else Cause.UNACCOUNTED)
    assert ("text_config true" in diagnosis.evidence) is contradict


@pytest.mark.parametrize("tail", ["routed_experts.w13.weight", "other.w2_weight"])
def test_an_array_among_the_experts_that_is_none_of_theirs(vl: Case, tail: str) -> None:
    """Neither comparison drops it: that of experts looks at names it knows the form of."""
    name = f"{LANGUAGE}layers.1.mlp.experts.{tail}"
    vl.device.packed[name] = Packed(np.ones((8, 4), "<u2"), None)
    (difference,), (diagnosis,), _ = vl.compared()
    assert (difference.kind, difference.parameter) == (Kind.UNACCOUNTED, name)
    assert difference.layer == 1
    assert diagnosis.cause is Cause.UNACCOUNTED


SCALE = f"{LANGUAGE}layers.0.self_attn.attn._k_scale"


def test_the_element_of_a_buffer_that_is_another_is_told(vl: Case) -> None:
    vl.device.packed[SCALE] = Packed(np.full((2, 3), 0x3F800000, "<u4"), None, "F32")
    assert vl.compared()[0] == []
    vl.device.reading[SCALE, "cpu:2"] = lambda bits: np.where(
        np.arange(6).reshape(2, 3) == 4, np.uint32(0x40000000), bits
    )
    (difference,), _, _ = vl.compared()
    assert (difference.kind, difference.device_name) == (Kind.BITS, "cpu:2")
    assert (elements(difference).index, elements(difference).count, elements(difference).total) == (
        (1, 1),
        1,
        4 * 6,
    )
    assert (reference_words(difference), device_words(difference)) == ("0x3f800000", "0x40000000")


def test_a_buffer_of_another_dtype(vl: Case) -> None:
    vl.device.packed[SCALE] = Packed(np.full((2, 3), 0x3F80, "<u2"), None, "BF16")
    (difference,), _, _ = vl.compared()
    assert (difference.kind, reference_words(difference), device_words(difference)) == (
        Kind.DTYPE, "F32", "BF16",
    )  # fmt: skip


def test_a_scalar_buffer(vl: Case) -> None:
    vl.device.packed[SCALE] = Packed(np.array(0x40000000, "<u4"), None, "F32")
    (difference,), _, _ = vl.compared()
    assert (elements(difference).index, elements(difference).count, elements(difference).total) == (
        (),
        4,
        4,
    )
    assert difference.device_name == "cpu:1"


def test_another_dtype(vl: Case) -> None:
    packed = vl.device.packed[f"{LANGUAGE}norm.weight"]
    packed.array, packed.dtype = packed.array.astype("<u4") << 16, "F32"
    (difference,), (diagnosis,), _ = vl.compared()
    assert (reference_words(difference), device_words(difference)) == ("BF16", "F32")
    assert diagnosis.cause is Cause.STRUCTURE


def test_another_shape(vl: Case) -> None:
    packed = vl.device.packed[f"{LANGUAGE}layers.0.mlp.gate.weight"]
    packed.array = packed.array.T
    (difference,), (diagnosis,), _ = vl.compared()
    assert (reference_words(difference), device_words(difference)) == ("[128, 8]", "[8, 128]")
    assert diagnosis.cause is Cause.STRUCTURE


def test_nans_count_as_the_target_leaves_them(vl: Case) -> None:
    comparison = vl.compared(nan=Nan.CANONICAL)[2]
    (view,) = [p for n, p in comparison.views.fitting.items() if n == HEAD]
    bits = np.array([0x7F81, 0xFF81, 0x3F80], dtype="<u2")
    assert comparison.expected(bits, "BF16", view.layout).tolist() == [0x7FC0, 0xFFC0, 0x3F80]


def test_nans_that_lost_their_payloads_are_named(tmp_path: Path) -> None:
    path = write_checkpoint(VL, tmp_path / "nans", values=Values.NAN_PAYLOADS).path
    checkpoint = ModelCheckpoint(path)
    device = PackedParameters(checkpoint, Part.DECODER)
    for name, packed in device.packed.items():
        if packed.dtype == "BF16" and "norm" not in name and "_embed." not in name:
            packed.array = canonical_nans(packed.array)
    each = Case(checkpoint, Part.DECODER, device, line(device.devices))
    assert each.causes() == {Cause.NAN_CANONICALISED}
    assert len(each.compared()[1]) == 1
    (reference,) = reference_parts(checkpoint)
    canonical = ParameterComparison(
        reference, device.tensors(), each.mesh, packing=Packing(), nan=Nan.CANONICAL
    )
    assert list(canonical.differences()) == []


def test_a_mesh_with_copies_is_compared_copy_by_copy(tiny_checkpoints: Paths) -> None:
    """Two by two: each half of the devices holds all; a bit that is off in one copy is found."""
    checkpoint = ModelCheckpoint(tiny_checkpoints[VL])
    device = PackedParameters(checkpoint, Part.DECODER, 2)
    mesh = Mesh((("data", 2), ("model", 2)), ("cpu:1", "cpu:2", "cpu:3", "cpu:4"))
    copied = [
        replace(t, shards=(*t.shards, *_on(t, {"cpu:1": "cpu:3", "cpu:2": "cpu:4"}).shards))
        for t in device.tensors()
    ]
    each = Case(checkpoint, Part.DECODER, device, mesh)
    assert each.compared(copied)[0] == []
    at = next(i for i, t in enumerate(copied) if t.name == HEAD)
    bad = np.array(copied[at].shards[3].fetch(...)).copy()
    bad[0, 0] ^= 1
    shards = (*copied[at].shards[:3], replace(copied[at].shards[3], fetch=lambda i: bad[i]))
    copied[at] = replace(copied[at], shards=shards)
    (difference,), (diagnosis,), _ = each.compared(copied)
    assert (difference.device_name, elements(difference).index) == ("cpu:4", (256, 0))
    assert diagnosis.cause is Cause.REPLICAS_DIFFER


def test_heads_are_cut_over_model_before_expert() -> None:
    mesh = Mesh((("data", 1), ("expert", 2), ("model", 2)), ("a", "b", "c", "d"))
    assert mesh.groups(("model", "expert", "dcp")) == (("a", "c", "b", "d"),)
    assert mesh.groups(("expert", "model")) == (("a", "b", "c", "d"),)
    assert mesh.shards(()) == dict.fromkeys("abcd", 0)
    assert Span(0, mesh.count(("model",))) == Span(0, 2)
