"""Jobs the tests send to a loading process; they run in its forked children."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from harness.base.bits import Bits
from harness.base.progress import Meter
from harness.compare.expert_comparison import PartComparison
from harness.devices.expert_layout import Backend, Parameter, Span
from harness.devices.jax_arrays import from_jax
from harness.devices.tensors import DevicePart, DeviceShard, DeviceTensor, device_part
from harness.explain.diagnosis import Explainer
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.ledger import Ledger
from harness.load.recording import Recorder
from harness.load.targets.known_targets import driver_named, target_named, targets
from harness.load.targets.xla import seen_by_torch_xla
from harness.verification.job import VerifyRequest
from tests.support.fault_catalogue import FAULTS
from tests.support.faults import verified_with

Seen = list[tuple[list[str], list[str]]]


def plant(argument: bytes, _: Meter) -> bytes:
    """Load once for real, then plant each fault into the view of the device and compare.

    Returns:
        For each fault that the target's layout allows, its name, causes and summaries, as JSON.
    """
    request = msgspec.json.decode(argument, type=VerifyRequest)
    (part,) = reference_parts(ModelCheckpoint(request.reference))
    backend = request.target.backend
    loaded = engine.load(request.checkpoint, part.checkpoint.family, request.target, [part.part])
    device = device_part(
        loaded.tensors[part.part], loaded.mesh, module=part.checkpoint.family.experts_module
    )
    seen = {
        name: _diagnosed(part, fault(device), backend) for name, fault in PLANTED[backend].items()
    }
    return msgspec.json.encode(seen)


def _diagnosed(
    part: ReferencePart, device: DevicePart, backend: Backend
) -> tuple[list[str], list[str]]:
    comparison = PartComparison(part, device, backend=backend)
    diagnoses = Explainer(comparison).diagnose(list(comparison.differences()))
    return [d.cause.value for d in diagnoses], [d.summary for d in diagnoses]


def verify_with_fault(argument: bytes, _: Meter) -> bytes:
    """Verify a checkpoint with a fault of the table planted; the report."""
    request, fault = msgspec.json.decode(argument, type=tuple[VerifyRequest, str])
    return verified_with(request, next(row.layers for row in FAULTS if row.name == fault))


Read = Callable[[DeviceShard, Any], Bits]


def _reading(
    device: DevicePart, read: Read, only: tuple[Parameter, ...] = tuple(Parameter)
) -> DevicePart:
    """``device`` with layer 1 read through ``read``."""

    def faulty(tensor: DeviceTensor) -> DeviceTensor:
        shards = tuple(replace(s, fetch=partial(read, s)) for s in tensor.shards)
        return replace(tensor, shards=shards)

    layers = dict(device.layers)
    layers[1] = {p: faulty(t) if p in only else t for p, t in layers[1].items()}
    return replace(device, layers=layers)


def _changed(shard: DeviceShard, expert: int, change: Callable[[Bits], None]) -> Bits:
    bits = shard.fetch(expert).copy()
    change(bits)
    return bits


def _swap_2_and_5(device: DevicePart) -> DevicePart:
    return _reading(device, lambda shard, e: shard.fetch({2: 5, 5: 2}.get(e, e)))


def _swap_gate_and_up(device: DevicePart) -> DevicePart:
    def swapped(shard: DeviceShard, expert: int) -> Bits:
        bits = shard.fetch(expert)
        half = bits.shape[1] // 2
        order = [*range(half, 2 * half), *range(half)]
        return bits[:, order] if expert == 3 else bits

    return _reading(device, swapped, (Parameter.W13,))


def _halves_not_split(device: DevicePart) -> DevicePart:
    """All gates, then all ups, cut into shards as they stand: no shard has a half of each."""
    tensor = device.layers[1][Parameter.W13]
    count = len(tensor.shards)

    def read(shard: DeviceShard, expert: int) -> Bits:
        whole = tensor.rectangle(expert, Span(0, tensor.shape[1]), Span(0, tensor.shape[2]))
        halves = whole.reshape(len(whole), count, 2, -1).swapaxes(1, 2).reshape(whole.shape)
        return halves[:, shard.index[2].as_slice()]

    return _reading(device, read, (Parameter.W13,))


def _transpose(device: DevicePart) -> DevicePart:
    """Each shard's square corner transposed is another matrix; a whole one needs all shards."""
    tensor = device.layers[1][Parameter.W2]
    whole = tensor.rectangle(4, Span(0, tensor.shape[1]), Span(0, tensor.shape[2]))
    turned = whole.T.reshape(whole.shape)

    def read(shard: DeviceShard, expert: int) -> Bits:
        rows = shard.index[1].as_slice()
        return turned[rows] if expert == 4 else shard.fetch(expert)

    return _reading(device, read, (Parameter.W2,))


