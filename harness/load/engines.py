"""What a worker of an engine holds, whoever started it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from harness.base.errors import TargetUnavailable
from harness.devices.jax_arrays import from_jax
from harness.families.family import Part
from harness.load.loaded import Loaded
from harness.load.nnx_models import arrays_of, is_own_model
from harness.load.stack import installed_versions
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets.driver import Capability, Driver
from harness.load.targets.known_targets import targets
from harness.load.targets.tpu_inference import TpuInference


class EngineWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker: its model, where that lies, and its place among the engine's workers.

    Attributes:
        model: the path it was loaded from.
        parts: those it holds.
        target: its mesh; ``host`` is its own number.
        versions: of what is installed there.
    """

    model: str
    parts: tuple[Part, ...]
    target: Target
    versions: dict[str, str]


def described(worker: Any) -> EngineWorker:
    """What a worker is.

    Raises:
        TargetUnavailable: it is no worker of tpu-inference that has loaded.
    """
    runner: Any = getattr(worker, "model_runner", None)
    if not hasattr(runner, "state") or not hasattr(runner, "mesh"):
        raise TargetUnavailable(
            f"the worker, a {type(worker).__name__}, has no model on JAX's devices",
            where="the engine",
            expected="a TPUWorker of tpu-inference that has loaded its model",
            hint="an engine whose platform is tpu-inference's, once it is made",
        )
    import jax

    config = worker.vllm_config
    own, drafter = config.model_config, getattr(runner, "drafter", None)
    drafts = getattr(drafter, "state", None) is not None
    devices = list(runner.mesh.devices.flat)
    driver, parallelism = _driver_of(devices[0]), _parallelism(config)
    return EngineWorker(
        model=str(getattr(own, "model_weights", "") or own.model),
        parts=tuple(Part) if drafts else (Part.DECODER,),
        target=Target(
            name=driver.name, devices=len(devices), platform=driver.platform,
            parallelism=parallelism, backend=driver.backends[parallelism], nan=driver.nan,
            hosts=jax.process_count(), host=jax.process_index(),
        ),
        versions=installed_versions(),
    )  # fmt: skip


def held(
    worker: Any,
    driver: Driver,
    parts: Collection[Part],
    *,
    entry: str,
    draft: Mapping[str, Any] | None = None,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> Loaded:
    """What a worker of tpu-inference holds.

    Args:
        worker: a ``TPUWorker`` that has loaded.
        driver: of its devices.
        parts: of the model.
        entry: where the load entered the stack.
        draft: the draft model's arrays, where the worker's drafter has none.
        seconds: that it took until the load, and that the load took.
    """
    import jax

    runner, states = worker.model_runner, dict[Part, Mapping[str, Any]]()
    if Part.DECODER in parts:
        states[Part.DECODER] = runner.state
    if Part.MTP in parts:
        states[Part.MTP] = runner.drafter.state if draft is None else draft
    devices = list(runner.mesh.devices.flat)
    own = [device for device in devices if device.process_index == jax.process_index()]
    return Loaded(
        tensors={
            part: [
                from_jax(name, array, in_host_memory=not driver.can(Capability.OWN_MEMORY))
                for name, array in (arrays_of(state) if is_own_model(state) else state.items())
            ]
            for part, state in states.items()
        },
        implementations={
            part: Implementation.JAX if is_own_model(state) else Implementation.VLLM
            for part, state in states.items()
        },
        mesh=tuple(map(_name, devices)),
        local=frozenset(map(_name, own)) if jax.process_count() > 1 else None,
        entry=entry,
        setup_seconds=seconds[0],
        load_seconds=seconds[1],
        axes=tuple((str(n), int(s)) for n, s in runner.mesh.shape.items()),
    )


def _name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def _driver_of(device: Any) -> Driver:
    """The target that such devices are: the first that goes through tpu-inference and has them."""
    for driver in targets().values():
        if isinstance(driver, TpuInference) and driver.platform == device.platform:
            return driver
    raise TargetUnavailable(
        f"unsupported devices, of platform {device.platform}",
        where="the engine's mesh",
        expected=", ".join(d.platform for d in targets().values() if isinstance(d, TpuInference)),
        hint="harness doctor lists the targets",
    )


def _parallelism(config: Any) -> Parallelism:
    """How the engine spreads experts: by its option, and by tpu-inference's for the kernel."""
    if not config.parallel_config.enable_expert_parallel:
        return Parallelism.TENSOR
    kernel = os.environ.get("USE_MOE_EP_KERNEL", "0") not in ("", "0")
    return Parallelism.EXPERT_KERNEL if kernel else Parallelism.EXPERT
