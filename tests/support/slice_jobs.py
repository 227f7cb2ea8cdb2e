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
_W13 = "layers.1.mlp.experts.routed_experts.w13_weight"
_W2 = "layers.1.mlp.experts.routed_experts.w2_weight"
_O_PROJ = "language_model.model.layers.0.self_attn.o_proj.weight"


def verify_with_fault_on_host_1(argument: bytes, meter: Meter) -> bytes:
    request, _ = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    if request.target.host == 1:
        load, spoil = engine.load, FAULTS[request.stream_options[FAULT]]
        engine.load = lambda *args, **named: spoil(load(*args, **named))
    return verify_job(argument, meter)


def _changed(
    loaded: Loaded, change: Callable[[DeviceTensor], DeviceTensor], name: str = _W2
) -> Loaded:
    tensors = [change(t) if t.name.endswith(name) else t for t in loaded.tensors[Part.DECODER]]
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


def _requantised_wrongly(loaded: Loaded) -> Loaded:
    """A code of expert 6's down, a scale of expert 4's gate, a code of an attention's output."""
    for name, at, bits in (
        (_W2, (6, 1, 3), 4),
        (f"{_W13}_scale_inv", (4, ..., 5), 1 << 22),
        (_O_PROJ, (2, 7), 0x40),
    ):
        loaded = _changed(loaded, partial(_with_bits_flipped, at, bits), name)
    return loaded


def _with_bits_flipped(at: Any, flipped: int, tensor: DeviceTensor) -> DeviceTensor:
    """With bits of one element of this host's first shard flipped."""
    first, *others = tensor.shards
    bits = first.fetch(...).copy()
    bits[at] ^= flipped
    return replace(tensor, shards=(replace(first, fetch=lambda index: bits[index]), *others))


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
    "requantised wrongly": _requantised_wrongly,
    "shard lost": _shard_lost,
    "killed": _killed,
    "raised": _raised,
}
