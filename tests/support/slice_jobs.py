"""Jobs of one host of a slice, with a fault planted on host 1."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from harness.base.bits import Bits
from harness.base.progress import Meter
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.family import Part
from harness.load import engine
from harness.load.ledger import POISON
from harness.load.loaded import Loaded
from harness.report.report import Report
from harness.verification.job import VerifyRequest, verify_job

#: Names the fault, among the options of the stream.
FAULT = "PLANTED_FAULT"
_W2 = "layers.1.mlp.experts.routed_experts.w2_weight"


def verify_with_fault_on_host_1(argument: bytes, meter: Meter) -> bytes:
    request, _ = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    if request.target.host == 1:
        load, spoil = engine.load, FAULTS[request.stream_options[FAULT]]
        engine.load = lambda *args, **named: spoil(load(*args, **named))
    return verify_job(argument, meter)


def _changed(loaded: Loaded, change: Callable[[DeviceTensor], DeviceTensor]) -> Loaded:
    tensors = [change(t) if t.name.endswith(_W2) else t for t in loaded.tensors[Part.DECODER]]
    return replace(loaded, tensors={**loaded.tensors, Part.DECODER: tensors})


def _spoiled(loaded: Loaded) -> Loaded:
    """Of layer 1: a bit of expert 6 flipped, 2 and 5 exchanged, 7 never written."""

    def change(tensor: DeviceTensor) -> DeviceTensor:
        shards = [
            replace(shard, fetch=partial(_misread, shard, number == 0))
            for number, shard in enumerate(tensor.shards)
        ]
        return replace(tensor, shards=tuple(shards))

    return _changed(loaded, change)


def _misread(shard: DeviceShard, flips: bool, expert: Any) -> Bits:
    bits = shard.fetch({2: 5, 5: 2}.get(expert, expert)).copy()
    if expert == 6 and flips:
        bits[1, 3] ^= 1
    if expert == 7:
        bits[:] = POISON[2]
    return bits


def _shard_lost(loaded: Loaded) -> Loaded:
    """A shard of one array is not there, and one device is taken for another host's."""
    assert loaded.local is not None
    lost = _changed(loaded, lambda tensor: replace(tensor, shards=tensor.shards[1:]))
    return replace(lost, local=loaded.local - {loaded.mesh[-1]})


def _killed(loaded: Loaded) -> Loaded:
    os.kill(os.getpid(), signal.SIGKILL)
    return loaded


def _raised(loaded: Loaded) -> Loaded:
    raise RuntimeError("planted on host 1")


FAULTS: dict[str, Callable[[Loaded], Loaded]] = {
    "spoiled": _spoiled,
    "shard lost": _shard_lost,
    "killed": _killed,
    "raised": _raised,
}
