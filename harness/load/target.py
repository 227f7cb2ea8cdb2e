"""Where a checkpoint is to arrive: the devices, and the environment that makes them.

A target is passive: it says what the process of a load needs. The device count and the platform
are decided by environment variables before the first import, so each load runs in a process
started with this environment, and the parent never touches a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from harness.base.bits import Nan
from harness.base.bounds import MOST_EMULATED_DEVICES, require_count
from harness.base.errors import BadInput, TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.load.environment import (
    compilation_cache,
    stack_environment,
    tpu_inference_environment,
    xla_flags,
)
from harness.load.tpu import chip_environment, find_tpu
from harness.load.vllm_platform import PLATFORM, Platform


class Parallelism(StrEnum):
    """How the experts of a layer are spread over the mesh.

    - ``tensor``: every device holds a part of every expert.
    - ``expert``: every device holds some experts whole.
    - ``expert-kernel``: the same, packed for the fused kernel (``USE_MOE_EP_KERNEL=1``).
    """

    TENSOR = "tensor"
    EXPERT = "expert"
    EXPERT_KERNEL = "expert-kernel"


_TPU_INFERENCE_BACKENDS = {
    Parallelism.TENSOR: Backend.GMM_TP,
    Parallelism.EXPERT: Backend.GMM_EP,
    Parallelism.EXPERT_KERNEL: Backend.FUSED_MOE,
}
#: No compilation for CPUs with native bf16 conversion: that instruction (``VCVTNEPS2BF16``) takes
#: subnormals for zero, and jaxlib 0.11.2 uses it to move weights. A TPU's copies keep all bits.
_ISA = "--xla_cpu_max_isa=AVX512"

_TORCH_XLA_BACKENDS = {Parallelism.TENSOR: Backend.XLA_TP, Parallelism.EXPERT: Backend.XLA_EP}


@dataclass(frozen=True)
class Target:
    """A mesh to load onto.

    Attributes:
        name: as the user asks for it.
        devices: size of the mesh.
        platform: what XLA calls the devices: ``cpu``, ``tpu``, or ``xla`` where torch_xla names
            them.
        parallelism: how experts are spread over it.
        backend: the packing that follows.
        nan: what this target's way to the device does to NaNs.
        device_indexes: ids of the JAX devices the mesh is built from, in order; empty for those
            the process sees.
        chips: the TPU chips it takes, to be locked while a load runs.
        environment: the variables a load process starts with.
        mesh: the axes of the mesh, where it has more than one (:mod:`harness.load.meshes`).
        engine: arguments of vLLM's ``EngineArgs`` that ask for such a mesh.
        strategy: tpu-inference's ``sharding_strategy`` that does.
        hosts: processes that the devices are divided among (:mod:`harness.load.hosts`).
        host: the number of the one that a load is to be.
        coordinator: where the hosts of an emulated slice meet, ``address:port``.
    """

    name: str
    devices: int
    platform: str
    parallelism: Parallelism
    backend: Backend
    nan: Nan
    device_indexes: tuple[int, ...] = ()
    chips: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mesh: str = ""
    engine: dict[str, int] = field(default_factory=dict)
    strategy: dict[str, int | bool] = field(default_factory=dict)
    hosts: int = 1
    host: int = 0
    coordinator: str = ""

    def __str__(self) -> str:
        text = f"{self.name}, {self.devices} device{'' if self.devices == 1 else 's'}"
        text += f" as {self.mesh}" if self.mesh else ""
        text += f" on {self.hosts} hosts" if self.hosts > 1 else ""
        return text if self.parallelism is Parallelism.TENSOR else f"{text}, {self.parallelism}"


def emulated_target(
    devices: int | None = None, parallelism: Parallelism = Parallelism.TENSOR
) -> Target:
    """N emulated XLA devices on the CPU, through tpu-inference and JAX.

    JAX is given N + 1 CPU devices: tpu-inference takes an array on ``jax.devices("cpu")[0]`` for
    "still on the host" (``cleanup_sharding.py``, ``_tensor_is_in_cpu``), so device 0 stays the
    host and the mesh is made of devices 1 to N.

    Args:
        devices: N, 4 by default.
        parallelism: how experts are spread.

    Raises:
        BadInput: fewer than 1 device, or more than one machine plays.
    """
    devices = _count(devices)
    return Target(
        name="emulated",
        devices=devices,
        platform="cpu",
        parallelism=parallelism,
        backend=_TPU_INFERENCE_BACKENDS[parallelism],
        nan=Nan.CANONICAL,
        device_indexes=tuple(range(1, devices + 1)),
        environment=tpu_inference_environment(
            expert_kernel=parallelism is Parallelism.EXPERT_KERNEL
        )
        | compilation_cache()
        | {
            PLATFORM: Platform.EMULATED_TPU,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(_ISA, f"--xla_force_host_platform_device_count={devices + 1}"),
            # Named, so that tpu_inference does not ask a metadata server at import.
            "TPU_ACCELERATOR_TYPE": f"v6e-{devices}",
            "TPU_NAME": "emulated",
            "TPU_WORKER_ID": "0",
        },
    )


def tpu_target(
    devices: int | None = None, parallelism: Parallelism = Parallelism.TENSOR, share: Share = None
) -> Target:
    """The TPU chips of this host, or a part of them.

    Args:
        devices: how many of the devices JAX shows; all by default.
        parallelism: how experts are spread.
        share: ``(number, count)`` of the workers that divide the chips among them.

    Raises:
        BadInput: not a number of devices.
        TargetUnavailable: no TPU here, or not so many chips.
    """
    if devices is not None:
        _count(devices)
    host = find_tpu()
    chips = _share(host.chips, share)
    wanted = len(chips) * host.devices_per_chip if devices is None else devices
    count = -(-wanted // host.devices_per_chip)
    if count > len(host.chips):
        raise TargetUnavailable(
            f"{wanted} devices", where="--devices", expected=f"at most {host.devices} ({host})",
            hint=f"--devices {host.devices}",
        )  # fmt: skip
    # More than a worker's share: from the first chip on; the locks make the others wait.
    chips = chips[:count] if count <= len(chips) else host.chips[:count]
    return Target(
        name="tpu",
        devices=wanted,
        platform="tpu",
        parallelism=parallelism,
        backend=_TPU_INFERENCE_BACKENDS[parallelism],
        nan=Nan.CANONICAL,
        chips=chips,
        environment=tpu_inference_environment(
            expert_kernel=parallelism is Parallelism.EXPERT_KERNEL
        )
        | chip_environment(host, chips),
    )


def torch_xla_target(
    devices: int | None = None, parallelism: Parallelism = Parallelism.TENSOR
) -> Target:
    """N XLA devices through torch_xla: the TPU where PJRT_DEVICE=TPU says so, else the CPU.

    Args:
        devices: N, 4 by default; 1 places whole tensors, more shard them by SPMD.
        parallelism: ``tensor`` cuts the intermediate axis, ``expert`` the expert axis.

    Raises:
        BadInput: fewer than 1 device, or more than one machine plays.
        TargetUnavailable: torch_xla is not installed, or does not fit the stack's torch; or the
            parallelism is tpu-inference's own.
    """
    devices = _count(devices)
    _require_torch_xla()
    if parallelism not in _TORCH_XLA_BACKENDS:
        raise TargetUnavailable(
            f"parallelism {parallelism} on torch-xla",
            where="--parallelism",
            expected="one of " + ", ".join(_TORCH_XLA_BACKENDS),
            hint="--target emulated",
        )
    on_tpu = os.environ.get("PJRT_DEVICE") == "TPU"
    return Target(
        name="torch-xla",
        devices=devices,
        platform="xla",
        parallelism=parallelism,
        backend=_TORCH_XLA_BACKENDS[parallelism],
        nan=Nan.PAYLOAD,
        chips=find_tpu().chips if on_tpu else (),
        environment=stack_environment()
        | {PLATFORM: Platform.HOST, "VLLM_PLUGINS": "harness"}
        | ({} if on_tpu else {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices)}),
    )


Share = tuple[int, int] | None
TARGETS: dict[str, Callable[..., Target]] = {
    "emulated": emulated_target,
    "tpu": tpu_target,
    "torch-xla": torch_xla_target,
}


def target_named(
    name: str,
    devices: int | None = None,
    parallelism: Parallelism = Parallelism.TENSOR,
    share: Share = None,
) -> Target:
    """The target a user asked for.

    Args:
        name: one of :data:`TARGETS`.
        devices: size of the mesh; the target's own default where None.
        parallelism: how experts are spread over it.
        share: ``(number, count)`` where several workers divide a host's chips.

    Raises:
        BadInput: there is no such target, or not with that many devices.
        TargetUnavailable: this machine, or this environment, has none.
    """
    if name not in TARGETS:
        raise BadInput(
            f"unknown target {name!r}",
            where="--target",
            expected="one of " + ", ".join(TARGETS),
            hint="--target emulated",
        )
    if name == "tpu":
        return tpu_target(devices, parallelism, share)
    return TARGETS[name](devices, parallelism)


def _count(devices: int | None) -> int:
    """Devices of one host; a TPU's has eight at most, and its chips are counted, too."""
    return require_count(
        4 if devices is None else devices, "devices", where="--devices",
        most=MOST_EMULATED_DEVICES, why="each takes threads and memory of one machine",
    )  # fmt: skip


def _share(chips: tuple[int, ...], share: Share) -> tuple[int, ...]:
    """The chips of worker ``number`` of ``count``; workers beyond the chips share the last ones."""
    if share is None:
        return chips
    number, count = share
    size = max(1, len(chips) // count)
    start = min(number * size, len(chips) - size)
    return chips[start : start + size]


def _require_torch_xla() -> None:
    try:
        xla, torch = version("torch-xla"), version("torch")
    except PackageNotFoundError as error:
        raise TargetUnavailable(
            f"{error.name} is not installed",
            where="--target torch-xla",
            expected="torch_xla 2.9.0 with torch 2.9",
            hint="a stack with torch 2.9, such as STACK=0.26",
        ) from error
    if Version(xla).release[:2] != Version(torch).release[:2]:
        raise TargetUnavailable(
            f"torch_xla {xla} does not fit torch {torch}",
            where="--target torch-xla",
            expected="the same minor release of both",
            hint="a stack with torch 2.9, such as STACK=0.26",
        )
