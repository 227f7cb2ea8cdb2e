"""What a report gets besides one copy of the experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.progress import Meter
from harness.base.text import numbers_of
from harness.compare.difference import Kind, ParameterTally
from harness.compare.selection import Selection, choose
from harness.devices.expert_layout import Backend
from harness.devices.parameter_layout import HOST, Packing
from harness.devices.tensors import DeviceTensor
from harness.explain.causes import Cause
from harness.families.experts import ReferencePart
from harness.families.family import Part
from harness.families.model import ModelCheckpoint
from harness.load.ledger import Ledger
from harness.load.loaded import Loaded
from harness.load.targets.registry import driver_named
from harness.verification.findings import Findings
from harness.verification.part import How, PartVerification, expert_copies
from tests.support.packing import PackedDevice
from tests.support.parameter_packing import PackedParameters
from tests.support.reports import a_report

DATA_2_MODEL_2 = (("data", 2), ("model", 2))
_EVERYTHING = Selection()
MESH = ("cpu:1", "cpu:2", "cpu:3", "cpu:4")


def loaded(
    tensors: list[DeviceTensor], axes: tuple[tuple[str, int], ...] = (("model", 4),)
) -> Loaded:
    return Loaded({Part.DECODER: tensors}, MESH, "", 0.0, 0.0, axes)


def verification(
    part: ReferencePart, given: Loaded, selection: Selection = _EVERYTHING
) -> PartVerification:
    return PartVerification(
        part=part, parts=[part], loaded=given, ledger=Ledger(),
        chosen=choose([part], selection)[part.part], present=[part.part], meter=Meter(),
        how=How(
            backend=Backend.GMM_TP, selection=selection,
            packing=driver_named("emulated").packing({"tpu-inference": "0.26.0"}),
        ),
    )  # fmt: skip


def compared(
    part: ReferencePart, tensors: list[DeviceTensor], selection: Selection = _EVERYTHING
) -> tuple[ParameterTally, Findings]:
    tally, found, _ = verification(part, loaded(tensors), selection).of_parameters()
    return tally, found


@pytest.fixture
def device(tiny_checkpoints: dict[str, Path]) -> PackedParameters:
    return PackedParameters(ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"]), Part.DECODER)


def test_all_is_compared_by_default(decoder: ReferencePart, device: PackedParameters) -> None:
    tally, found = compared(decoder, device.tensors())
    assert (tally.compared, tally.parameters, tally.left_out) == (62, 62, 0)
    report = a_report(parameters=[tally])
    assert report.parameters_compared == 62
    assert report.all_bytes_compared - report.bytes_compared == tally.bytes_compared > 10**6
    assert found == Findings()


@pytest.mark.parametrize(
    ("selection", "left_out"),
    [
        (Selection(layers="0"), 7),
        (Selection(layers="0", max_bytes=10**9), 55),
        (Selection(sample=1), 7),
    ],
)
def test_a_selection_selects_layers(
    decoder: ReferencePart, device: PackedParameters, selection: Selection, left_out: int
) -> None:
    tally, _ = compared(decoder, device.tensors(), selection)
    assert (tally.compared, tally.left_out) == (62 - left_out, left_out)


def test_diagnoses_number_what_is_put_together(
    decoder: ReferencePart, device: PackedParameters
) -> None:
    lost = ("lm_head.weight", "norm.weight")
    tensors = [t for t in device.tensors() if not t.name.endswith(lost)]
    _, found = compared(decoder, tensors)
    last = len(found.differences)
    assert last > 1
    both = found + found
    assert both.differences == found.differences * 2
    assert [d.first for d in both.diagnoses] == [
        *(d.first for d in found.diagnoses), *(d.first + last for d in found.diagnoses)
    ]  # fmt: skip
    assert sorted(n for d in both.diagnoses for n in numbers_of(d.members)) == [*range(2 * last)]
    assert {d.kind for d in both.differences} == {Kind.UNACCOUNTED}
    assert found + Findings() == Findings() + found == found


def copied(tensor: DeviceTensor) -> DeviceTensor:
    """A tensor over two devices, once more over two others."""
    more = {"cpu:1": "cpu:3", "cpu:2": "cpu:4"}
    shards = tuple(replace(s, device=more[s.device]) for s in tensor.shards)
    return replace(tensor, shards=(*tensor.shards, *shards))


def test_each_copy_of_the_experts_is_compared(decoder: ReferencePart) -> None:
    device = PackedDevice(decoder, devices=2)
    tensors = [copied(t) for layer in device.part().layers.values() for t in layer.values()]
    first, second = expert_copies(loaded(tensors, DATA_2_MODEL_2), decoder)
    assert (first.mesh, second.mesh) == (MESH[:2], MESH[2:])

    def compare() -> Findings:
        left = loaded(tensors, DATA_2_MODEL_2)
        return verification(decoder, left).of_copy(expert_copies(left, decoder)[1])

    assert compare() == Findings()
    bits = np.array(tensors[0].shards[3].fetch(...))
    bits[5, 0, 0] ^= 1
    shards = (*tensors[0].shards[:3], replace(tensors[0].shards[3], fetch=lambda i: bits[i]))
    tensors[0] = replace(tensors[0], shards=shards)
    found = compare()
    assert [(d.expert, d.device_name) for d in found.differences] == [(5, "cpu:4")]
    assert [d.cause for d in found.diagnoses] == [Cause.BIT_FLIP]


def test_a_shard_outside_the_mesh_is_nobodys(decoder: ReferencePart) -> None:
    name = "vllm_model.model.layers.0.mlp.experts.routed_experts.w2_weight"
    device = PackedDevice(decoder, devices=2)
    (w2,) = [t for t in device.part().layers[0].values() if t.name == name]
    tensor = replace(copied(w2), shards=(*copied(w2).shards, replace(w2.shards[0], device="cpu:0")))
    first, second = expert_copies(loaded([tensor], DATA_2_MODEL_2), decoder)
    assert [s.device for t in first.layers[0].values() for s in t.shards] == [
        "cpu:1", "cpu:2", "cpu:0",
    ]  # fmt: skip
    assert [s.device for t in second.layers[0].values() for s in t.shards] == ["cpu:3", "cpu:4"]


def test_what_a_release_does_to_parameters() -> None:
    driver = driver_named("emulated")
    assert driver.packing({"tpu-inference": "0.26.0"}) == Packing()
    old = driver.packing({"tpu-inference": "0.21.0"})
    assert (old.transposes, old.repeats, old.divides) == (False, False, True)
    assert driver.packing({"vllm": "0.26.1"}).vllm == (0, 26, 1)
    assert driver_named("torch-xla").packing({}) == HOST


@pytest.mark.parametrize(("release", "transposes"), [("0.21.1rc2", False), ("0.22.0rc1", True)])
def test_a_candidate_is_of_its_release(release: str, transposes: bool) -> None:
    assert driver_named("emulated").packing({"tpu-inference": release}).transposes is transposes
