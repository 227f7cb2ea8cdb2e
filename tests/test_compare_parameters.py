"""Every fault planted in a parameter besides experts is seen, named and placed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from harness.causes import Cause, Diagnosis
from harness.checkpoint import Checkpoint
from harness.compare_parameters import ParameterComparison
from harness.device import DeviceTensor
from harness.difference import Difference, Kind
from harness.experts import reference_parts
from harness.explain_parameters import ParameterExplainer
from harness.family import Part
from harness.layout import Span
from harness.mesh import Mesh, line
from harness.nan import Nan, canonical_nans
from harness.parameter_layout import Packing
from harness.synthetic.values import Values
from harness.synthetic.writer import write_checkpoint
from tests.parameter_packing import LANGUAGE, Array, PackedParameters, side_by_side

Paths = dict[str, Path]
VISUAL = "vllm_model.visual."
HEAD = "vllm_model.language_model.lm_head.weight"


@dataclass
class Case:
    """A part of a tiny checkpoint on a numpy device."""

    checkpoint: Checkpoint
    part: Part
    device: PackedParameters
    mesh: Mesh

    def compared(
        self, tensors: list[DeviceTensor] | None = None
    ) -> tuple[list[Difference], list[Diagnosis], ParameterComparison]:
        (reference,) = [p for p in reference_parts(self.checkpoint) if p.part is self.part]
        comparison = ParameterComparison(
            reference, tensors or self.device.tensors(), self.mesh, packing=Packing()
        )
        differences = list(comparison.differences())
        return differences, ParameterExplainer(comparison).diagnose(differences), comparison

    def causes(self) -> set[Cause]:
        return {d.cause for d in self.compared()[1]}


def case(paths: Paths, recipe: str, part: Part = Part.DECODER, devices: int = 4) -> Case:
    checkpoint = Checkpoint(paths[recipe])
    device = PackedParameters(checkpoint, part, devices)
    return Case(checkpoint, part, device, line(device.devices))


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


Change = Callable[[PackedParameters], None]


def _array(device: PackedParameters, name: str) -> Array:
    packed = device.packed[name]
    packed.array = packed.array.copy()
    return packed.array


ATTENTION = f"{LANGUAGE}layers.1.self_attn.qkv_proj.weight"


def _swap_q_heads(device: PackedParameters) -> None:
    array = _array(device, ATTENTION)
    array[:, :32], array[:, 32:64] = array[:, 32:64].copy(), array[:, :32].copy()


def _swap_q_and_k_heads(device: PackedParameters) -> None:
    """Shard 0 holds q heads 0 and 1, then the first copy of k head 0."""
    array = _array(device, ATTENTION)
    for start in (64, 64 + 128):  # both copies
        array[:, start : start + 32] = device.get(
            "model.language_model.layers.1.self_attn.q_proj.weight"
        )[:32].T
    array[:, :32] = device.get("model.language_model.layers.1.self_attn.k_proj.weight")[:32].T


def _tile_instead_of_repeat(device: PackedParameters) -> None:
    """k heads repeated as 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    here = "model.language_model.layers.1.self_attn."
    q, k, v = (device.get(f"{here}{p}_proj.weight") for p in "qkv")
    tiled = [q, np.concatenate([k, k]), np.repeat(v.reshape(2, 32, -1), 2, axis=0).reshape(128, -1)]
    device.packed[ATTENTION].array = side_by_side(tiled, 4).T


def _order_for_two_shards(device: PackedParameters) -> None:
    here = "model.language_model.layers.1.mlp.shared_expert."
    halves = [device.get(f"{here}{p}_proj.weight") for p in ("gate", "up")]
    name = f"{LANGUAGE}layers.1.mlp.shared_expert.gate_up_proj.weight"
    device.packed[name].array = side_by_side(halves, 2).T


def _swap_shared_gate_and_up(device: PackedParameters) -> None:
    here = "model.language_model.layers.1.mlp.shared_expert."
    halves = [device.get(f"{here}{p}_proj.weight") for p in ("up", "gate")]
    name = f"{LANGUAGE}layers.1.mlp.shared_expert.gate_up_proj.weight"
    device.packed[name].array = side_by_side(halves, 4).T


def _swap_router_rows(device: PackedParameters) -> None:
    array = _array(device, f"{LANGUAGE}layers.0.mlp.gate.weight")
    rows = array if array.shape[0] == 8 else array.T
    rows[[3, 5]] = rows[[5, 3]]


