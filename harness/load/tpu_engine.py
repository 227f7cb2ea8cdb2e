"""Loads through vLLM and tpu-inference: the emulated and the TPU target.

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
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from harness.base.errors import InternalError, TargetUnavailable
from harness.devices.jax_arrays import from_jax
from harness.families.family import Family, Part
from harness.load.cut import cut
from harness.load.emulated_slice import join
from harness.load.hook import Hook, hooked_loader
from harness.load.loaded import Adapt, Ledgers, Loaded
from harness.load.recording import recording
from harness.load.target import Parallelism, Target

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
    family: Family | None,
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
        family: the checkpoint's; None where nobody described it, so that nothing can be cut.
        target: the mesh; this process must have been started with its environment.
        parts: what to load: the target model, the draft model, or both. A draft model together
            with its target is loaded by the worker itself; alone, or on releases whose worker
            knows no MTP, by the function the worker's drafter calls.
        hook: the loader hook; all but ``upstream`` replace tpu-inference's for this process.
        num_layers: build the decoder with its first layers only; all of it is streamed anyway.
        ledgers: receives each part's loader calls, also those before an error.
        adapt: changes the loader class under test, for tests that plant faults in it.

    Raises:
        TargetUnavailable: XLA is alive in this process, with another number of devices, or
            upstream made another mesh than the target's.
        Exception: whatever the stack under test raises, unchanged.
    """
    if target.hosts > 1 and target.platform == "cpu":
        join(target)
    _require_devices(target)
    started = time.perf_counter()
    _register_loader(family, hook, num_layers, ledgers, adapt)
    by_worker = set(parts) == set(Part) and _worker_drafts_mtp()
    overrides = family.config_overrides(num_layers) if family else {}
    config = partial(_config, checkpoint, target, overrides)
    worker = _ready_worker(config(draft=by_worker), target)
    ready = time.perf_counter()
    entry, states = _states(worker, target, parts, by_worker, config)
    ended = time.perf_counter()
    with InternalError.instead():  # the stack has done its part
        return _loaded(worker, target, entry, states, (started, ready, ended))


def _ready_worker(config: Any, target: Target) -> Any:
    """A worker with its devices and mesh, about to load."""
    worker = _worker(config, target)
    _let_memory_log_fail(worker.init_device, target)
    _require_mesh(worker, target)
    if target.hosts > 1:
        _load_as_one_of_several()
    return worker


def _states(
    worker: Any,
    target: Target,
    parts: Collection[Part],
    by_worker: bool,
    config: Callable[..., Any],
) -> tuple[list[str], dict[Part, Mapping[str, Any]]]:
    """Load ``parts``; where the loads entered, and each part's arrays by their names."""
    states: dict[Part, Mapping[str, Any]] = {}
    entry = [_WORKER]
    if Part.DECODER in parts:
        _let_memory_log_fail(worker.load_model, target)
        states[Part.DECODER] = worker.model_runner.state
        entry.append("TPUWorker.load_model")
    if by_worker:
        states[Part.MTP] = worker.model_runner.drafter.state
    elif Part.MTP in parts:
        states[Part.MTP] = _draft_alone(worker, config(draft=True))
        entry.append("models.common.model_loader.get_model(is_draft_model=True)")
    return entry, states


def _loaded(
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
            part: [from_jax(name, array) for name, array in state.items()]
            for part, state in states.items()
        },
        mesh=tuple(map(_name, devices)),
        local=own if target.hosts > 1 else None,
        entry=", ".join(entry),
        setup_seconds=times[1] - times[0],
        load_seconds=times[2] - times[1],
        axes=tuple((str(n), int(s)) for n, s in mesh.shape.items()),
    )


def _register_loader(
    family: Family | None, hook: Hook, num_layers: int | None, ledgers: Ledgers, adapt: Adapt
) -> None:
    """Register a recording subclass of tpu-inference's loader, or of the one with our hook."""
    from tpu_inference.models.vllm.vllm_model_loader import RunaiIncrementalModelLoader
    from vllm.model_executor.model_loader import register_model_loader

    base = RunaiIncrementalModelLoader if hook is Hook.UPSTREAM else hooked_loader(hook)
    loader = adapt(cut(base, family, num_layers))
    register_model_loader("runai_streamer")(recording(loader, family, ledgers))


def _config(checkpoint: str, target: Target, overrides: Mapping[str, Any], *, draft: bool) -> Any:
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
        hf_overrides=dict(overrides),
        additional_config={"sharding": {"sharding_strategy": strategy}},
        skip_tokenizer_init=True,  # no token is ever generated: what only serving needs is small
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

    Each host has rank 0 where there are no pipeline stages, as ``RayDistributedExecutor`` has it.
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
    ``general_device_put``). Not before: a worker made with it looks up a TPU's coordinates.
    """
    os.environ["TPU_MULTIHOST_BACKEND"] = "ray"


def _name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def _worker_drafts_mtp() -> bool:
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
        inside = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if target.platform != "cpu" or "hbm_usage_gb" not in inside:
            raise


def _require_devices(target: Target) -> None:
    """The count of CPU devices is fixed once XLA is alive; a process with another is of no use."""
    if target.platform != "cpu":
        return
    import jax

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
    """Upstream's mesh is of the target's devices; in their order, where the target has one.

    Without device indexes upstream orders a TPU's devices by how they are wired: four of a v6e as
    0, 1, 3, 2 (tpu-inference ``utils.py``, ``make_optimized_mesh``). The comparison follows it.
    """
    found = [(d.platform, d.id) for d in worker.model_runner.mesh.devices.flat]
    asked = [(target.platform, index) for index in _device_indexes(target)]
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


def alive() -> bool:
    """Whether JAX has touched a device in this process; it has not where it is not imported."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return bool(xla_bridge.backends_are_initialized())
