"""Targets that go through vLLM and tpu-inference, whatever devices JAX has for them.

The load enters at the top of what serves a model: tpu-inference's ``TPUWorker``, made from the
configuration vLLM's ``EngineArgs`` makes, then ``init_device`` and ``load_model`` as the engine
calls them. Those call upstream's own initialisers (``init_distributed_environment``,
``ensure_model_parallel_initialized``, ``init_pp_distributed_environment``), build the mesh, load
the target model and, for MTP, the draft model. Nothing upstream is patched or replaced.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

from packaging.version import Version

from harness.base.bits import Nan
from harness.base.errors import InternalError, TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.devices.jax_arrays import from_jax
from harness.devices.parameter_layout import Packing
from harness.families.family import Part
from harness.load.environment import stack_environment
from harness.load.loaded import Loaded
from harness.load.loader_layers import LoaderLayer, layered
from harness.load.meshes import as_asked
from harness.load.nnx_models import arrays_of, is_own_model
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets.driver import Capability, Driver
from harness.load.vllm_platform import PLATFORM

_WORKER = "TPUWorker.init_device"

#: What an unknown release is taken for.
_NEWEST = "999"


class TpuInference(Driver):
    """Loads through vLLM and tpu-inference; a target of its own says which devices."""

    backends: ClassVar = {
        Parallelism.TENSOR: Backend.GMM_TP,
        Parallelism.EXPERT: Backend.GMM_EP,
        Parallelism.EXPERT_KERNEL: Backend.FUSED_MOE,
    }
    nan = Nan.CANONICAL
    modules: ClassVar[tuple[str, ...]] = (
        "torch",
        "jax",
        "vllm.engine.arg_utils",
        "tpu_inference.models.vllm.vllm_model_wrapper",
        "tpu_inference.worker.tpu_worker",
    )
    lazy: ClassVar = (
        "ray",
        "vllm.v1.executor.multiproc_executor",
        "tpu_inference.core.sched.dp_scheduler",
        *(
            f"vllm.model_executor.layers.quantization.{name}"
            for name in ("bitsandbytes", "experts_int8", "fbgemm_fp8", "fp_quant", "humming",
                         "moe_wna16", "online.fp8", "online.nvfp4", "quark.quark")
        ),
        "jax.experimental.multihost_utils",
        "torchax.ops.jtorchvision_nms",
    )  # fmt: skip

    def environment(self, devices: int, parallelism: Parallelism) -> dict[str, str]:
        """What every load through tpu-inference needs."""
        return stack_environment() | {
            "USE_MOE_EP_KERNEL": "1" if parallelism is Parallelism.EXPERT_KERNEL else "0",
        }

    def meshed(self, target: Target, mesh: str) -> Target:
        """With the arguments and the strategy that ask tpu-inference for the mesh."""
        return as_asked(target, mesh)

    def packing(self, versions: Mapping[str, str]) -> Packing:
        """What the release under test does to parameters.

        Up to 0.21 tpu-inference keeps linear weights as [outputs, inputs]
        (``layers/vllm/quantization/configs.py``: ``P(ATTN_HEAD, None)`` for columns) and repeats
        no k and v heads (there is no ``_tile_kv``). Which linear layers it is given to process is
        for vLLM to say.
        """
        vllm = Version(versions["vllm"]).release if "vllm" in versions else Packing().vllm
        if Version(versions.get("tpu-inference", _NEWEST)).release < (0, 22):
            return Packing(transposes=False, repeats=False, vllm=vllm)
        return Packing(vllm=vllm)

    def load(
        self,
        checkpoint: str,
        target: Target,
        parts: Collection[Part],
        *,
        overrides: Mapping[str, Any],
        layers: Sequence[LoaderLayer],
    ) -> Loaded:
        """Stream ``checkpoint`` onto ``target`` and return what arrived.

        A draft model together with its target is loaded by the worker itself; alone, or on
        releases whose worker knows no MTP, by the function the worker's drafter calls.

        Raises:
            TargetUnavailable: XLA is alive in this process, with another number of devices, or
                upstream made another mesh than the target's.
            Exception: whatever the stack under test raises, unchanged.
        """
        devices = self.ready(target)
        choose(target.impl)
        started = time.perf_counter()
        _register_loader(layers)
        by_worker = set(parts) == set(Part) and worker_drafts_mtp()
        indexes = target.device_indexes if devices is None else [d.id for d in devices]
        config = partial(_config, checkpoint, target, indexes, overrides)
        whole = config(draft=by_worker)
        if by_worker:
            choose_alike(whole)
        worker = self._ready_worker(whole, target, devices, indexes)
        ready = time.perf_counter()
        entry, states = self._states(worker, parts, by_worker, config)
        ended = time.perf_counter()
        with InternalError.instead():  # the stack has done its part
            return self._loaded(worker, target, entry, states, (started, ready, ended))

    def alive(self) -> bool:
        """Whether JAX has touched a device here; it has not where it is not imported."""
        if "jax" not in sys.modules:
            return False
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())

    def _ready_worker(
        self, config: Any, target: Target, devices: Sequence[Any] | None, indexes: Sequence[int]
    ) -> Any:
        """A worker with its devices and mesh, about to load."""
        worker = _worker(config, target, devices)
        self.with_memory_logged(worker.init_device)
        require_mesh(worker, target, indexes if self.can(Capability.FIXED_ORDER) else ())
        if target.hosts > 1:
            _load_as_one_of_several()
        return worker

    def _states(
        self, worker: Any, parts: Collection[Part], by_worker: bool, config: Callable[..., Any]
    ) -> tuple[list[str], dict[Part, Mapping[str, Any]]]:
        """Load ``parts``; where the loads entered, and each part's arrays by their names."""
        states: dict[Part, Mapping[str, Any]] = {}
        entry = [_WORKER]
        if Part.DECODER in parts:
            self.with_memory_logged(worker.load_model)
            states[Part.DECODER] = worker.model_runner.state
            entry.append("TPUWorker.load_model")
        if by_worker:
            states[Part.MTP] = worker.model_runner.drafter.state
        elif Part.MTP in parts:
            states[Part.MTP] = _draft_alone(worker, config(draft=True))
            entry.append("models.common.model_loader.get_model(is_draft_model=True)")
        return entry, states

    def _loaded(
        self,
        worker: Any,
        target: Target,
        entry: list[str],
        states: dict[Part, Mapping[str, Any]],
        times: tuple[float, float, float],
    ) -> Loaded:
        """What arrived; ``times`` are of the start, of the worker being ready, and of the end."""
        mesh = worker.model_runner.mesh
        devices = list(mesh.devices.flat)
        own = frozenset(_name(d) for d in devices if d.process_index == target.host)
        return Loaded(
            tensors={
                part: [
                    from_jax(name, array, in_host_memory=not self.can(Capability.OWN_MEMORY))
                    for name, array in (arrays_of(state) if is_own_model(state) else state.items())
                ]
                for part, state in states.items()
            },
            implementations={
                part: Implementation.JAX if is_own_model(state) else Implementation.VLLM
                for part, state in states.items()
            },
            mesh=tuple(map(_name, devices)),
            local=own if target.hosts > 1 else None,
            entry=", ".join(entry),
            setup_seconds=times[1] - times[0],
            load_seconds=times[2] - times[1],
            axes=tuple((str(n), int(s)) for n, s in mesh.shape.items()),
        )

    def with_memory_logged(self, step: Callable[[], None]) -> None:
        """Run a step of the worker whose last statement logs the devices' memory.

        ``TPUWorker.init_device`` and ``TPUModelRunner.load_model`` end by logging
        ``hbm_usage_gb(devices)`` (tpu-inference ``utils.py``). Where devices have no memory
        statistics, up to 0.26 their None is subscripted, from 0.32 on a TPU is insisted on.
        There, an error out of that function, raised after the step's work is done, is let pass.
        """
        try:
            step()
        except (TypeError, RuntimeError) as error:
            inside = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
            if self.can(Capability.MEMORY_STATISTICS) or "hbm_usage_gb" not in inside:
                raise


