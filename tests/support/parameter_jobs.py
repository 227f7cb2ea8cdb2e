"""A job for a loading process: load for real, then plant faults into parameters and compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from harness.base.bits import Bits
from harness.base.progress import Meter
from harness.compare.parameter_comparison import ParameterComparison
from harness.devices.jax_arrays import from_jax
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.stack import require_stack
from harness.load.targets.known_targets import driver_of
from harness.verification.job import VerifyRequest

Tensors = dict[str, DeviceTensor]
Fault = Callable[[DeviceTensor], DeviceTensor]
LANGUAGE = "vllm_model.language_model.model."


def plant(argument: bytes, _: Meter) -> bytes:
    """Load once for real, then plant each fault into the view of the devices and compare.

    Returns:
        For each fault its causes, summaries and evidence, as JSON.
    """
    request = msgspec.json.decode(argument, type=VerifyRequest)
    reference = ModelCheckpoint(request.reference)
    parts = {part.part: part for part in reference_parts(reference)}
    loaded = engine.load(request.checkpoint, reference.family, request.target, request.parts)
    packing = driver_of(request.target).packing(require_stack())
    seen = {}
    for fault, (part, name, change) in PLANTED.items():
        tensors = [change(t) if t.name == name else t for t in loaded.tensors[part]]
        comparison = ParameterComparison(parts[part], tensors, loaded.grid, packing=packing)
        diagnoses = ParameterExplainer(comparison).diagnose(list(comparison.differences()))
        seen[fault] = [(d.cause.value, d.summary, d.evidence) for d in diagnoses]
    return msgspec.json.encode(seen)


def _on(tensor: DeviceTensor, device: str, change: Callable[[Bits], None]) -> DeviceTensor:
    """The tensor with one device's bits changed; every device's where it is ``*``."""

    def faulty(shard: DeviceShard) -> DeviceShard:
        if device not in ("*", shard.device):
            return shard
        bits = np.array(shard.fetch(...))
        change(bits)
        return replace(shard, fetch=lambda index: bits[index])

    return replace(tensor, shards=tuple(map(faulty, tensor.shards)))


def _exchange(axis: int, one: slice, other: slice) -> Callable[[Bits], None]:
    def change(bits: Bits) -> None:
        view = bits if axis == 0 else bits.T
        view[one], view[other] = view[other].copy(), view[one].copy()

    return change


def _from(tensor: DeviceTensor, device: str, columns: slice) -> Callable[[Bits], None]:
    """Put another device's columns into these."""
    (source,) = [s for s in tensor.shards if s.device == device]

    def change(bits: Bits) -> None:
        bits[:, columns] = source.fetch(...)[:, columns]

    return change


def _flip(*at: int) -> Callable[[Bits], None]:
    def change(bits: Bits) -> None:
        bits[at] ^= 1

    return change


def _put(tensor: DeviceTensor, order: list[int], spec: tuple[Any, ...]) -> DeviceTensor:
    """The tensor put onto the devices anew by JAX itself, in another order or by another spec."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    whole = np.zeros(tensor.shape, dtype="<u2")
    for shard in tensor.shards:
        whole[tuple(span.as_slice() for span in shard.index)] = shard.fetch(...)
    mesh = Mesh(np.array([jax.devices("cpu")[i] for i in order]), ("model",))
    array = whole.view(jax.numpy.bfloat16)
    return from_jax(
        tensor.name,
        jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec))),
        in_host_memory=True,
    )


D, M = Part.DECODER, Part.MTP
QKV = f"{LANGUAGE}layers.1.self_attn.qkv_proj.weight"  # per device: 2 q heads of 64, k 32, v 32
O_PROJ = f"{LANGUAGE}layers.1.self_attn.o_proj.weight"
SHARED = f"{LANGUAGE}layers.0.mlp.shared_expert.gate_up_proj.weight"
ROUTER = f"{LANGUAGE}layers.0.mlp.gate.weight"
HEAD = "vllm_model.language_model.lm_head.weight"
NORM = "vllm_model.model.norm.weight"
FC = "vllm_model.model.fc.weight"

PLANTED: dict[str, tuple[Part, str, Fault]] = {
    "none": (D, "", lambda t: t),
    "none in mtp": (M, "", lambda t: t),
    "q heads swapped": (
        D, QKV, lambda t: _on(t, "cpu:2", _exchange(1, slice(0, 64), slice(64, 128))),
    ),
    "wrong k head repeated": (
        D, QKV, lambda t: _on(t, "cpu:2", _from(t, "cpu:3", slice(128, 160))),
    ),
    "gate and up swapped": (
        D, SHARED, lambda t: _on(t, "*", _exchange(1, slice(0, 20), slice(20, 40))),
    ),
    "router rows swapped": (
        D, ROUTER, lambda t: _on(t, "*", _exchange(0, slice(3, 4), slice(5, 6))),
    ),
    "one replica off by a bit": (D, ROUTER, lambda t: _on(t, "cpu:4", _flip(2, 9))),
    "norm off by a bit": (D, f"{LANGUAGE}norm.weight", lambda t: _on(t, "*", _flip(77))),
    "decay off by a bit": (
        D, f"{LANGUAGE}layers.0.linear_attn.A_log", lambda t: _on(t, "*", _flip(3)),
    ),
    "fc off by a bit": (M, FC, lambda t: _on(t, "cpu:3", _flip(200, 5))),
    "replicated by jax": (D, O_PROJ, lambda t: _put(t, [1, 2, 3, 4], ())),
    "other devices by jax": (D, HEAD, lambda t: _put(t, [2, 1, 3, 4], ("model",))),
    "other axis by jax": (D, HEAD, lambda t: _put(t, [1, 2, 3, 4], (None, "model"))),
    "sharded by jax": (M, NORM, lambda t: _put(t, [1, 2, 3, 4], ("model",))),
    "renamed": (D, ROUTER, lambda t: replace(t, name=f"{t.name}s")),
}  # fmt: skip
