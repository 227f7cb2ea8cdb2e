"""The GPU target: the NVIDIA GPUs of this host, as JAX's CUDA plugin has them.

tpu-inference knows no GPU, and needs none: it asks JAX for devices and builds its mesh of what it
is given. It takes ``tpu``, ``cpu`` and ``proxy`` for ``JAX_PLATFORMS``, and nothing at all, which
leaves the choice to JAX (tpu-inference ``envs.py``, 0.32); JAX then prefers CUDA and keeps its
CPU client, device 0 of which is the host. Kernels for TPUs never run: weights are loaded,
packed and moved by XLA alone.

Nobody but the process of a load may touch a GPU: CUDA that was initialised before a fork is lost to
the fork, and JAX then takes the CPU without an error. Importing tpu-inference's model classes
initialises it (``vllm_model_wrapper``, 0.32), so each load imports them itself, after the fork. The
GPUs are counted by their device files, and the plugin is looked up among the installed packages.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from harness.base.errors import TargetUnavailable
from harness.load.environment import compilation_cache
from harness.load.target import Parallelism, Share, Target
from harness.load.targets.driver import Capability
from harness.load.targets.tpu_inference import (
    KEEPING_SUBNORMALS,
    TpuInference,
    under_a_tpus_name,
    xla_flags,
)

#: JAX's plugins, the newest CUDA first.
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
_NOT_INITIALISED = 3  # CUDA_ERROR_NOT_INITIALIZED


class Gpu(TpuInference):
    """The GPUs of this host that CUDA may see, all of them by default."""

    name = "gpu"
    platform = "gpu"
    capabilities = frozenset(
        {
            Capability.MESHES,
            Capability.FIXED_ORDER,
            Capability.OWN_MEMORY,
            Capability.OWN_MODELS,
        }
    )

    modules: ClassVar = ("torch", "jax", "vllm.engine.arg_utils")
    lazy: ClassVar = ()
    imports_models = False

    def target(self, devices: int | None, parallelism: Parallelism, share: Share) -> Target:
        """What is asked for on this host; workers share its GPUs, which take memory as they need.

        Raises:
            BadInput: not a number of devices.
            TargetUnavailable: no GPU here, not so many, or no CUDA plugin of this JAX.
        """
        if devices is not None:
            self.devices_of_one_host(devices)
        found = visible_gpus()
        if not found:
            raise TargetUnavailable(
                "no NVIDIA GPU",
                where="/dev/nvidia0 and on, CUDA_VISIBLE_DEVICES",
                expected="a machine with its driver loaded, or a container that was given a GPU",
                hint="nvidia-smi on the host, --gpus all for a container; --target emulated runs "
                "anywhere",
            )
        if devices is not None and devices > found:
            raise TargetUnavailable(
                f"{devices} devices",
                where="--devices",
                expected=f"at most {found}, as many GPUs as CUDA may see here",
                hint=f"--devices {found}",
            )
        require_plugin()
        return super().target(found if devices is None else devices, parallelism, share)

    def environment(self, devices: int, parallelism: Parallelism) -> dict[str, str]:
        """GPUs before the CPU, their memory taken as it is needed, under a TPU's name."""
        return (
            super().environment(devices, parallelism)
            | compilation_cache()
            | under_a_tpus_name(self.name, devices)
            | {
                "JAX_PLATFORMS": "",
                "XLA_FLAGS": xla_flags(KEEPING_SUBNORMALS),
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            }
        )

    def device_indexes(self, devices: int) -> tuple[int, ...]:
        """The first ones, in the order of their ids."""
        return tuple(range(devices))

    def ready(self, target: Target) -> None:
        """Have JAX open the GPUs.

        Raises:
            TargetUnavailable: it cannot, or shows fewer than asked for; JAX would go on with the
                CPU.
        """
        import jax

        found = [device for device in jax.devices() if device.platform == self.platform]
        if len(found) < target.devices:
            raise TargetUnavailable(
                f"JAX shows {len(found)} GPUs",
                where="jax.devices()",
                expected=f"{target.devices}",
                hint="JAX_LOGGING_LEVEL=DEBUG python -c 'import jax; print(jax.devices())' says "
                "why: a driver too old for the plugin's CUDA, or a GPU that another process holds",
            )

    def alive(self) -> bool:
        """Whether JAX has touched a device here, or anything has initialised CUDA."""
        return super().alive() or _cuda_is_initialised()


TARGET = Gpu()


def visible_gpus(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """How many GPUs CUDA shows a process; nothing is opened.

    ``CUDA_VISIBLE_DEVICES`` lists them by number or by UUID, and ends at the first entry that is
    neither (CUDA C++ Programming Guide, environment variables).

    Args:
        environ: the environment to read.
        root: where ``dev`` is.
    """
    there = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in root.glob("dev/nvidia*"))
    stated = environ.get("CUDA_VISIBLE_DEVICES")
    if stated is None or not there:
        return there
    return sum(1 for _ in _listed(stated, there))


def _listed(stated: str, there: int) -> Iterator[str]:
    for entry in map(str.strip, stated.split(",")):
        if not (entry.startswith(("GPU-", "MIG-")) or (entry.isdecimal() and int(entry) < there)):
            return
        yield entry


def require_plugin() -> str:
    """The version of JAX's CUDA plugin, which must be that of JAX: JAX takes no other.

    Raises:
        TargetUnavailable: it is not installed, or is of another version.
    """
    jax = _installed("jax") or "none"
    plugins = {name: found for name in _PLUGINS if (found := _installed(name))}
    if jax in plugins.values():
        return jax
    other = ", ".join(f"{name} {found}" for name, found in plugins.items())
    raise TargetUnavailable(
        f"no CUDA plugin of jax {jax}" + (f", but {other}" if other else ""),
        where="this environment",
        expected=f"{_PLUGINS[0]} {jax}, with CUDA's libraries",
        hint=f"make setup TARGET=gpu, or pip install 'jax[cuda13]=={jax}' into this environment",
    )


def _cuda_is_initialised() -> bool:
    """Whether CUDA is, in this process; asking does not initialise it (CUDA Driver API, cuInit)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is no driver
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != _NOT_INITIALISED


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
