"""The torch-xla target: vLLM's own streamer loader and torch_xla.

vLLM has no torch_xla platform any more. Its loader streams the checkpoint into the model's
parameters on the host, by the load format under test; each parameter then goes to the XLA
devices, an expert's whole or cut by SPMD, all others to every device, and is read back from there.
vLLM's processing after a load, which repacks weights for a kernel, is no part of this way and is
not run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from packaging.version import Version

from harness.base.bits import FROM_ARRAY_NAME, Bits, Nan, bits_dtype
from harness.base.errors import TargetUnavailable
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.jax_arrays import spans
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.family import Part
from harness.load.environment import stack_environment
from harness.load.loaded import Loaded
from harness.load.loader_layers import LoaderLayer, layered
from harness.load.target import Parallelism, Share, Target
from harness.load.targets.driver import Capability, Driver
from harness.load.targets.tpu import find_tpu
from harness.load.vllm_platform import PLATFORM

_HOST_PLATFORM = "harness.load.host_platform.HostPlatform"
#: torch_xla traces what is asked of all its tensors into one graph a process.
_ONE_GRAPH = threading.Lock()

#: The axis of [E, rows, columns] each expert parameter is cut along; all others are not cut.
_CUT = {
    Backend.XLA_TP: {Parameter.W13.value: 1, Parameter.W2.value: 2},
    Backend.XLA_EP: {Parameter.W13.value: 0, Parameter.W2.value: 0},
}


class TorchXla(Driver):
    """N XLA devices through torch_xla: the TPU where PJRT_DEVICE=TPU says so, else the CPU.

    One device holds whole tensors; several share them by SPMD, which cuts experts along their
    intermediate axis, or the expert axis.
    """

    name = "torch-xla"
    platform = "xla"  # as torch_xla names its devices
    capabilities = frozenset({Capability.OWN_MEMORY})
    backends: ClassVar = {Parallelism.TENSOR: Backend.XLA_TP, Parallelism.EXPERT: Backend.XLA_EP}
    nan = Nan.PAYLOAD
    modules = ("torch", "vllm.engine.arg_utils", "vllm.model_executor.model_loader")

    def target(self, devices: int | None, parallelism: Parallelism, share: Share) -> Target:
        """What is asked for; on a TPU, with all chips of the host."""
        devices = self.devices_of_one_host(devices)
        _require_torch_xla()
        asked = super().target(devices, parallelism, share)
        return replace(asked, chips=find_tpu().chips) if _on_tpu() else asked

    def environment(self, devices: int, parallelism: Parallelism) -> dict[str, str]:
        """vLLM on the host; CPU devices, where there is no TPU."""
        return (
            stack_environment()
            | {PLATFORM: _HOST_PLATFORM, "VLLM_PLUGINS": "harness"}
            | ({} if _on_tpu() else {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices)})
        )

    def load(
        self,
        checkpoint: str,
        target: Target,
        parts: Collection[Part],
        *,
        overrides: Mapping[str, Any],
        layers: Sequence[LoaderLayer],
    ) -> Loaded:
        """Stream ``checkpoint`` to the host, carry it to ``target``, return what arrived.

        Raises:
            TargetUnavailable: torch_xla has another number of devices.
            Exception: whatever the stack under test raises, unchanged.
        """
        started = time.perf_counter()
        _register_loader(layers)
        place = _placer(target)
        _initialise_distributed(checkpoint, overrides)
        ready = time.perf_counter()
        tensors = {part: list(_part(checkpoint, part, overrides, place)) for part in parts}
        return Loaded(
            tensors=tensors,
            mesh=tuple(f"xla:{index}" for index in range(target.devices)),
            entry="model_loader.get_model_loader, initialize_model, RunaiModelStreamerLoader"
            ".load_weights; torch_xla",
            setup_seconds=ready - started,
            load_seconds=time.perf_counter() - ready,
        )

    def alive(self) -> bool:
        """Whether torch_xla has touched a device in this process, as far as it can tell."""
        if "torch_xla" not in sys.modules:
            return False
        import torch_xla

        tell = getattr(torch_xla._XLAC, "_xla_runtime_is_initialized", None)
        return bool(tell and tell())


TARGET = TorchXla()


def _on_tpu() -> bool:
    return os.environ.get("PJRT_DEVICE") == "TPU"


def _require_torch_xla() -> None:
    try:
        xla, torch = version("torch-xla"), version("torch")
    except PackageNotFoundError as error:
        raise TargetUnavailable(
            f"{error.name} is not installed",
            where="--target torch-xla",
            expected="torch_xla 2.9.0 with torch 2.9",
            hint="a stack with torch 2.9, such as STACK=0.26",
        ) from error
    if Version(xla).release[:2] != Version(torch).release[:2]:
        raise TargetUnavailable(
            f"torch_xla {xla} does not fit torch {torch}",
            where="--target torch-xla",
            expected="the same minor release of both",
            hint="a stack with torch 2.9, such as STACK=0.26",
        )


def _register_loader(layers: Sequence[LoaderLayer]) -> None:
    """Register vLLM's own loader inside ``layers``."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.runai_streamer_loader import RunaiModelStreamerLoader

    register_model_loader("runai_streamer")(layered(RunaiModelStreamerLoader, layers))


