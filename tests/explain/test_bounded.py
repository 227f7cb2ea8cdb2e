"""Explaining a large tensor takes the memory of some stretches of it, whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.bits import Bits
from harness.compare.pieces import Departure, Run, departure_of
from harness.devices.tensors import DeviceShard
from harness.explain.causes import Cause
from harness.explain.evidence import Around, Evidence, Granule, Slice, Words
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.explain.provenance import Occurrence
from harness.explain.rules import RULES, explain
from tests.support.memory import peak
from tests.support.parameter_cases import case
from tests.support.parameter_packing import LANGUAGE

ROWS, COLUMNS = 1 << 13, 1 << 11  # 32 MB
WORDS = Words("{names}", "{names}", "{names}", "", "", "", "")


class Alone(Around):
    """Nothing is around."""

    unsearched = False

    def fellows(self) -> tuple[Slice, ...]:
        return ()

    def whose(self) -> None:
        return None

    def line(self, axis: int, digest: bytes) -> None:
        return None

    def bytes_at(self, run: bytes) -> Occurrence | None:
        return None

    def expected(self, other: Slice) -> Bits:
        return BITS


#: Pseudorandom, and without an exponent of all ones, which is no number.
BITS: Bits = (np.arange(ROWS * COLUMNS, dtype=np.uint32) * 2654435761 >> 16).astype(np.uint16)
BITS = (BITS & np.uint16(0xBFFF)).reshape(ROWS, COLUMNS)


def evidence(device: Bits) -> Evidence:
    own = Slice("head", "head", "decoder")
    return Evidence(
        slice=own, words=WORDS, wanted=lambda: BITS, device=device, dtype="BF16",
        stored=lambda: (BITS, "BF16"), around=Alone(), granules=(Granule("shard", 0, ROWS // 4),),
        has=frozenset(need for rule in RULES for need in rule.needs),
    )  # fmt: skip


def noisy() -> Bits:
    made: Bits = BITS ^ np.random.default_rng(0).integers(1, 1 << 14, BITS.shape).astype("<u2")
    return made


DEVICES: dict[str, tuple[Callable[[], Bits], Cause]] = {
    "never written": (lambda: np.full_like(BITS, 0xDEAD), Cause.UNWRITTEN),
    "zeros": (lambda: np.zeros_like(BITS), Cause.ZEROS),
    "rolled": (lambda: np.roll(BITS, 5, 0), Cause.ROLLED),
    "noise": (noisy, Cause.UNEXPLAINED),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DEVICES)
def test_a_large_tensor_is_explained_in_the_memory_of_stretches(case: str) -> None:
    """A stretch of 64-bit numbers, several at a time; never one for each element."""
    make, cause = DEVICES[case]
    e = evidence(make())
    found = []
    needed = peak(lambda: found.append(explain(e)))
    assert found[0].cause is cause
    assert needed < (4 if case in ("never written", "zeros") else 64) << 20, needed


def test_an_unwritten_run_is_described_in_the_memory_of_a_stretch() -> None:
    """As a device holds it that has [inputs, outputs]."""
    poison = np.broadcast_to(np.uint16(0xDEAD), BITS.T.shape)
    run = Run("cpu:1", 0, BITS.T, poison, (slice(0, ROWS), slice(0, COLUMNS)))
    found: list[Departure | None] = []
    needed = peak(lambda: found.append(departure_of(run, transposed=True)))
    assert needed < 4 << 20
    unequal = int((BITS != 0xDEAD).sum())
    assert found == [Departure("cpu:1", 0, (0, 0), int(BITS[0, 0]), 0xDEAD, unequal, BITS.size)]


@pytest.mark.parametrize(
    ("written", "cause"), [(0, Cause.UNWRITTEN), (1, Cause.NARROWED)], ids=["nothing", "one row"]
)
def test_what_holds_one_value_is_not_read_back_again(
    tiny_checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    written: int,
    cause: Cause,
) -> None:
    """An embedding that was never written, and its reference, would fill the host's memory."""
    own = case(tiny_checkpoints, "qwen3-vl-moe")
    name = f"{LANGUAGE}embed_tokens.weight"
    own.device.packed[name].array[written:] = 0xDEAD
    asked: list[Any] = []

    def counted(shard: DeviceShard) -> DeviceShard:
        def fetch(index: Any) -> Bits:
            asked.append(index)
            return shard.fetch(index)

        return replace(shard, fetch=fetch)

    tensors = [
        replace(t, shards=tuple(map(counted, t.shards))) if t.name == name else t
        for t in own.device.tensors()
    ]
    found, _, comparison = own.compared(tensors)
    asked.clear()
    read = own.checkpoint.bits

    def noted(*given: Any) -> Bits:
        asked.append(given)
        return read(*given)

    monkeypatch.setattr(own.checkpoint, "bits", noted)
    (diagnosis,) = ParameterExplainer(comparison).diagnose(found)
    assert diagnosis.cause is cause
    assert bool(asked) == bool(written)
