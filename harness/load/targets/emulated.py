"""The emulated target: XLA devices on the CPU, through tpu-inference and JAX, on any machine.

JAX is given one CPU device more than the mesh has: tpu-inference takes an array on
``jax.devices("cpu")[0]`` for "still on the host" (``cleanup_sharding.py``, ``_tensor_is_in_cpu``),
so device 0 stays the host and a mesh of N is made of devices 1 to N.

A mesh over several hosts is a slice of as many processes of this machine, each with a part of the
devices. It has the shape of a TPU slice as tpu-inference's workers find it. There libtpu makes one
slice of the hosts' chips, while JAX's backend ``cpu`` is each host's own. So here: what JAX calls
the TPU is a CPU client that ``jax.distributed`` joins over the hosts, with gloo for its
collectives, and ``cpu`` is a client of one device that knows no other host.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from harness.base.errors import TargetUnavailable
from harness.load.environment import compilation_cache
from harness.load.target import Parallelism, Target
from harness.load.targets.driver import Capability
from harness.load.targets.tpu_inference import (
    KEEPING_SUBNORMALS,
    TpuInference,
    under_a_tpus_name,
    xla_flags,
)

_SECONDS_TO_MEET = 120


class Emulated(TpuInference):
    """N emulated XLA devices on the CPU, 4 by default."""

    name = "emulated"
    platform = "cpu"
    worker = "harness.load.emulated_worker.EmulatedWorker"
    capabilities = frozenset(
        {
            Capability.SEVERAL_HOSTS,
            Capability.MESHES,
            Capability.FIXED_ORDER,
            Capability.OWN_MODELS,
        }
    )

    def environment(self, devices: int, parallelism: Parallelism) -> dict[str, str]:
        """CPU devices alone, more of them than the machine has, under a TPU's name."""
        return (
            super().environment(devices, parallelism)
            | compilation_cache()
            | under_a_tpus_name(self.name, devices)
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": xla_flags(
                    KEEPING_SUBNORMALS, f"--xla_force_host_platform_device_count={devices + 1}"
                ),
            }
        )

    def device_indexes(self, devices: int) -> tuple[int, ...]:
        """All but the first, which is the host."""
        return tuple(range(1, devices + 1))

    def played_here(self, target: Target) -> list[Target]:
        """All hosts, and where they meet."""
        if target.hosts == 1 or target.on:
            return [target]
        coordinator = free_address()
        return [replace(target, host=n, coordinator=coordinator) for n in range(target.hosts)]

    def ready(self, target: Target) -> Sequence[Any] | None:
        """Join the other hosts, if there are others.

        Returns:
            The devices of a slice, which tpu-inference would look for on one host.

        Raises:
            TargetUnavailable: XLA is alive in this process, with another number of devices, which
                is fixed then.
        """
        import jax

        if target.hosts > 1:
            _join(target)
        devices = jax.devices()
        wanted = target.devices if target.hosts > 1 else max(target.device_indexes) + 1
        if len(devices) != wanted:
            raise TargetUnavailable(
                f"XLA is alive with {len(devices)} CPU devices",
                where="this process",
                expected=f"{wanted}, with {target.devices} of the mesh",
                hint="load in a process of its own, which the target's environment starts",
            )
        return devices if target.hosts > 1 else None

    def leave(self, target: Target) -> None:
        """Wait for the other hosts and disconnect: who goes without ends the others.

        A host whose load failed goes without, so that none waits for it in vain.
        """
        if target.hosts > 1:
            import jax

            jax.distributed.shutdown()


TARGET = Emulated()


def free_address(host: str = "127.0.0.1") -> str:
    """An address of this machine that nobody listens at, ``host:port``."""
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def _join(target: Target) -> None:
    """Make this process host ``target.host`` of the slice; no device may have been touched.

    Raises:
        RuntimeError: a backend of JAX is alive already, or the hosts do not meet in time.
    """
    import jax
    from jax._src.xla_bridge import make_cpu_client  # the factory JAX registers for "cpu"
    from jax.extend import backend
    from jaxlib import xla_client

    jax.config.update("jax_platforms", "tpu,cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", target.devices // target.hosts)
    jax.distributed.initialize(
        target.coordinator,
        target.hosts,
        target.host,
        cluster_detection_method="deactivate",
        initialization_timeout=_SECONDS_TO_MEET,
    )
    backend.register_backend_factory("tpu", make_cpu_client, priority=300, fail_quietly=False)
    backend.register_backend_factory("cpu", lambda: xla_client.make_cpu_client(num_devices=1))


def with_memory_logged(step: Callable[[], None]) -> None:
    """Run a step of the worker whose last statement logs the devices' memory.

    ``TPUWorker.init_device`` and ``TPUModelRunner.load_model`` end by logging
    ``hbm_usage_gb(devices)`` (tpu-inference ``utils.py``). CPU devices have no statistics of their
    memory: up to 0.26 their None is subscripted, from 0.32 on a TPU is insisted on. An error out of
    that function, raised after the step's work is done, is let pass.
    """
    try:
        step()
    except (TypeError, RuntimeError) as error:
        inside = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if "hbm_usage_gb" not in inside:
            raise
