"""Engines of vLLM's own making, onto a target's devices, that nobody of the harness loads."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.families.family import Part
from harness.load.target import Target
from harness.load.targets.known_targets import driver_of
from harness.load.targets.tpu_inference import TpuInference, choose


def executor_of(checkpoint: str, target: Target, *, draft: bool, extended: bool = True) -> Any:
    """An executor that has loaded; ``extended``: with the harness's extension of the worker."""
    from vllm.v1.executor.abstract import Executor

    driver = driver_of(target)
    assert isinstance(driver, TpuInference)
    choose(target.impl)
    config = driver.configured(driver.config(checkpoint, target, None, {}, draft=draft), target)
    if not extended:
        config.parallel_config.worker_extension_cls = ""
    return Executor.get_class(config)(config)


def flip_a_bit(executor: Any, ending: str, part: Part = Part.DECODER) -> str:
    """Flip the lowest bit of an array's first element on its first device, where it lies.

    Returns:
        The array's name, the first that ends so.
    """
    import jax

    runner = executor.driver_worker.worker.model_runner
    state = runner.state if part is Part.DECODER else runner.drafter.state
    name = next(each for each in state if each.endswith(ending))
    array = state[name]
    shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
    pieces = [shard.data for shard in shards]
    bits = np.array(pieces[0])
    bits.view(np.uint8).reshape(-1)[0] ^= 1
    pieces[0] = jax.device_put(bits, shards[0].device)
    state[name] = jax.make_array_from_single_device_arrays(array.shape, array.sharding, pieces)
    return str(name)
