"""Where a checkpoint is to arrive: the devices, and the environment that makes them.

A target is passive: it says what the process of a load needs. The device count and the platform
are decided by environment variables before the first import, so each load runs in a process
started with this environment, and the parent never touches a device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from harness.errors import BadInput, TargetUnavailable
from harness.vllm_platform import EMULATED_DEVICES


@dataclass(frozen=True)
class Target:
    """A mesh to load onto.

    Attributes:
        name: as the user asks for it.
        devices: size of the mesh.
        device_indexes: ids of the JAX devices the mesh is built from, in order.
        platform: what JAX calls the devices.
        environment: the variables a load process starts with.
    """

    name: str
    devices: int
    device_indexes: tuple[int, ...]
    platform: str
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name}, {self.devices} devices"


def emulated_target(devices: int = 4) -> Target:
    """N emulated XLA devices on the CPU.

    JAX is given N + 1 CPU devices: tpu-inference takes an array on ``jax.devices("cpu")[0]`` for
    "still on the host" (``cleanup_sharding.py``, ``_tensor_is_in_cpu``), so device 0 stays the
    host and the mesh is made of devices 1 to N.

    Args:
        devices: N, at least 2: the mesh of a single device is laid out differently.

    Raises:
        BadInput: fewer than 2 devices.
    """
    if devices < 2:
        raise BadInput(
            f"{devices} emulated devices",
            where="--devices",
            expected="at least 2",
            hint="--devices 4",
        )
    return Target(
        name="emulated",
        devices=devices,
        device_indexes=tuple(range(1, devices + 1)),
        platform="cpu",
        environment=_stack_environment()
        | {
            EMULATED_DEVICES: str(devices),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices + 1}",
            # Named, so that tpu_inference does not ask a metadata server at import.
            "TPU_ACCELERATOR_TYPE": f"v6e-{devices}",
            "TPU_NAME": "emulated",
            "TPU_WORKER_ID": "0",
        },
    )


def cache_directory() -> Path:
    """Where the stack's caches are kept between runs; ``HARNESS_CACHE`` overrides the place."""
    return Path(os.environ.get("HARNESS_CACHE") or platformdirs.user_cache_path("moe-load-harness"))


def _stack_environment() -> dict[str, str]:
    """What every load needs of vLLM and tpu-inference, whatever the target."""
    return {
        # The vLLM model classes, for target and draft alike: tpu-inference refuses a mix.
        "MODEL_IMPL_TYPE": "vllm",
        "DRAFT_MODEL_IMPL_TYPE": "vllm",
        "VLLM_CACHE_ROOT": str(cache_directory() / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
    }


TARGETS = ("emulated",)
PLANNED = ("tpu", "torch-xla")


def target_named(name: str, devices: int) -> Target:
    """The target a user asked for.

    Raises:
        BadInput: there is no such target, or not with that many devices.
        TargetUnavailable: the target is named in the design and not built yet.
    """
    if name in PLANNED:
        raise TargetUnavailable(
            f"target {name!r} is not supported yet",
            where="--target",
            expected="one of " + ", ".join(TARGETS),
            hint="--target emulated",
        )
    if name not in TARGETS:
        raise BadInput(
            f"unknown target {name!r}",
            where="--target",
            expected="one of " + ", ".join(TARGETS),
            hint="--target emulated",
        )
    return emulated_target(devices)
