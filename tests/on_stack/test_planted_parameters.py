"""Faults planted into the parameters that a real load left on the devices are seen and named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.verification.job import VerifyRequest
from tests.support.parameter_jobs import FC, HEAD, O_PROJ, PLANTED, ROUTER

Seen = dict[str, list[tuple[str, str, str]]]
LAYER_1 = "model.language_model.layers.1.self_attn"


@pytest.fixture(scope="module")
def seen(load_process: LoadProcess, target: Target, tiny_checkpoints: dict[str, Path]) -> Seen:
    path = str(tiny_checkpoints["qwen3.6-mtp"])
    request = VerifyRequest(checkpoint=path, reference=path, target=target, parts=tuple(Part))
    answer = load_process.run(
        "tests.support.parameter_jobs:plant", msgspec.json.encode(request), target, timeout=300
    )
    result: Seen = json.loads(answer)
    return result


#: By fault, the cause and what the summary or the evidence says.
EXPECTED: dict[str, tuple[Cause, str] | None] = {
    "none": None,
    "none in mtp": None,
    "q heads swapped": (
        Cause.HEADS_EXCHANGED,
        f"head 2 of {LAYER_1}.q_proj.weight holds head 3 of {LAYER_1}.q_proj.weight",
    ),
    "wrong k head repeated": (
        Cause.HEADS_REPEATED_WRONGLY,
        f"head 0 of {LAYER_1}.k_proj.weight (copy 1) holds head 1 of {LAYER_1}.k_proj.weight",
    ),
    "gate and up swapped": (
        Cause.PROJECTIONS_EXCHANGED,
        "gate_proj.weight holds the bytes of model.language_model.layers.0.mlp.shared_expert.up",
    ),
    "router rows swapped": (
        Cause.ROWS_EXCHANGED,
        "row 3 of model.language_model.layers.0.mlp.gate",
    ),
    "one replica off by a bit": (Cause.REPLICAS_DIFFER, "cpu:4 holds another"),
    "norm off by a bit": (Cause.BIT_FLIP, "one bit of model.language_model.norm.weight is flipped"),
    "decay off by a bit": (Cause.BIT_FLIP, "layers.0.linear_attn.A_log is flipped"),
    "fc off by a bit": (Cause.BIT_FLIP, "mtp.fc.weight"),
    "replicated by jax": (Cause.REPLICATED, f"{O_PROJ} is replicated instead of sharded"),
    "other devices by jax": (Cause.MISPLACED, "cpu:1 holds [128:256, 0:128]"),
    "other axis by jax": (Cause.MISPLACED, f"shards of {HEAD} lie on the wrong devices"),
    "sharded by jax": (Cause.MISPLACED, "cpu:1 holds [0:32], its share is [0:128]"),
    "renamed": (Cause.UNACCOUNTED, f"{ROUTER}s is unaccounted for"),
}


def test_every_fault_has_an_expectation() -> None:
    assert set(EXPECTED) == set(PLANTED)
    assert FC in {name for _, name, _ in PLANTED.values()}


@pytest.mark.parametrize("fault", EXPECTED)
def test_planted(seen: Seen, fault: str) -> None:
    wanted = EXPECTED[fault]
    if wanted is None:
        assert seen[fault] == []
        return
    cause, text = wanted
    assert {found for found, _, _ in seen[fault]} == {cause}
    assert any(text in summary or text in evidence for _, summary, evidence in seen[fault]), seen
