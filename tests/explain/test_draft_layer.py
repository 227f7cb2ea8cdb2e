"""A draft model's layer that is one off is told from any other layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare.expert_comparison import PartComparison
from harness.explain.causes import Cause
from harness.explain.diagnosis import Explainer
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.packing import PackedDevice, pack
from tests.support.parameter_cases import case

RECIPE = "qwen3.5-mtp"
NORM = "layers.{n}.post_attention_layernorm.weight"

#: The decoder has two layers: the draft's layer 0 comes after its layer 1.
CAUSES = [(1, Cause.DRAFT_LAYER_OFF_BY_ONE), (0, Cause.OTHER_LAYER)]


@pytest.mark.parametrize(("layer", "cause"), CAUSES)
def test_experts(tiny_checkpoints: dict[str, Path], layer: int, cause: Cause) -> None:
    parts = reference_parts(ModelCheckpoint(tiny_checkpoints[RECIPE]))
    decoder, draft = parts
    assert decoder.layers == (0, 1)
    device = PackedDevice(draft)
    device.arrays[0] = pack(decoder, layer, device.backend, 4)
    comparison = PartComparison(draft, device.part())
    (diagnosis,) = Explainer(comparison, parts).diagnose(list(comparison.differences()))
    assert diagnosis.cause is cause
    assert diagnosis.summary.startswith(
        f"experts 0-7 of mtp layer 0 hold what belongs to decoder layer {layer}"
    )


@pytest.mark.parametrize(("layer", "cause"), CAUSES)
def test_any_other_tensor(tiny_checkpoints: dict[str, Path], layer: int, cause: Cause) -> None:
    planted = case(tiny_checkpoints, RECIPE, Part.MTP)
    held = planted.device.get(f"model.language_model.{NORM.format(n=layer)}")
    planted.device.packed[f"vllm_model.model.{NORM.format(n=0)}"].array = held
    _, (diagnosis,), _ = planted.compared()
    assert diagnosis.cause is cause
    assert f"what belongs to decoder layer {layer}" in diagnosis.summary