def _initialise_distributed(checkpoint: str, overrides: Mapping[str, Any]) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    with set_current_vllm_config(_config(checkpoint, Part.DECODER, overrides)):
        rendezvous = f"file://{tempfile.mkstemp()[1]}"
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)


def _part(
    checkpoint: str, part: Part, overrides: Mapping[str, Any], place: Any
) -> Iterator[DeviceTensor]:
    """Load one part on the host and yield its parameters from the devices."""
    for name, parameter in _model(checkpoint, part, overrides).named_parameters():
        yield place(name, parameter)


def _model(checkpoint: str, part: Part, overrides: Mapping[str, Any]) -> Any:
    """What ``BaseModelLoader.load_model`` does, up to the processing after the load."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = _config(checkpoint, part, overrides)
    draft = part is Part.MTP
    model_config = config.speculative_config.draft_model_config if draft else config.model_config
    loader = get_model_loader(config.load_config)
    with set_current_vllm_config(config):
        with set_default_torch_dtype(model_config.dtype), torch.device("cpu"):
            model = initialize_model(vllm_config=config, model_config=model_config)
        loader.load_weights(model, model_config)
    return model


def _config(checkpoint: str, part: Part, overrides: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    draft = {"method": "mtp", "num_speculative_tokens": 1}
    return EngineArgs(
        model=checkpoint,
        load_format="runai_streamer",
        speculative_config=draft if part is Part.MTP else None,
        hf_overrides=dict(overrides),
        skip_tokenizer_init=True,
        enforce_eager=True,
        disable_chunked_mm_input=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
    ).create_engine_config()


def _placer(target: Target) -> Any:
    """A function that carries a named parameter to the devices.

    Raises:
        TargetUnavailable: torch_xla has another number of devices than the target.
    """
    import torch_xla.runtime as xr

    found = xr.global_runtime_device_count()
    if found < target.devices or (found != target.devices and target.devices > 1):
        raise TargetUnavailable(
            f"torch_xla has {found} devices",
            where=f"--target torch-xla, PJRT_DEVICE={xr.device_type()}",
            expected=str(target.devices),
            hint=f"--devices {found}, or --devices 1",
        )
    if target.devices == 1:
        return lambda name, parameter: seen_by_torch_xla(name, parameter.data.to("xla:0"), "xla:0")
    return _spmd_placer(target)


def _spmd_placer(target: Target) -> Any:
    import numpy as np
    import torch_xla
    import torch_xla.distributed.spmd as xs
    import torch_xla.runtime as xr

    xr.use_spmd()
    mesh = xs.Mesh(np.arange(target.devices), (target.devices,), ("experts",))

    def place(name: str, parameter: Any) -> DeviceTensor:
        cut = _CUT[target.backend].get(name.rsplit(".", 1)[-1])
        if cut is not None and parameter.shape[cut] % target.devices:
            raise ValueError(f"{target.devices} devices do not divide axis {cut} of {name}")
        spec = tuple("experts" if axis == cut else None for axis in range(parameter.dim()))
        sharded = xs.mark_sharding(parameter.data.to("xla"), mesh, spec)
        torch_xla.sync()
        return seen_by_torch_xla(name, sharded)

    return place


def seen_by_torch_xla(name: str, tensor: Any, device: str = "") -> DeviceTensor:
    """See a tensor on one XLA device, or an ``XLAShardedTensor``, as a :class:`DeviceTensor`.

    The latter's shards know their place (torch_xla 2.9.0, ``distributed/spmd/
    xla_sharded_tensor.py``); shards are read one by one, which keeps every bit.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    dtype = FROM_ARRAY_NAME.get(dtype, dtype)
    shape = tuple(tensor.shape)
    if not hasattr(tensor, "local_shards"):
        whole = DeviceShard(device, spans((), shape), _reader(tensor, dtype), in_host_memory=False)
        return DeviceTensor(name, dtype, shape, (whole,))
    shards = tuple(
        DeviceShard(
            f"xla:{shard.shard_device.rpartition(':')[2]}",
            spans(() if shard.indices is Ellipsis else shard.indices, shape),
            _reader(shard.data, dtype),
            in_host_memory=False,
        )
        for shard in tensor.local_shards
    )
    return DeviceTensor(name, dtype, shape, shards)


def _reader(tensor: Any, dtype: str) -> Any:
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

    def fetch(index: Any) -> Bits:
        with _ONE_GRAPH:
            part = tensor[index].cpu().contiguous()
        bits: Bits = part.view(integers[part.element_size()]).numpy().view(bits_dtype(dtype))
        return bits

    return fetch
