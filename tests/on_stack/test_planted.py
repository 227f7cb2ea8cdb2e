"""Faults planted into what a real load left on the emulated devices are seen and named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from harness.devices.expert_layout import Backend
from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.verification.job import VerifyRequest
from tests.support.jobs import PLANTED

Seen = dict[str, tuple[list[str], list[str]]]


@pytest.fixture(scope="module")
def seen(load_process: LoadProcess, target: Target, tiny_checkpoints: dict[str, Path]) -> Seen:
    path = str(tiny_checkpoints["qwen3-vl-moe"])
    request = VerifyRequest(checkpoint=path, reference=path, target=target, parts=(Part.DECODER,))
    answer = load_process.run(
        "tests.support.jobs:plant", msgspec.json.encode(request), target, timeout=300
    )
    result: Seen = json.loads(answer)
    return result


EXPECTED = {
    "none": ([], []),
    "experts swapped": (
        [Cause.EXPERTS_EXCHANGED],
        ["experts 2 and 5 of decoder layer 1 are exchanged"],
    ),
    "gate and up swapped": (
        [Cause.PROJECTIONS_EXCHANGED],
        ["gate_proj and up_proj are exchanged in decoder layer 1, expert 3"],
    ),
    "halves not split by shard": (
        [Cause.SHARDS_EXCHANGED],
        ["shards of experts 0-7 of decoder layer 1 are in other places"],
    ),
    "transposed": (
        [Cause.TRANSPOSED],
        ["down_proj of decoder layer 1 is transposed, expert 4"],
    ),
    "bit flipped": (
        [Cause.BIT_FLIP],
        ["one bit of decoder layer 1 expert 6 down_proj is flipped"],
    ),
    "sign of zero lost": (
        [Cause.SIGN_OF_ZERO],
        ["zeros lost or gained their sign, all else is equal"],
    ),
    "zeroed": ([Cause.ZEROS], ["expert 7 of decoder layer 1 holds only zeros"]),
    "padding": ([Cause.PADDING], ["the padding of an expert array is not zero"]),
    "replicated by jax": (
        [Cause.REPLICATED],
        ["decoder layer 0 w13_weight is replicated instead of sharded"],
    ),
}


def test_every_fault_has_an_expectation() -> None:
    assert set(EXPECTED) == set(PLANTED[Backend.GMM_TP])


@pytest.mark.parametrize("fault", EXPECTED)
def test_planted(seen: Seen, fault: str) -> None:
    causes, summaries = seen[fault]
    assert (causes, summaries) == EXPECTED[fault]
