"""What the ledger knows of a slice that was never written, of experts and parameters alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.compare.difference import Difference, ParameterUnwritten, TensorUnread
from harness.compare.expert_comparison import PartComparison
from harness.compare.parameter_comparison import ParameterComparison
from harness.devices.expert_layout import Backend, expert_layout
from harness.devices.parameter_layout import Packing
from harness.explain.causes import Cause, Diagnosis
from harness.explain.diagnosis import Explainer
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model import ModelCheckpoint
from harness.load.ledger import POISON, Ledger, LoaderCall
from tests.support.packing import PackedDevice
from tests.support.parameter_packing import PackedParameters, line

HEAD = "lm_head.weight"
EXPERTS = "model.language_model.layers.0.mlp.experts.gate_up_proj"
Explained = Callable[[Ledger], Diagnosis]


def experts(checkpoint: ModelCheckpoint, ledger: Ledger) -> Diagnosis:
    """What explains that expert 7's gate and up of layer 0 hold the poison."""
    part: ReferencePart = reference_parts(checkpoint)[0]
    device = PackedDevice(part)
    for block in expert_layout(Backend.GMM_TP, part.shape, 4).blocks:
        array = device.arrays[0][block.parameter]
        if block.parameter == "w13_weight":
            array[7, block.rows.as_slice(), block.columns.as_slice()] = POISON[2]
    comparison = PartComparison(part, device.part())
    differences = list(comparison.differences())
    (diagnosis,) = Explainer(comparison, (), ledger).diagnose(differences)
    return diagnosis


def head(checkpoint: ModelCheckpoint, ledger: Ledger) -> Diagnosis:
    """What explains that the head holds the poison."""
    device = PackedParameters(checkpoint, Part.DECODER)
    packed = device.packed[f"vllm_model.language_model.{HEAD}"]
    packed.array = packed.array * 0 + POISON[2]
    comparison = ParameterComparison(
        reference_parts(checkpoint)[0], device.tensors(), line(device.devices), packing=Packing()
    )
    differences = list(comparison.differences())
    (diagnosis,) = ParameterExplainer(comparison, ledger).diagnose(differences)
    return diagnosis


def call(*arguments: object, late: bool = False, **keywords: object) -> Callable[[str], LoaderCall]:
    def of(tensor: str) -> LoaderCall:
        name = "layers.0.mlp.experts.w13_weight" if tensor == EXPERTS else HEAD
        return LoaderCall(name, "Layer", tensor, arguments, keywords, "file.py:3", late)

    return of


def calls(one: Callable[[str], LoaderCall]) -> Callable[[str], Ledger]:
    return lambda tensor: Ledger(calls=[one(tensor)], streamed=[tensor], finished=True)


IDS: dict[str, Any] = {"expert_id": 7, "shard_id": "w1"}
LEDGERS: dict[str, tuple[Callable[[str], Ledger], Cause]] = {
    "nothing is known": (lambda _: Ledger(), Cause.UNWRITTEN),
    "not streamed": (lambda _: Ledger(streamed=["other"], finished=True), Cause.NOT_STREAMED),
    "streamed, and no loader called": (
        lambda tensor: Ledger(streamed=[tensor], finished=True), Cause.NOT_DELIVERED,
    ),
    "the loader returned": (calls(call(**IDS)), Cause.UNWRITTEN),
    "too late": (calls(call(late=True, **IDS)), Cause.DELIVERED_LATE),
    "ids by position": (calls(call("name", "w1", 7)), Cause.ARGUMENT_CONTRACT),
}  # fmt: skip


@pytest.fixture
def checkpoint(tiny_checkpoints: dict[str, Path]) -> ModelCheckpoint:
    return ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"])


@pytest.mark.parametrize("case", LEDGERS)
@pytest.mark.parametrize(("kind", "tensor"), [(experts, EXPERTS), (head, HEAD)])
def test_what_became_of_it_is_the_same_for_experts_and_parameters(
    checkpoint: ModelCheckpoint,
    kind: Callable[[ModelCheckpoint, Ledger], Diagnosis],
    tensor: str,
    case: str,
) -> None:
    make, cause = LEDGERS[case]
    ledger = make(tensor)
    if tensor == EXPERTS and ledger.calls:  # gate has a call of its own, up another
        (first,) = ledger.calls
        keywords = {k: "w3" if v == "w1" else v for k, v in first.keywords.items()}
        positions = tuple("w3" if v == "w1" else v for v in first.arguments)
        ledger.calls.append(first._replace(keywords=keywords, arguments=positions))
    diagnosis = kind(checkpoint, ledger)
    assert diagnosis.cause is cause
    assert "never written" in diagnosis.summary
    assert "still holds the poison 0xdead" in diagnosis.evidence


def test_a_parameter_that_nothing_was_written_to(checkpoint: ModelCheckpoint) -> None:
    """The ledger has the parameter by vLLM's name: no loader was called for any of it."""
    ledger = Ledger(streamed=[HEAD], unwritten=[f"language_model.{HEAD}"], finished=True)
    diagnosis = head(checkpoint, ledger)
    assert diagnosis.cause is Cause.PARAMETER_UNWRITTEN
    assert diagnosis.summary == "lm_head.weight was never written (decoder head)"
    other = Ledger(streamed=[HEAD], unwritten=["other_lm_head.weight"], finished=True)
    assert head(checkpoint, other).cause is Cause.NOT_DELIVERED


def test_a_tensor_that_was_not_delivered_is_told_once(decoder: ReferencePart) -> None:
    """That no loader read it, and that its slices hold the poison, is one thing."""
    device = PackedDevice(decoder)
    for array in device.arrays[0].values():
        array[:] = POISON[2]
    ledger = Ledger(streamed=[EXPERTS, EXPERTS.replace("gate_up", "down")], finished=True)
    comparison = PartComparison(decoder, device.part())
    found: list[Difference] = [
        d for d in comparison.differences() if d.key and d.projection != "down_proj"
    ]
    found.append(TensorUnread(part=Part.DECODER, tensor=EXPERTS))
    found.append(ParameterUnwritten(part=Part.DECODER, parameter="layers.0.mlp.experts.w13_weight"))
    first, second = Explainer(comparison, (), ledger).diagnose(found)
    assert (first.cause, first.covers) == (Cause.NOT_DELIVERED, 17)
    assert second.cause is Cause.PARAMETER_UNWRITTEN