def _flip_a_bit(device: DevicePart) -> DevicePart:
    def change(bits: Bits) -> None:
        bits[7, 3] ^= 1

    def read(shard: DeviceShard, expert: int) -> Bits:
        planted = expert == 6 and shard.index[1].start == 0
        return _changed(shard, expert, change) if planted else shard.fetch(expert)

    return _reading(device, read, (Parameter.W2,))


def _lose_the_sign_of_zero(device: DevicePart) -> DevicePart:
    def change(bits: Bits) -> None:
        bits[bits == 0x8000] = 0

    return _reading(device, lambda shard, e: _changed(shard, e, change))


def _zero(device: DevicePart) -> DevicePart:
    def change(bits: Bits) -> None:
        bits[:] = 0

    return _reading(device, lambda s, e: _changed(s, e, change) if e == 7 else s.fetch(e))


def _dirty_padding(device: DevicePart) -> DevicePart:
    def change(bits: Bits) -> None:
        bits[0, -1] = 0x3F80

    return _reading(device, lambda shard, e: _changed(shard, e, change), (Parameter.W13,))


Fault = Callable[[DevicePart], DevicePart]
ON_ANY_LAYOUT: dict[str, Fault] = {
    "none": lambda device: device,
    "sign of zero lost": _lose_the_sign_of_zero,
}
WITH_ALL_EXPERTS_IN_A_SHARD: dict[str, Fault] = ON_ANY_LAYOUT | {
    "experts swapped": _swap_2_and_5,
    "zeroed": _zero,
}
_ON_A_TENSOR_MESH: dict[str, Fault] = WITH_ALL_EXPERTS_IN_A_SHARD | {
    "gate and up swapped": _swap_gate_and_up,
    "halves not split by shard": _halves_not_split,
    "transposed": _transpose,
    "bit flipped": _flip_a_bit,
    "padding": _dirty_padding,
}


def _replicated_by_torch_xla(device: DevicePart) -> DevicePart:
    """Layer 0's w13 put onto the mesh by torch_xla itself, with no axis in its partition spec."""
    import numpy as np
    import torch
    import torch_xla
    import torch_xla.distributed.spmd as xs

    tensor = device.layers[0][Parameter.W13]
    mesh = xs.Mesh(np.arange(4), (4,), ("experts",))
    zeros = torch.zeros(tensor.shape, dtype=torch.bfloat16).to("xla")
    spread = xs.mark_sharding(zeros, mesh, (None, None, None))
    torch_xla.sync()
    layers = {number: dict(tensors) for number, tensors in device.layers.items()}
    layers[0][Parameter.W13] = seen_by_torch_xla(tensor.name, spread)
    return replace(device, layers=layers)


