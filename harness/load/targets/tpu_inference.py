"""Targets that go through vLLM and tpu-inference, whatever devices JAX has for them.

The load enters where the engine does: ``Executor.get_class(config)(config)``, with the
configuration vLLM's ``EngineArgs`` makes. The executor makes tpu-inference's ``TPUWorker``, which
initialises the devices, builds the mesh, loads the target model and, for MTP, the draft model. What
the harness does beside the weights it does in the worker: :mod:`harness.load.inside` has the layers
around the loader, :mod:`harness.load.extension` what is called there afterwards. Nothing upstream
is patched or replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

from packaging.version import Version

from harness.base.bits import Nan
from harness.base.errors import TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.devices.parameter_layout import Packing
from harness.families.family import Part
from harness.load.environment import stack_environment
from harness.load.inside import LoadSession, alone, as_one_of_several, entered
from harness.load.loaded import Loaded
from harness.load.loader_layers import LoaderLayer
from harness.load.meshes import as_asked
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets.driver import Capability, Driver
from harness.load.vllm_platform import PLATFORM

#: What is called in the worker.
EXTENSION = "harness.load.extension.Extension"

#: What an unknown release is taken for.
_NEWEST = "999"


class TpuInference(Driver):
    """Loads through vLLM and tpu-inference; a target of its own says which devices.

    Attributes:
        worker: class of the worker, by its name; empty for upstream's, as it is.
    """

    worker: ClassVar[str] = ""
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
        "vllm.v1.executor.uniproc_executor",
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
        session = LoadSession(target, layers, self.ready(target))
        choose(target.impl)
        by_worker = set(parts) == set(Part) and worker_drafts_mtp()
        config = partial(self.config, checkpoint, target, session.devices, overrides)
        with entered(session):
            whole = config(draft=by_worker)
            if by_worker:
                choose_alike(whole)
            made = self.configured(whole, target)
            try:
                engine = (_executor if Part.DECODER in parts else _worker_alone)(made)
            except Exception:
                self.require_mesh(session)  # raised in the worker, it would seem to be upstream's
                raise
            entry = [engine.entry]
            if Part.MTP in parts and not by_worker:
                engine.call("harness_load_draft", config(draft=True))
                entry.append("models.common.model_loader.get_model(is_draft_model=True)")
            session.mesh = engine.call("harness_mesh")
            self.require_mesh(session)
            loaded: Loaded = engine.call("harness_loaded", tuple(parts), ", ".join(entry))
        return loaded

    def require_mesh(self, session: LoadSession) -> None:
        """Upstream's mesh, where it is known, is the target's: see :func:`require_mesh`.

        Raises:
            TargetUnavailable: it is not.
            RuntimeError: it is not one of several axes that upstream was asked for.
        """
        if session.mesh is None:
            return
        target, devices = session.target, session.devices
        indexes = target.device_indexes if devices is None else [d.id for d in devices]
        require_mesh(session.mesh, target, indexes if self.can(Capability.FIXED_ORDER) else ())

    def configured(self, config: Any, target: Target) -> Any:
        """``config`` with the worker of these devices; this process is one of several from now on.

        The platform names upstream's worker whatever ``EngineArgs`` is told (tpu-inference
        ``platforms/tpu_platform.py``, ``check_and_update_config``), so it is named afterwards.
        """
        if self.worker:
            config.parallel_config.worker_cls = self.worker
        if target.hosts > 1:
            as_one_of_several()
        return config

    def config(
        self,
        checkpoint: str,
        target: Target,
        devices: Sequence[Any] | None,
        overrides: Mapping[str, Any],
        *,
        draft: bool,
    ) -> Any:
        """The engine's configuration, of one process.

        Args:
            checkpoint: the model path.
            target: the mesh.
            devices: it is made of, where upstream is not to look for them.
            overrides: of the model's configuration.
            draft: whether a draft model is loaded, too.
        """
        indexes = target.device_indexes if devices is None else [d.id for d in devices]
        with nullcontext() if target.on else alone():
            return _config(checkpoint, target, indexes, overrides, draft=draft)

    def alive(self) -> bool:
        """Whether JAX has touched a device here; it has not where it is not imported."""
        if "jax" not in sys.modules:
            return False
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())


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
#: The variables that say which implementation serves the model, and its draft.
CHOICES = ("MODEL_IMPL_TYPE", _DRAFT)
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
    os.environ[CHOICES[0]] = _IMPLEMENTATIONS[impl]
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
        worker_extension_cls=EXTENSION,
    ).create_engine_config()


class _Engine(NamedTuple):
    """Where a load entered, and how a method of the worker's extension is called."""

    entry: str
    call: Callable[..., Any]


def executor_of(config: Any) -> tuple[str, Any]:
    """The executor that the engine would make, which loads as it is made, and its class's name."""
    from vllm.v1.executor.abstract import Executor

    kind = Executor.get_class(config)
    return f"{kind.__module__}.{kind.__qualname__}", kind(config)


def _executor(config: Any) -> _Engine:
    """One whose worker is in this process."""
    entry, executor = executor_of(config)

    def call(method: str, *args: Any) -> Any:
        (result,) = executor.collective_rpc(method, args=args)
        return result

    return _Engine(entry, call)


def _worker_alone(config: Any) -> _Engine:
    """The worker as vLLM's ``UniProcExecutor`` makes it, which loads no decoder here."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    wrapper = WorkerWrapperBase(rpc_rank=0)
    wrapper.init_worker(
        all_kwargs=[
            {
                "vllm_config": config, "local_rank": 0, "rank": 0, "distributed_init_method": "",
                "is_driver_worker": True,
            }
        ]
    )  # fmt: skip
    wrapper.init_device()
    return _Engine(
        "WorkerWrapperBase.init_device",
        lambda method, *args: getattr(wrapper.worker, method)(*args),
    )


def worker_drafts_mtp() -> bool:
    """Whether the worker's runner takes method ``mtp``: from 0.22 on.

    0.21 raises NotImplementedError for all but ``ngram`` and ``eagle3`` (tpu-inference
    ``runner/tpu_runner.py``, ``_init_speculative_decoding``).
    """
    return Version(version("tpu-inference")).release >= (0, 22)


def require_mesh(found: Sequence[tuple[str, int]], target: Target, indexes: Sequence[int]) -> None:
    """Upstream's mesh is of the target's devices; in the order of ``indexes``, if there are any.

    It is looked at when the executor is there, which has loaded by then.

    Without device indexes upstream orders a TPU's devices by how they are wired: four of a v6e as
    0, 1, 3, 2 (tpu-inference ``utils.py``, ``make_optimized_mesh``). The comparison follows it.
    """
    found = list(found)
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
