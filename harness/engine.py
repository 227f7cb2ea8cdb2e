"""Loads a checkpoint through the real stack, in the process that calls it.

The load enters at the top of what serves a model: tpu-inference's ``TPUWorker``, made from the
configuration vLLM's ``EngineArgs`` makes, then ``init_device`` and ``load_model`` as the engine
calls them. Those call upstream's own initialisers (``init_distributed_environment``,
``ensure_model_parallel_initialized``, ``init_pp_distributed_environment``), build the mesh, load
the target model and, for MTP, the draft model. Nothing upstream is patched or replaced.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.family import Part
from harness.target import Target

ENTRY = "tpu_inference.worker.tpu_worker.TPUWorker: init_device, load_model"


@dataclass(frozen=True)
class Loaded:
    """A model on its devices: each part's parameters by name, the mesh, and the seconds taken."""

    parameters: Mapping[Part, Mapping[str, Any]]
    mesh: tuple[str, ...]
    setup_seconds: float
    load_seconds: float


def preload() -> None:
    """Import the stack, touching no device, so that forked loads need not."""
    import importlib

    for module in (
        "torch",
        "jax",
        "vllm.engine.arg_utils",
        "tpu_inference.models.vllm.vllm_model_wrapper",
        "tpu_inference.worker.tpu_worker",
        "vllm.model_executor.models.qwen3_vl_moe",
        "vllm.model_executor.models.qwen3_5",
        "vllm.model_executor.models.qwen3_5_mtp",
    ):
        importlib.import_module(module)


def load(checkpoint: str, target: Target, *, draft: bool) -> Loaded:
    """Stream ``checkpoint`` onto ``target`` and return what arrived.

    Args:
        checkpoint: the model path vLLM is given.
        target: the mesh; this process must have been started with its environment.
        draft: load the MTP layer as the draft model of speculative decoding too.

    Raises:
        Exception: whatever the stack under test raises, unchanged.
    """
    started = time.perf_counter()
    worker = _worker(checkpoint, target, draft)
    _without_memory_stats(worker.init_device)
    _require_mesh(worker, target)
    ready = time.perf_counter()
    _without_memory_stats(worker.load_model)
    parameters = {Part.DECODER: worker.model_runner.state}
    if draft:
        parameters[Part.MTP] = worker.model_runner.drafter.state
    return Loaded(
        parameters=parameters,
        mesh=tuple(f"{d.platform}:{d.id}" for d in worker.model_runner.mesh.devices.flat),
        setup_seconds=ready - started,
        load_seconds=time.perf_counter() - ready,
    )


def _worker(checkpoint: str, target: Target, draft: bool) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    strategy = {"device_indexes": list(target.device_indexes)}
    config = EngineArgs(
        model=checkpoint,
        load_format="runai_streamer",
        tensor_parallel_size=target.devices,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1} if draft else None,
        additional_config={"sharding": {"sharding_strategy": strategy}},
        # No token is ever generated: keep what only serving needs small.
        skip_tokenizer_init=True,
        enforce_eager=True,
        disable_chunked_mm_input=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
    ).create_engine_config()
    from tpu_inference.worker.tpu_worker import TPUWorker

    return TPUWorker(
        config, local_rank=0, rank=0, distributed_init_method="", is_driver_worker=True
    )


def _without_memory_stats(step: Callable[[], None]) -> None:
    """Run a step of the worker whose last statement logs the devices' memory.

    ``TPUWorker.init_device`` and ``TPUModelRunner.load_model`` end by logging
    ``hbm_usage_gb(devices)``, which subscripts ``device.memory_stats()``; CPU devices return None
    there (tpu-inference ``utils.py``, ``hbm_usage_bytes``, 0.21 to 0.32). That one error, raised
    by that one function after the step's work is done, is let pass.
    """
    try:
        step()
    except TypeError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if last.name != "hbm_usage_bytes":
            raise


def _require_mesh(worker: Any, target: Target) -> None:
    found = [(d.platform, d.id) for d in worker.model_runner.mesh.devices.flat]
    wanted = [(target.platform, index) for index in target.device_indexes]
    if found != wanted:
        raise RuntimeError(f"the worker's mesh is {found}, the target's is {wanted}")
