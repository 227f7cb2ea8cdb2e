"""A layer that has experts on one side and a dense MLP on the other is named so, wherever seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.compare.difference import Subject, TensorUnread, Unaccounted
from harness.compare.expert_comparison import PartComparison
from harness.explain.causes import Cause
from harness.explain.diagnosis import Explainer
from harness.families.experts import ReferencePart
from harness.families.family import Part
from tests.support.packing import PackedDevice
from tests.support.parameter_cases import case
from tests.support.parameter_packing import LANGUAGE, Packed

EXPERTS = "model.language_model.layers.{n}.mlp.experts.gate_up_proj"
EXPERTS_ON_THE_DEVICE = "layers.{n}.mlp.experts.routed_experts.w13_weight"
DENSE = "layers.1.mlp.gate_up_proj.weight"
SEEN = "decoder layer 1 has experts in the reference, and none on the device"


def test_a_layer_of_experts_that_has_none_on_the_device(decoder: ReferencePart) -> None:
    """The arrays are missing, and its tensors were not read: one cause."""
    device = PackedDevice(decoder)
    del device.arrays[1]
    comparison = PartComparison(decoder, device.part())
    found = [*comparison.differences(), *(
        TensorUnread(part=Part.DECODER, tensor=EXPERTS.format(n=n)) for n in (1, 0)
    )]  # fmt: skip
    dense, unread = Explainer(comparison).diagnose(found)
    assert (dense.cause, dense.summary, dense.covers) == (Cause.DENSE_LAYER, SEEN, 3)
    assert "w13" in dense.evidence
    assert (unread.cause, unread.covers) == (Cause.TENSOR_UNREAD, 1)


def test_one_array_that_is_missing_is_another_thing(decoder: ReferencePart) -> None:
    device = PackedDevice(decoder)
    part = device.part()
    layers = {n: dict(tensors) for n, tensors in part.layers.items()}
    layers[1].popitem()
    comparison = PartComparison(decoder, replace(part, layers=layers))
    (diagnosis,) = Explainer(comparison).diagnose(list(comparison.differences()))
    assert diagnosis.cause is Cause.STRUCTURE


def test_a_dense_layer_that_has_experts_on_the_device(decoder: ReferencePart) -> None:
    device = PackedDevice(decoder)
    device.arrays[9] = device.arrays[0]
    comparison = PartComparison(decoder, device.part())
    (diagnosis,) = Explainer(comparison).diagnose(list(comparison.differences()))
    assert diagnosis.cause is Cause.DENSE_LAYER
    assert diagnosis.summary == (
        "decoder layer 9 has experts on the device, and none in the reference"
    )


@pytest.mark.parametrize(
    ("array", "of_experts", "cause"),
    [
        (DENSE, 0, Cause.DENSE_LAYER),
        (DENSE, 1, Cause.UNACCOUNTED),  # beside experts it is something else
        ("layers.1.mlp.new.weight", 0, Cause.UNACCOUNTED),
        ("layers.1.self_attn.w1.weight", 0, Cause.UNACCOUNTED),
    ],
)
def test_the_array_of_a_dense_mlp(
    tiny_checkpoints: dict[str, Path], array: str, of_experts: int, cause: Cause
) -> None:
    planted = case(tiny_checkpoints, "qwen3-vl-moe")
    for name in (array, EXPERTS_ON_THE_DEVICE.format(n=of_experts)):
        planted.device.packed[f"{LANGUAGE}{name}"] = Packed(np.ones((8, 4), "<u2"), None)
    (difference,), (diagnosis,), _ = planted.compared()
    assert isinstance(difference, Unaccounted)
    assert difference.subject is Subject.ARRAY
    assert diagnosis.cause is cause
    assert (diagnosis.summary == SEEN) is (cause is Cause.DENSE_LAYER)
