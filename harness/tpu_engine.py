"""Loads through vLLM and tpu-inference: the emulated and the TPU target.

The load enters at the top of what serves a model: tpu-inference's ``TPUWorker``, made from the
configuration vLLM's ``EngineArgs`` makes, then ``init_device`` and ``load_model`` as the engine
calls them. Those call upstream's own initialisers (``init_distributed_environment``,
``ensure_model_parallel_initialized``, ``init_pp_distributed_environment``), build the mesh, load
the target model and, for MTP, the draft model. Nothing upstream is patched or replaced.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any

from harness.arrays import from_jax
from harness.cut import cut, overrides
from harness.emulated_slice import join
from harness.errors import TargetUnavailable
from harness.family import Part
from harness.hook import Hook, hooked_loader
from harness.loaded import Adapt, Ledgers, Loaded
from harness.recording import recording
from harness.target import Parallelism, Target

_WORKER = "TPUWorker.init_device"


#: Imported before the first fork; none of them touches a device.
MODULES = (
    "torch",
    "jax",
    "vllm.engine.arg_utils",
    "tpu_inference.models.vllm.vllm_model_wrapper",
    "tpu_inference.worker.tpu_worker",
)


def load(
    checkpoint: str,
    target: Target,
    parts: Collection[Part],
    *,
    hook: Hook = Hook.UPSTREAM,
    num_layers: int | None = None,
    ledgers: Ledgers,
    adapt: Adapt,
) -> Loaded:
    """Stream ``checkpoint`` onto ``target`` and return what arrived.

    Args:
        checkpoint: the model path vLLM is given.
        target: the mesh; this process must have been started with its environment.
        parts: what to load: the target model, the draft model, or both. A draft model together
            with its target is loaded by the worker itself; alone, or on releases whose worker
            knows no MTP, by the function the worker's drafter calls.
        hook: the loader hook; all but ``upstream`` replace tpu-inference's for this process.
        num_layers: build the decoder with its first layers only; all of it is streamed anyway.
        ledgers: receives each part's loader calls, also those before an error.
        adapt: changes the loader class under test, for tests that plant faults in it.

    Raises:
        TargetUnavailable: XLA is alive in this process, with another number of devices.
        Exception: whatever the stack under test raises, unchanged.
    """
    if target.hosts > 1 and target.platform == "cpu":
        join(target)
    _require_devices(target)
    started = time.perf_counter()
    _register_loader(hook, num_layers, ledgers, adapt)
    by_worker = set(parts) == set(Part) and _worker_drafts_mtp()
    worker = _worker(_config(checkpoint, target, num_layers, draft=by_worker), target)
    _let_memory_log_fail(worker.init_device, target)
    _require_mesh(worker, target)
    if target.hosts > 1:
        _load_as_one_of_several()
    ready = time.perf_counter()
    states: dict[Part, Mapping[str, Any]] = {}
    entry = [_WORKER]
    if Part.DECODER in parts:
        _let_memory_log_fail(worker.load_model, target)
        states[Part.DECODER] = worker.model_runner.state
        entry.append("TPUWorker.load_model")
    if by_worker:
        states[Part.MTP] = worker.model_runner.drafter.state
    elif Part.MTP in parts:
        states[Part.MTP] = _draft_alone(worker, _config(checkpoint, target, num_layers, draft=True))
        entry.append("models.common.model_loader.get_model(is_draft_model=True)")
    devices = list(worker.model_runner.mesh.devices.flat)
    return Loaded(
        tensors={
            part: [from_jax(name, array) for name, array in state.items()]
            for part, state in states.items()
        },
        mesh=tuple(map(_name, devices)),
        local=frozenset(_name(d) for d in devices if d.process_index == target.host)
        if target.hosts > 1
        else None,
        entry=", ".join(entry),
        setup_seconds=ready - started,
        load_seconds=time.perf_counter() - ready,
        axes=tuple((str(n), int(s)) for n, s in worker.model_runner.mesh.shape.items()),
    )


def _register_loader(hook: Hook, num_layers: int | None, ledgers: Ledgers, adapt: Adapt) -> None:
    """Register a recording subclass of tpu-inference's loader, or of the one with our hook."""
    from tpu_inference.models.vllm.vllm_model_loader import RunaiIncrementalModelLoader
    from vllm.model_executor.model_loader import register_model_loader

    base = RunaiIncrementalModelLoader if hook is Hook.UPSTREAM else hooked_loader(hook)
    register_model_loader("runai_streamer")(recording(adapt(cut(base, num_layers)), ledgers))


