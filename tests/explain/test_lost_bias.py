"""A bias that did not arrive, while its weight did, is named, wherever that shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.compare.difference import (
    Difference,
    ParameterUnwritten,
    Subject,
    TensorUnread,
    Unaccounted,
)
from harness.compare.expert_comparison import PartComparison
from harness.compare.parameter_comparison import ParameterComparison
from harness.devices.parameter_layout import Packing
from harness.explain.causes import Cause
from harness.explain.delivery_rules import is_lone_bias
from harness.explain.diagnosis import Explainer
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import ReferencePart
from harness.families.family import Part
from harness.load.ledger import Ledger, LoaderCall
from tests.support.packing import PackedDevice
from tests.support.parameter_cases import case
from tests.support.parameter_packing import line

FC1 = "model.visual.blocks.0.mlp.linear_fc1"


def ledger(*delivered: str, **more: Any) -> Ledger:
    """Of a load in which a loader was called for these tensors."""
    calls = [LoaderCall("p", "Layer", name, (), {}, "file.py:1", False) for name in delivered]
    return Ledger(calls=calls, streamed=list(delivered), finished=True, **more)


@pytest.mark.parametrize(
    ("name", "delivered", "lone"),
    [
        ("a.b.bias", ["a.b.weight"], True),
        ("a.b.bias", ["a.b.weight", "a.b.bias"], False),
        ("a.b.bias", ["a.c.weight"], False),  # nothing of that layer came
        ("a.experts.gate_up_proj_bias", ["a.experts.gate_up_proj"], True),
        ("a.experts.w13_bias", ["a.experts.w13_weight"], True),
        ("a.gate.e_score_correction_bias", ["a.gate.weight"], True),
        ("bias", ["weight"], True),
        ("a.b.weight", ["a.b.bias"], False),
    ],
)
def test_which_bias_is_alone(name: str, delivered: list[str], lone: bool) -> None:
    assert is_lone_bias(name, ledger(*delivered)) is lone
    assert not is_lone_bias(name, Ledger())
    unwritten = ledger(parameters=[name, *delivered], unwritten=[name])
    assert is_lone_bias(name, unwritten) is (lone or name in delivered)


@pytest.mark.parametrize(
    ("held", "delivered", "cause"),
    [
        (0xDEAD, [f"{FC1}.weight"], Cause.BIAS_LOST),
        (0, [f"{FC1}.weight"], Cause.BIAS_LOST),
        (0, [f"{FC1}.weight", f"{FC1}.bias"], Cause.ZEROS),
        (0xDEAD, [f"{FC1}.weight", f"{FC1}.bias"], Cause.UNWRITTEN),
        (0xDEAD, ["other.weight"], Cause.NOT_STREAMED),
        (0x3F80, [f"{FC1}.weight"], Cause.UNEXPLAINED),
    ],
)
def test_a_bias_on_the_device(
    tiny_checkpoints: dict[str, Path], held: int, delivered: list[str], cause: Cause
) -> None:
    planted = case(tiny_checkpoints, "qwen3-vl-moe")
    packed = planted.device.packed[f"vllm_{FC1}.bias"]
    packed.array = packed.array * 0 + held
    comparison = planted.compared()[2]
    explainer = ParameterExplainer(comparison, ledger(*delivered))
    (diagnosis,) = explainer.diagnose(list(comparison.faults))
    assert diagnosis.cause is cause


def test_a_bias_that_the_model_has_no_parameter_for(tiny_checkpoints: dict[str, Path]) -> None:
    planted = case(tiny_checkpoints, "qwen3-vl-moe")
    del planted.device.packed[f"vllm_{FC1}.bias"]
    del planted.device.packed["vllm_model.visual.blocks.1.norm1.weight"]
    comparison = ParameterComparison(
        planted.compared()[2].reference, planted.device.tensors(), line(planted.device.devices),
        packing=Packing(),
    )  # fmt: skip
    found = list(comparison.differences())
    assert {d.subject for d in found if isinstance(d, Unaccounted)} == {
        Subject.TENSOR_OF_NO_PARAMETER
    }
    diagnoses = ParameterExplainer(comparison, ledger(f"{FC1}.weight")).diagnose(found)
    assert [d.cause for d in diagnoses] == [Cause.BIAS_LOST, Cause.UNACCOUNTED]


def test_biases_of_experts_that_nobody_read(decoder: ReferencePart) -> None:
    """The tensor, and the parameter that nothing was written to: one cause."""
    experts = "model.language_model.layers.0.mlp.experts"
    found: list[Difference] = [
        TensorUnread(part=Part.DECODER, tensor=f"{experts}.gate_up_proj_bias"),
        ParameterUnwritten(part=Part.DECODER, parameter="layers.0.mlp.experts.w13_bias"),
        TensorUnread(part=Part.DECODER, tensor="model.other.bias"),
    ]
    given = ledger(
        f"{experts}.gate_up_proj",
        parameters=["layers.0.mlp.experts.w13_weight", "layers.0.mlp.experts.w13_bias"],
        unwritten=["layers.0.mlp.experts.w13_bias"],
    )
    comparison = PartComparison(decoder, PackedDevice(decoder).part())
    lost, unread = Explainer(comparison, (), given).diagnose(found)
    assert (lost.cause, lost.covers) == (Cause.BIAS_LOST, 2)
    assert lost.summary == "biases were lost on the way, while their weights came"
    assert unread.cause is Cause.TENSOR_UNREAD