def _rotate_vocabulary(device: PackedParameters) -> None:
    packed = device.packed[f"{LANGUAGE}embed_tokens.weight"]
    packed.array = np.roll(packed.array, len(packed.array) // 4, axis=0)


def _zero_the_head(device: PackedParameters) -> None:
    _array(device, HEAD)[:] = 0


def _poison_the_head(device: PackedParameters) -> None:
    _array(device, HEAD)[:] = 0xDEAD


def _head_is_the_embedding(device: PackedParameters) -> None:
    device.packed[HEAD].array = device.packed[f"{LANGUAGE}embed_tokens.weight"].array


def _transpose_the_vision_projection(device: PackedParameters) -> None:
    packed = device.packed[f"{VISUAL}blocks.0.attn.proj.weight"]
    packed.array = np.ascontiguousarray(packed.array.T)


def _exchange_input_shards(device: PackedParameters) -> None:
    array = _array(device, f"{LANGUAGE}layers.1.self_attn.o_proj.weight")
    array[:64], array[64:128] = array[64:128].copy(), array[:64].copy()


def _swap_vision_heads(device: PackedParameters) -> None:
    array = _array(device, f"{VISUAL}blocks.1.attn.qkv.weight")
    array[:, :8], array[:, 8:16] = array[:, 8:16].copy(), array[:, :8].copy()


def _one_replica_of_a_norm(device: PackedParameters) -> None:
    def change(bits: Array) -> Array:
        bits = bits.copy()
        bits[7] ^= 0x40
        return bits

    device.reading[f"{LANGUAGE}norm.weight", "cpu:3"] = change


def _norm_off_by_a_bit(device: PackedParameters) -> None:
    _array(device, f"{LANGUAGE}layers.1.input_layernorm.weight")[5] ^= 1


def _deepstack_of_the_other(device: PackedParameters) -> None:
    device.packed[f"{VISUAL}deepstack_merger_list.0.linear_fc1.weight"].array = device.packed[
        f"{VISUAL}deepstack_merger_list.1.linear_fc1.weight"
    ].array


def _z_before_v(device: PackedParameters) -> None:
    here = "model.language_model.layers.0.linear_attn."
    mixed, z = device.get(f"{here}in_proj_qkv.weight"), device.get(f"{here}in_proj_z.weight")
    parts = [mixed[:128], mixed[128:256], z, mixed[256:]]
    name = f"{LANGUAGE}layers.0.linear_attn.in_proj_qkvz.weight"
    device.packed[name].array = side_by_side(parts, 4).T


def _a_before_b(device: PackedParameters) -> None:
    here = "model.language_model.layers.0.linear_attn."
    parts = [device.get(f"{here}in_proj_{p}.weight") for p in "ab"]
    name = f"{LANGUAGE}layers.0.linear_attn.in_proj_ba.weight"
    device.packed[name].array = side_by_side(parts, 4).T


def _scale_not_one(device: PackedParameters) -> None:
    _array(device, f"{LANGUAGE}layers.1.self_attn.attn._k_scale")[...] = 0x40000000


VL, Q = "qwen3-vl-moe", "qwen3.5-moe"
FAULTS: list[tuple[str, Change, Cause, str]] = [
    (VL, _swap_q_heads, Cause.HEADS_EXCHANGED, "head 0 of .*q_proj.weight holds head 1 of"),
    (VL, _swap_q_and_k_heads, Cause.HEADS_EXCHANGED, "head 0 of .*q_proj.* holds head 0 .*k_proj"),
    (VL, _tile_instead_of_repeat, Cause.HEADS_REPEATED, "head 0 of .*copy 1.* holds head 1 of"),
    (Q, _order_for_two_shards, Cause.SHARDS_EXCHANGED, "holds shard"),
    (Q, _swap_shared_gate_and_up, Cause.PROJECTIONS_EXCHANGED, "all 10240 elements"),
    (Q, _swap_router_rows, Cause.ROWS_EXCHANGED, "row 3 of .*mlp.gate.weight holds row 5"),
    (VL, _swap_router_rows, Cause.ROWS_EXCHANGED, "row 3 of .*mlp.gate.weight holds row 5"),
    (VL, _rotate_vocabulary, Cause.SHARDS_EXCHANGED, "shard 1 of .*embed_tokens.* holds shard 0"),
    (VL, _zero_the_head, Cause.ZEROS, "all zeros"),
    (VL, _poison_the_head, Cause.PARAMETER_UNWRITTEN, "still holds the poison 0xdead"),
    (VL, _head_is_the_embedding, Cause.OTHER_BYTES, "elements are equal"),
    (VL, _transpose_the_vision_projection, Cause.TRANSPOSED, "transposing it back"),
    (VL, _exchange_input_shards, Cause.SHARDS_EXCHANGED, "shard 0 of .*o_proj.* holds shard 1"),
    (VL, _swap_vision_heads, Cause.HEADS_EXCHANGED, "head 0 of .*qkv.weight holds head 1"),
    (VL, _one_replica_of_a_norm, Cause.REPLICAS_DIFFER, "cpu:1, cpu:2, cpu:4 holds the same"),
    (VL, _norm_off_by_a_bit, Cause.BIT_FLIP, "bit 0 of element 5"),
    (VL, _deepstack_of_the_other, Cause.OTHER_BYTES, "elements are equal"),
    (Q, _z_before_v, Cause.SHARDS_EXCHANGED, "holds shard"),
    (Q, _a_before_b, Cause.PROJECTIONS_EXCHANGED, "elements are equal"),
    (VL, _scale_not_one, Cause.STRUCTURE, "expected 0x3f800000, found 0x40000000"),
]


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
    _array(vl.device, ATTENTION)[3, 2 * 128 + 40] ^= 2
    (difference,), _, _ = vl.compared()
    assert difference.index == (168, 3)
    assert (difference.device_name, difference.shard) == ("cpu:3", 2)
    assert difference.source.endswith("layers.1.self_attn.q_proj.weight")
    assert (difference.count, difference.total) == (1, 256 * 128)


def test_dirty_vocabulary_padding(vl: Case, tmp_path: Path) -> None:
    """A vocabulary of 500 is padded to 512; the padding must be zero."""
    path = write_checkpoint(VL, tmp_path / "uneven", shapes="tiny:vocabulary").path
    uneven = Checkpoint(path)
    device = PackedParameters(uneven, Part.DECODER)
    each = Case(uneven, Part.DECODER, device, line(device.devices))
    assert each.compared()[0] == []
    assert each.compared()[2].tally.padding_bytes == 2 * 12 * 128 * 2
    _array(device, HEAD)[505, 9] = 0x3F80
    (difference,), (diagnosis,), _ = each.compared()
    assert (difference.kind, difference.index) == (Kind.PADDING, (505, 9))
    assert difference.device_name == "cpu:4"
    assert diagnosis.cause is Cause.PADDING
    _poison_the_head(device)
    assert each.causes() == {Cause.PARAMETER_UNWRITTEN}


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
    assert [(d.device_name, d.reference, d.device) for d in differences] == [
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
    assert differences[1].source.endswith("layers.0.input_layernorm.weight")


def test_another_dtype(vl: Case) -> None:
    packed = vl.device.packed[f"{LANGUAGE}norm.weight"]
    packed.array, packed.dtype = packed.array.astype("<u4") << 16, "F32"
    (difference,), (diagnosis,), _ = vl.compared()
    assert (difference.reference, difference.device) == ("BF16", "F32")
    assert diagnosis.cause is Cause.STRUCTURE


def test_another_shape(vl: Case) -> None:
    packed = vl.device.packed[f"{LANGUAGE}layers.0.mlp.gate.weight"]
    packed.array = packed.array.T
    (difference,), (diagnosis,), _ = vl.compared()
    assert (difference.reference, difference.device) == ("[128, 8]", "[8, 128]")
    assert diagnosis.cause is Cause.STRUCTURE


def test_nans_count_as_the_target_leaves_them(vl: Case) -> None:
    comparison = vl.compared()[2]
    comparison._nan = Nan.CANONICAL
    (placed,) = [p for n, p in comparison.placed.items() if n == HEAD and not isinstance(p, str)]
    bits = np.array([0x7F81, 0xFF81, 0x3F80], dtype="<u2")
    assert comparison.expected(bits, placed.layout).tolist() == [0x7FC0, 0xFFC0, 0x3F80]


def test_nans_that_lost_their_payloads_are_named(vl: Case, tmp_path: Path) -> None:
    path = write_checkpoint(VL, tmp_path / "nans", values=Values.NAN_PAYLOADS).path
    checkpoint = Checkpoint(path)
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
    checkpoint = Checkpoint(tiny_checkpoints[VL])
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
    assert (difference.device_name, difference.index) == ("cpu:4", (256, 0))
    assert diagnosis.cause is Cause.REPLICAS_DIFFER


def test_heads_are_cut_over_model_before_expert() -> None:
    mesh = Mesh((("data", 1), ("expert", 2), ("model", 2)), ("a", "b", "c", "d"))
    assert mesh.groups(("model", "expert", "dcp")) == (("a", "c", "b", "d"),)
    assert mesh.groups(("expert", "model")) == (("a", "b", "c", "d"),)
    assert mesh.shards(()) == dict.fromkeys("abcd", 0)
    assert Span(0, mesh.count(("model",))) == Span(0, 2)