#: No compilation for CPUs with native bf16 conversion: that instruction (``VCVTNEPS2BF16``) takes
#: subnormals for zero, and XLA uses it to move weights: ``jnp.pad`` of bf16 on JAX's CPU client
#: loses them where it is not part of a larger program (jax 0.11.2, AVX512_BF16). Neither a TPU's
#: nor a GPU's copies do.
KEEPING_SUBNORMALS = "--xla_cpu_max_isa=AVX512"


def xla_flags(*flags: str) -> str:
    """The user's flags of XLA, with ``flags`` instead of theirs of the same names."""
    ours = {flag.split("=")[0] for flag in flags}
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join([*(f for f in given if f.split("=")[0] not in ours), *flags])


def under_a_tpus_name(name: str, devices: int) -> dict[str, str]:
    """What vLLM and tpu-inference need to be told where JAX has devices that are no TPU."""
    return {
        PLATFORM: "tpu_inference.platforms.tpu_platform.TpuPlatform",
        # Named, so that tpu_inference does not ask a metadata server at import.
        "TPU_ACCELERATOR_TYPE": f"v6e-{devices}",
        "TPU_NAME": name,
        "TPU_WORKER_ID": "0",
    }


_DRAFT = "DRAFT_MODEL_IMPL_TYPE"
#: What tpu-inference calls each implementation (``envs.py``, 0.21 to 0.32).
_IMPLEMENTATIONS = {
    Implementation.AUTO: "auto",
    Implementation.VLLM: "vllm",
    Implementation.JAX: "flax_nnx",
}