def _config(checkpoint: str, target: Target, num_layers: int | None, *, draft: bool) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    strategy: dict[str, Any] = dict(target.strategy)
    if indexes := _device_indexes(target):
        strategy["device_indexes"] = indexes
    return EngineArgs(
        model=checkpoint,
        load_format="runai_streamer",
        **({"tensor_parallel_size": target.devices} | target.engine),
        enable_expert_parallel=target.parallelism is not Parallelism.TENSOR,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1} if draft else None,
        hf_overrides=overrides(num_layers),
        additional_config={"sharding": {"sharding_strategy": strategy}},
        # No token is ever generated: keep what only serving needs small.
        skip_tokenizer_init=True,
        enforce_eager=True,
        disable_chunked_mm_input=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
    ).create_engine_config()


def _device_indexes(target: Target) -> list[int]:
    """The ids that fix the order of CPU devices in the mesh; a TPU's follows from coordinates."""
    if target.platform == "cpu" and target.hosts > 1:
        import jax

        return [device.id for device in jax.devices()]
    return list(target.device_indexes)


def _worker(config: Any, target: Target) -> Any:
    """The worker; on an emulated slice with its devices, which else are looked for on one host.

    Each of several hosts has rank 0 where there are no pipeline stages, as
    ``RayDistributedExecutor`` has it.
    """
    from tpu_inference.worker.tpu_worker import TPUWorker

    devices = None
    if target.platform == "cpu" and target.hosts > 1:
        import jax

        devices = jax.devices()
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
    ``general_device_put``). It is set here and not before, since the worker made with it looks up
    a TPU's coordinates, which CPU devices have not.
    """
    os.environ["TPU_MULTIHOST_BACKEND"] = "ray"


def _name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def _worker_drafts_mtp() -> bool:
    """Whether the worker's runner takes method ``mtp``: from 0.22 on.

    0.21 raises NotImplementedError for all but ``ngram`` and ``eagle3`` (tpu-inference
    ``runner/tpu_runner.py``, ``_init_speculative_decoding``).
    """
    from importlib.metadata import version

    release = version("tpu-inference").split(".")
    return tuple(map(int, release[:2])) >= (0, 22)


def _draft_alone(worker: Any, config: Any) -> Mapping[str, Any]:
    """Load the draft model onto the worker's mesh, as ``Eagle3Proposer.load_model`` does."""
    from tpu_inference.models.common.model_loader import get_model
    from vllm.config import set_current_vllm_config

    runner = worker.model_runner
    with set_current_vllm_config(config):
        model = get_model(config, runner.rng_key, runner.mesh, is_draft_model=True)
    state: Mapping[str, Any] = model.state
    return state


def _let_memory_log_fail(step: Callable[[], None], target: Target) -> None:
    """Run a step of the worker whose last statement logs the devices' memory.

    ``TPUWorker.init_device`` and ``TPUModelRunner.load_model`` end by logging
    ``hbm_usage_gb(devices)`` (tpu-inference ``utils.py``). CPU devices have no memory statistics:
    up to 0.26 their None is subscripted, from 0.32 on a TPU is insisted on. On CPU devices, an
    error out of that function, raised after the step's work is done, is let pass.
    """
    try:
        step()
    except (TypeError, RuntimeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        logging_memory = any(frame.name == "hbm_usage_gb" for frame in frames)
        if target.platform != "cpu" or not logging_memory:
            raise


def _require_devices(target: Target) -> None:
    """The count of CPU devices is fixed once XLA is alive; a process with another is of no use."""
    import jax

    if target.platform != "cpu":
        return
    found = len(jax.devices())
    wanted = target.devices if target.hosts > 1 else max(target.device_indexes) + 1
    if found != wanted:
        raise TargetUnavailable(
            f"XLA is alive with {found} CPU devices",
            where="this process",
            expected=f"{wanted}, with {target.devices} of the mesh",
            hint="load in a process of its own, which the target's environment starts",
        )


def _require_mesh(worker: Any, target: Target) -> None:
    found = [(d.platform, d.id) for d in worker.model_runner.mesh.devices.flat]
    wanted = [(target.platform, i) for i in target.device_indexes or sorted(i for _, i in found)]
    if len(found) != target.devices or found != wanted:
        raise RuntimeError(f"the worker's mesh is {found}, the target's is {wanted}")
