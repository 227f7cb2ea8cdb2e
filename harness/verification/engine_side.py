"""What runs on a worker of an engine, next to its weights: the table is in the worker's extension.

A worker that nobody of the harness started has no ledger: what is on its devices is compared, and
how it came there is not known.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import msgspec

from harness.base.errors import HarnessError, InternalError, SentError, TargetUnavailable
from harness.base.progress import Meter
from harness.families.family import Part
from harness.families.known_families import bring
from harness.load.extension import held
from harness.load.stack import installed_versions
from harness.load.target import Parallelism, Target
from harness.load.targets.driver import Driver
from harness.load.targets.known_targets import driver_of, targets
from harness.load.targets.tpu_inference import TpuInference
from harness.report.report import Report
from harness.verification.job import Verification, VerifyRequest

#: Where a load entered that was over when the harness came.
ENTRY = "an engine that runs, asked by collective_rpc"


class Described(msgspec.Struct, frozen=True, kw_only=True):
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


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's report, or what kept it from one."""

    report: Report | None = None
    error: SentError | None = None


def describe(worker: Any, _: str) -> str:
    """What the worker holds, as JSON of :class:`Described`.

    Raises:
        TargetUnavailable: it is no worker of tpu-inference that has loaded.
    """
    import jax

    runner = getattr(worker, "model_runner", None)
    if not hasattr(runner, "state") or not hasattr(runner, "mesh"):
        raise TargetUnavailable(
            f"a worker {type(worker).__name__} without a model on JAX's devices",
            where="the engine",
            expected="a TPUWorker of tpu-inference that has loaded its model",
            hint="an engine whose platform is tpu-inference's, once it is made",
        )
    config = worker.vllm_config
    own, drafter = config.model_config, getattr(runner, "drafter", None)
    drafts = getattr(drafter, "state", None) is not None
    devices = list(runner.mesh.devices.flat)
    driver, parallelism = _driver_of(devices[0]), _parallelism(config)
    described = Described(
        model=str(getattr(own, "model_weights", "") or own.model),
        parts=tuple(Part) if drafts else (Part.DECODER,),
        target=Target(
            name=driver.name, devices=len(devices), platform=driver.platform,
            parallelism=parallelism, backend=driver.backends[parallelism], nan=driver.nan,
            hosts=jax.process_count(), host=jax.process_index(),
        ),
        versions=installed_versions(),
    )  # fmt: skip
    return msgspec.json.encode(described).decode()


def compare(worker: Any, argument: str) -> str:
    """Compare what the worker holds, as JSON of :class:`Answer`.

    Args:
        worker: of tpu-inference, once it has loaded.
        argument: JSON of a request and an unfinished report.
    """
    request, unfinished = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    try:
        answer = Answer(report=_compared(worker, request, unfinished))
    except HarnessError as error:
        answer = Answer(error=SentError.of(error))
    except Exception as error:
        answer = Answer(error=SentError.of(InternalError.of(error)))
    return msgspec.json.encode(answer).decode()


def _compared(worker: Any, request: VerifyRequest, unfinished: Report) -> Report:
    import jax

    bring(request.families)
    host = jax.process_index() if request.target.hosts > 1 else 0
    request = msgspec.structs.replace(request, target=replace(request.target, host=host))
    loaded = held(worker, driver_of(request.target), request.parts, entry=ENTRY)
    return Verification(request, unfinished, Meter()).timed(loaded)


def _driver_of(device: Any) -> Driver:
    """The target that such devices are: the first that goes through tpu-inference and has them."""
    for driver in targets().values():
        if isinstance(driver, TpuInference) and driver.platform == device.platform:
            return driver
    raise TargetUnavailable(
        f"devices of platform {device.platform}",
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