def choose(impl: Implementation) -> None:
    """Ask for an implementation, for target and draft alike: tpu-inference refuses a mix.

    It reads its variables when it needs them, so one process serves loads of each.
    """
    os.environ["MODEL_IMPL_TYPE"] = _IMPLEMENTATIONS[impl]
    if impl is not Implementation.AUTO:
        os.environ[_DRAFT] = _IMPLEMENTATIONS[impl]


def choose_alike(config: Any) -> None:
    """Have a draft model served as tpu-inference chooses for its decoder.

    Left to choose for each it may take two, and refuses them (``spec_decode/jax/eagle3.py``); so
    it is where the environment says something of the draft.
    """
    if _DRAFT not in os.environ:
        from tpu_inference.models.common.model_loader import resolve_model_architecture

        os.environ[_DRAFT] = resolve_model_architecture(config, False)


def _register_loader(layers: Sequence[LoaderLayer]) -> None:
    """Register tpu-inference's loader inside ``layers``."""
    from tpu_inference.models.vllm.vllm_model_loader import RunaiIncrementalModelLoader
    from vllm.model_executor.model_loader import register_model_loader

    register_model_loader("runai_streamer")(layered(RunaiIncrementalModelLoader, layers))


def _config(
    checkpoint: str,
    target: Target,
    indexes: Sequence[int],
    overrides: Mapping[str, Any],
    *,
    draft: bool,
) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    strategy: dict[str, Any] = dict(target.strategy)
    if indexes:
        strategy["device_indexes"] = list(indexes)
    return EngineArgs(
        model=checkpoint,
        load_format="runai_streamer",
        **({"tensor_parallel_size": target.devices} | target.engine),
        enable_expert_parallel=target.parallelism is not Parallelism.TENSOR,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1} if draft else None,
        hf_overrides=dict(overrides),
        additional_config={"sharding": {"sharding_strategy": strategy}},
        skip_tokenizer_init=True,  # no token is ever generated: what only serving needs is small
        enforce_eager=True,
        disable_chunked_mm_input=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
    ).create_engine_config()


def _worker(config: Any, target: Target, devices: Sequence[Any] | None) -> Any:
    """The worker; with ``devices``, where it is not to look for them itself.

    Each host has rank 0 where there are no pipeline stages, as ``RayDistributedExecutor`` has it.
    """
    from tpu_inference.worker.tpu_worker import TPUWorker

    return TPUWorker(
        config,
        local_rank=0,
        rank=0,
        distributed_init_method="",
        is_driver_worker=target.host == 0,
        devices=devices,
    )


def _load_as_one_of_several() -> None:
    """Load as a Ray worker does: each process places the shards it can address.

    tpu-inference asks this variable when it moves weights (``layers/common/utils.py``,
    ``general_device_put``). Not before: a worker made with it looks up a TPU's coordinates.
    """
    os.environ["TPU_MULTIHOST_BACKEND"] = "ray"


def _name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def worker_drafts_mtp() -> bool:
    """Whether the worker's runner takes method ``mtp``: from 0.22 on.

    0.21 raises NotImplementedError for all but ``ngram`` and ``eagle3`` (tpu-inference
    ``runner/tpu_runner.py``, ``_init_speculative_decoding``).
    """
    return Version(version("tpu-inference")).release >= (0, 22)


def _draft_alone(worker: Any, config: Any) -> Mapping[str, Any]:
    """Load the draft model onto the worker's mesh, as ``Eagle3Proposer.load_model`` does."""
    from tpu_inference.models.common.model_loader import get_model
    from vllm.config import set_current_vllm_config

    runner = worker.model_runner
    with set_current_vllm_config(config):
        model = get_model(config, runner.rng_key, runner.mesh, is_draft_model=True)
    state: Mapping[str, Any] = model.state
    return state


def require_mesh(worker: Any, target: Target, indexes: Sequence[int]) -> None:
    """Upstream's mesh is of the target's devices; in the order of ``indexes``, if there are any.

    Without device indexes upstream orders a TPU's devices by how they are wired: four of a v6e as
    0, 1, 3, 2 (tpu-inference ``utils.py``, ``make_optimized_mesh``). The comparison follows it.
    """
    found = [(d.platform, d.id) for d in worker.model_runner.mesh.devices.flat]
    asked = [(target.platform, index) for index in indexes]
    platforms = [platform for platform, _ in found]
    fits = platforms == [target.platform] * target.devices and len(set(found)) == len(found)
    if fits and asked in ([], found):
        return
    if target.mesh:  # its axes were asked of upstream, which took the options: the stack's failure
        raise RuntimeError(f"the worker's mesh is {found}, not {target.mesh}")
    raise TargetUnavailable(
        f"the worker's mesh is {found}",
        where=f"--target {target.name}",
        expected=str(asked) if asked else f"{target.devices} different {target.platform} devices",
        hint="another --devices or --mesh; this release may order devices in another way",
    )
