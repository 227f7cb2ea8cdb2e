"""Every fault planted in the device view is seen, named and placed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.base.bits import Bits, Nan, canonical_nans
from harness.base.progress import Meter
from harness.compare.difference import Difference, Kind
from harness.compare.expert_comparison import PartComparison
from harness.compare.words import device_words, reference_words, source_words
from harness.devices.expert_layout import Backend, Parameter, expert_layout
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.explain.causes import Cause, Diagnosis
from harness.explain.diagnosis import Explainer
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection
from tests.support.differences import elements
from tests.support.packing import PackedDevice, replicated

PIECE, PADDED = 12, 128  # F 48 over 4 devices, padded


@pytest.fixture
def device(decoder: ReferencePart) -> PackedDevice:
    return PackedDevice(decoder)


def compare(
    decoder: ReferencePart, part: DevicePart, nan: Nan = Nan.PAYLOAD
) -> tuple[list[Difference], list[Diagnosis]]:
    comparison = PartComparison(decoder, part, nan=nan)
    differences = list(comparison.differences())
    return differences, Explainer(comparison).diagnose(differences)


def slices(differences: list[Difference]) -> set[tuple[int | None, int | None, str | None]]:
    return {(d.layer, d.expert, d.projection) for d in differences}


def test_a_faithful_device_is_equal(decoder: ReferencePart, device: PackedDevice) -> None:
    meter = Meter()
    comparison = PartComparison(decoder, device.part(), meter=meter)
    assert list(comparison.differences()) == []
    assert meter.figures.done == comparison.tally.bytes_compared
    assert comparison.tally.experts_compared == comparison.tally.experts == 16
    assert comparison.tally.bytes_compared == 2 * 8 * 3 * 48 * 128 * 2
    assert comparison.tally.padding_bytes == 2 * 8 * 128 * (1024 - 96) * 2


@pytest.mark.parametrize("backend", Backend)
def test_every_backend_is_compared_and_a_bit_of_it_found(
    decoder: ReferencePart, backend: Backend
) -> None:
    device = PackedDevice(decoder, backend=backend)

    def differences() -> list[Difference]:
        comparison = PartComparison(decoder, device.part(), backend=backend)
        return list(comparison.differences())

    assert differences() == []
    up = expert_layout(backend, decoder.shape, 4).blocks_of(Projection.UP)[-1]
    w13 = device.arrays[1][Parameter.W13]
    w13.reshape(8, -1, w13.shape[-1])[6, up.rows.stop - 1, up.columns.stop - 1] ^= 1
    (found,) = differences()
    assert found.key == ExpertKey(Part.DECODER, 1, 6, Projection.UP)
    assert elements(found).index == (up.outputs.stop - 1, up.inputs.stop - 1)
    assert found.shard == 3


def test_two_experts_exchanged(decoder: ReferencePart, device: PackedDevice) -> None:
    for array in device.arrays[1].values():
        array[[2, 5]] = array[[5, 2]]
    differences, (diagnosis,) = compare(decoder, device.part())
    assert slices(differences) == {(1, expert, p) for expert in (2, 5) for p in Projection}
    assert diagnosis.cause is Cause.EXPERTS_EXCHANGED
    assert diagnosis.summary == "experts 2 and 5 of decoder layer 1 are exchanged"
    assert diagnosis.covers == 6


def test_experts_in_another_order(decoder: ReferencePart, device: PackedDevice) -> None:
    """A cycle, as ids sorted as strings make one: no two experts are simply exchanged."""
    for array in device.arrays[0].values():
        array[[1, 2, 3]] = array[[2, 3, 1]]
    differences, (diagnosis,) = compare(decoder, device.part())
    assert len(differences) == 9
    assert diagnosis.cause is Cause.EXPERTS_PERMUTED
    assert "expert 1 gate_proj holds the bytes of decoder layer 0 expert 2" in diagnosis.evidence


def test_gate_and_up_exchanged(decoder: ReferencePart, device: PackedDevice) -> None:
    w13 = device.arrays[0][Parameter.W13]
    for shard in range(4):
        gate = slice(2 * shard * PADDED, 2 * shard * PADDED + PIECE)
        up = slice(gate.start + PADDED, gate.stop + PADDED)
        w13[3, :, gate], w13[3, :, up] = w13[3, :, up].copy(), w13[3, :, gate].copy()
    differences, (diagnosis,) = compare(decoder, device.part())
    assert slices(differences) == {(0, 3, Projection.GATE), (0, 3, Projection.UP)}
    assert diagnosis.cause is Cause.PROJECTIONS_EXCHANGED
    assert "gate_proj and up_proj are exchanged" in diagnosis.summary


def test_a_transposed_expert(decoder: ReferencePart, device: PackedDevice) -> None:
    w2 = device.arrays[1][Parameter.W2]
    w2[4] = w2[4].T.reshape(w2[4].shape)
    differences, (diagnosis,) = compare(decoder, device.part())
    assert slices(differences) == {(1, 4, Projection.DOWN)}
    assert diagnosis.cause is Cause.TRANSPOSED


@pytest.mark.parametrize("bit", [0, 7, 15])
def test_one_bit_flipped(decoder: ReferencePart, device: PackedDevice, bit: int) -> None:
    """Of an element that is no zero: the sign of one alone is another cause."""
    column = 2 * 2 * PADDED + PADDED + 5  # shard 2, the up half, its column 5
    device.arrays[1][Parameter.W13][6, 77, column] ^= np.uint16(1 << bit)
    (difference,), (diagnosis,) = compare(decoder, device.part())
    assert difference.key == ExpertKey(Part.DECODER, 1, 6, Projection.UP)
    assert elements(difference).index == (2 * PIECE + 5, 77)
    assert (elements(difference).count, elements(difference).total) == (1, 48 * 128)
    assert (difference.shard, difference.device_name) == (2, "cpu:3")
    reference = int(decoder[difference.key][elements(difference).index])
    assert reference_words(difference) == f"0x{reference:04x}"
    assert device_words(difference) == f"0x{reference ^ (1 << bit):04x}"
    assert diagnosis.cause is Cause.BIT_FLIP
    assert "gate_up_proj[6, :, 48:96]" in source_words(difference)


def test_negative_zero_turned_positive(decoder: ReferencePart, device: PackedDevice) -> None:
    for arrays in device.arrays.values():
        for array in arrays.values():
            array[array == 0x8000] = 0
    differences, (diagnosis,) = compare(decoder, device.part())
    assert len(differences) == len(decoder)
    assert diagnosis.cause is Cause.SIGN_OF_ZERO
    assert {(reference_words(d), device_words(d)) for d in differences} == {("0x8000", "0x0000")}


@pytest.mark.parametrize(("held", "cause"), [(0xDEAD, Cause.UNWRITTEN), (0, Cause.ZEROS)])
def test_an_expert_left_unwritten(
    decoder: ReferencePart, device: PackedDevice, held: int, cause: Cause
) -> None:
    layout = expert_layout(Backend.GMM_TP, decoder.shape, 4)
    for block in layout.blocks:
        array = device.arrays[0][block.parameter]
        array[7, block.rows.as_slice(), block.columns.as_slice()] = held
    differences, (diagnosis,) = compare(decoder, device.part())
    assert slices(differences) == {(0, 7, p) for p in Projection}
    assert diagnosis.cause is cause
    what = "was never written" if held else "holds only zeros"
    assert diagnosis.summary == f"expert 7 of decoder layer 0 {what}"


def test_padding_that_is_not_zero(decoder: ReferencePart, device: PackedDevice) -> None:
    device.arrays[0][Parameter.W13][2, 9, 3 * PADDED + PIECE + 1] = 0x3F80
    (difference,), (diagnosis,) = compare(decoder, device.part())
    assert difference.kind is Kind.PADDING
    assert elements(difference).index == (2, 9, 3 * PADDED + PIECE + 1)
    assert (difference.expert, device_words(difference), difference.shard) == (2, "0x3f80", 1)
    assert diagnosis.cause is Cause.PADDING


def with_tensor(part: DevicePart, layer: int, tensor: DeviceTensor | None) -> DevicePart:
    """``part`` with w13 of ``layer`` replaced, or taken out."""
    layers = {number: dict(tensors) for number, tensors in part.layers.items()}
    if tensor is None:
        del layers[layer][Parameter.W13]
    else:
        layers[layer][Parameter.W13] = tensor
    return replace(part, layers=layers)


def test_a_replicated_array(decoder: ReferencePart, device: PackedDevice) -> None:
    tensor = device.tensor(0, Parameter.W13)
    whole = replicated(tensor, device.arrays[0][Parameter.W13])
    differences, (diagnosis,) = compare(decoder, with_tensor(device.part(), 0, whole))
    assert [d.kind for d in differences] == [Kind.SHARDING] * 4
    assert reference_words(differences[1]) == "[0:8, 0:128, 256:512]"
    assert device_words(differences[1]) == "[0:8, 0:128, 0:1024]"
    assert diagnosis.cause is Cause.REPLICATED
    assert diagnosis.summary == "decoder layer 0 w13_weight is replicated instead of sharded"


def test_shards_on_the_wrong_devices(decoder: ReferencePart, device: PackedDevice) -> None:
    tensor = device.tensor(1, Parameter.W13)
    names = [shard.device for shard in tensor.shards]
    rolled = [replace(s, device=n) for s, n in zip(tensor.shards, names[1:] + names[:1])]  # noqa: B905
    moved = replace(tensor, shards=tuple(rolled))
    differences, (diagnosis,) = compare(decoder, with_tensor(device.part(), 1, moved))
    assert [d.kind for d in differences] == [Kind.SHARDING] * 4
    assert diagnosis.cause is Cause.MISPLACED


def test_a_shard_on_a_device_outside_the_mesh(decoder: ReferencePart, device: PackedDevice) -> None:
    tensor = device.tensor(1, Parameter.W13)
    stray = replace(tensor.shards[3], device="cpu:0")
    moved = replace(tensor, shards=(*tensor.shards[:3], stray))
    differences, _ = compare(decoder, with_tensor(device.part(), 1, moved))
    assert [(d.device_name, reference_words(d), device_words(d)) for d in differences] == [
        ("cpu:4", "[0:8, 0:128, 768:1024]", "nothing"),
        ("cpu:0", "nothing", "[0:8, 0:128, 768:1024]"),
    ]


def test_an_absent_array(decoder: ReferencePart, device: PackedDevice) -> None:
    comparison = PartComparison(decoder, with_tensor(device.part(), 0, None))
    (difference,) = comparison.differences()
    assert (difference.kind, difference.layer, device_words(difference)) == (
        Kind.MISSING,
        0,
        "nothing",
    )
    assert comparison.tally.experts_compared == 8


def test_an_absent_layer(decoder: ReferencePart, device: PackedDevice) -> None:
    del device.arrays[1]
    differences, _ = compare(decoder, device.part())
    assert [(d.kind, d.layer) for d in differences] == [(Kind.MISSING, 1)] * 2


def test_an_array_of_another_shape(decoder: ReferencePart, device: PackedDevice) -> None:
    tensor = replace(device.tensor(0, Parameter.W13), shape=(8, 128, 96))
    (difference,), (diagnosis,) = compare(decoder, with_tensor(device.part(), 0, tensor))
    assert (difference.kind, reference_words(difference)) == (Kind.SHAPE, "[8, 128, 1024]")
    assert diagnosis.cause is Cause.STRUCTURE


def test_an_array_of_another_dtype(decoder: ReferencePart, device: PackedDevice) -> None:
    tensor = replace(device.tensor(0, Parameter.W13), dtype="F16")
    (difference,), _ = compare(decoder, with_tensor(device.part(), 0, tensor))
    assert (difference.kind, reference_words(difference), device_words(difference)) == (
        Kind.DTYPE, "BF16", "F16",
    )  # fmt: skip


def test_a_layer_too_many(decoder: ReferencePart, device: PackedDevice) -> None:
    device.arrays[9] = device.arrays[0]
    (difference,), _ = compare(decoder, device.part())
    assert (difference.kind, difference.layer) == (Kind.EXTRA, 9)


def test_an_expert_array_nobody_knows(decoder: ReferencePart, device: PackedDevice) -> None:
    part = replace(device.part(), unknown=("model.layers.0.mlp.experts.w13_bias",))
    (difference,), _ = compare(decoder, part)
    assert (difference.kind, difference.parameter) == (
        Kind.EXTRA, "model.layers.0.mlp.experts.w13_bias",
    )  # fmt: skip


def test_noise_is_unexplained(decoder: ReferencePart, device: PackedDevice) -> None:
    noisy = device.arrays[0][Parameter.W2][1, ::16, :]
    noisy ^= np.uint16(0x0101)
    (difference,), (diagnosis,) = compare(decoder, device.part())
    assert elements(difference).count == noisy.size
    assert diagnosis.cause is Cause.UNEXPLAINED


def test_a_rewritten_nan_payload(decoder: ReferencePart, device: PackedDevice) -> None:
    """NaNs count by their bits, unless the one known rewriting is asked to be let pass."""

    class WithNan(PartComparison):
        def expected(self, bits: Bits) -> Bits:
            bits = bits.copy()
            bits[0, 0] = 0xFF81
            return super().expected(bits)

    for arrays in device.arrays.values():
        arrays[Parameter.W13][:, 0, [0, PADDED]] = 0xFFC0
        arrays[Parameter.W2][:, 0, 0] = 0xFFC0
    strict = WithNan(decoder, device.part())
    differences = list(strict.differences())
    (diagnosis,) = Explainer(strict).diagnose(differences)
    assert diagnosis.cause is Cause.NAN_CANONICALISED
    assert {(reference_words(d), device_words(d), elements(d).count) for d in differences} == {
        ("0xff81", "0xffc0", 1)
    }
    assert list(WithNan(decoder, device.part(), nan=Nan.CANONICAL).differences()) == []


def test_only_bf16_has_canonical_nans(decoder: ReferencePart, device: PackedDevice) -> None:
    bits = np.array([[0xFF81, 0x7FFF]], dtype=np.uint16)  # NaNs of bf16 and of f16 alike
    comparison = PartComparison(decoder, device.part(), nan=Nan.CANONICAL)
    assert comparison.expected(bits).tolist() == [[0xFFC0, 0x7FC0]]
    decoder.shape = replace(decoder.shape, dtype="F16")
    assert np.array_equal(comparison.expected(bits), bits)


def test_canonical_nans_touch_nothing_else() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    changed = canonical_nans(every)
    nan = (every & 0x7FFF) > 0x7F80
    assert np.array_equal(changed[~nan], every[~nan])
    assert set(changed[nan].tolist()) == {0x7FC0, 0xFFC0}
    assert np.array_equal(changed & 0x8000, every & 0x8000)