def _replicated_by_jax(device: DevicePart) -> DevicePart:
    """Layer 0's w13 put onto the mesh by JAX itself, with a partition spec that names no axis."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    tensor = device.layers[0][Parameter.W13]
    bits = [tensor.rectangle(e, *(Span(0, n) for n in tensor.shape[1:])) for e in range(8)]
    mesh = Mesh(np.array(jax.devices("cpu")[1:5]), ("model",))
    array = np.stack(bits).view(jax.numpy.bfloat16)
    spread = from_jax(
        tensor.name,
        jax.device_put(array, NamedSharding(mesh, PartitionSpec())),
        in_host_memory=True,
    )
    layers = {number: dict(tensors) for number, tensors in device.layers.items()}
    layers[0][Parameter.W13] = spread
    return replace(device, layers=layers)


def count_devices(*_: object) -> bytes:
    import jax

    return str(jax.device_count("cpu")).encode()


def backends_alive(*_: object) -> bytes:
    """Whether a backend is alive before and after a device is touched."""
    before = any(driver.alive() for driver in targets().values())
    count_devices()
    return msgspec.json.encode([before, driver_named("emulated").alive()])


def written_by_an_import(*_: object) -> bytes:
    """Where torch keeps the module it wrote when it was imported."""
    from torch.distributed.nn.jit import instantiator

    return str(instantiator.INSTANTIATED_TEMPLATE_DIR_PATH).encode()


def load_eight_with_five_alive(*_: object) -> bytes:
    """Ask for a mesh of eight in a process whose XLA was started for one of four."""
    count_devices()
    target = target_named("emulated", 8)
    os.environ.update(target.environment)
    engine.load("/nowhere", None, target, [Part.DECODER])
    return b""


PLANTED: dict[Backend, dict[str, Fault]] = {
    Backend.GMM_TP: _ON_A_TENSOR_MESH | {"replicated by jax": _replicated_by_jax},
    Backend.XLA_TP: WITH_ALL_EXPERTS_IN_A_SHARD
    | {"replicated by torch_xla": _replicated_by_torch_xla},
    Backend.XLA_EP: ON_ANY_LAYOUT | {"replicated by torch_xla": _replicated_by_torch_xla},
}


def record_copies(*_: object) -> bytes:
    """Record copies into a module's parameters past their loaders; what each became."""
    import torch

    model = torch.nn.Module()
    model.experts = torch.nn.Module()
    for name in ("w13_weight", "w2_weight", "w2_bias", "loaded", "filled", "freed"):
        data = torch.zeros(4, 2, dtype=torch.bfloat16)
        setattr(model.experts, name, torch.nn.Parameter(data, requires_grad=False))
    held = model.experts
    held.loaded.weight_loader = lambda p, w: p.data.copy_(w)
    ledger = Ledger()
    recorder = Recorder(model, ledger, Meter())
    recorder.attach()
    ones, elsewhere = torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.bfloat16)
    with recorder.watching():
        recorder.streaming("whole")
        held.w13_weight.copy_(ones)
        elsewhere.copy_(ones)
        recorder.streaming("half")
        held.w2_weight.data[:2].copy_(ones[:2])
        recorder.streaming("item")
        held.w2_bias.data[1] = ones[1]
        recorder.streaming("called")
        held.loaded.weight_loader(held.loaded, ones)
        held.filled.data.fill_(1)
        held.freed.untyped_storage().resize_(0)
        recorder.streaming("too large")
        try:
            held.w2_bias.copy_(torch.ones(3, 3))
        except RuntimeError:
            failed = ledger.failed
        held.w13_weight = torch.nn.Parameter(elsewhere, requires_grad=False)
        recorder.note_processed()
    model.experts.w2_weight.data[2:].copy_(ones[2:])
    recorder.finish()
    facts = {
        "calls": [[c.parameter, c.source, c.operation, c.experts] for c in ledger.calls],
        "sites": sorted({c.site.rsplit("/", 1)[-1].split(":")[0] for c in ledger.calls}),
        "bypassed": ledger.bypassed,
        "half": held.w2_weight.data.view(torch.int16).tolist(),
        "item": held.w2_bias.data.view(torch.int16).tolist(),
        "failed": failed,
    }
    return msgspec.json.encode(facts)


def record_a_module(*_: object) -> bytes:
    """Record loads of a module of our own; what became of each of its parameters."""
    import torch

    def keep(param: Any, loaded_weight: Any, *args: Any, **kwargs: Any) -> str:
        param.data.copy_(loaded_weight)
        return "kept"

    keep.supports_moe_loading = True  # type: ignore[attr-defined]
    model = torch.nn.Module()
    for name in ("written", "partly", "never", "around", "counter"):
        dtype = torch.int32 if name == "counter" else torch.bfloat16
        data = torch.zeros(4, dtype=dtype)
        setattr(model, name, torch.nn.Parameter(data, requires_grad=False))
    model.alias = model.written
    model.written.weight_loader = keep
    model.partly.weight_loader = lambda p, w: p.data[:2].copy_(w)
    ledger = Ledger()
    recorder = Recorder(model, ledger, Meter())
    recorder.attach()
    recorder.streaming("first")
    answer = model.written.weight_loader(model.written, torch.ones(4), "q", expert_id=3)
    recorder.streaming("second")
    model.partly.weight_loader(model.partly, torch.ones(2))
    model.around.data.copy_(torch.ones(4))
    loader, held = model.written.weight_loader, model.written
    model.written = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    loader(param=held, loaded_weight=torch.ones(4))
    try:
        model.partly.weight_loader(model.partly, torch.ones(3))
    except RuntimeError:
        recorder.note_processed()
    failed = ledger.failed
    recorder.finish()
    bits = {n: (p.data.view(torch.int16).tolist()) for n, p in model.named_parameters()
            if p.dtype is torch.bfloat16}  # fmt: skip
    facts = {
        "answer": answer,
        "attribute": loader.supports_moe_loading,
        "calls": [[c.source, list(c.arguments), c.keywords, c.late] for c in ledger.calls],
        "site": ledger.calls[0].site.rsplit("/", 1)[-1].split(":")[0],
        "failed": failed,
        "processed": ledger.processed,
        "unwritten": ledger.unwritten,
        "bypassed": ledger.bypassed,
        "around": model.around.tolist(),
        "partly": bits["partly"],
        "counter": model.counter.tolist(),
    }
    return msgspec.json.encode(facts)
