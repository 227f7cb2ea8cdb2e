"""What a load is asked for: a mesh of devices, and the environment that makes them.

A target is passive, and travels to the loading process as it stands. What acts for it is the class
of its name (:mod:`harness.load.targets`). The device count and the platform are decided by
environment variables before the first import, so each load runs in a process started with this
environment, and the parent never touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from harness.base.bits import Nan
from harness.devices.expert_layout import Backend

#: ``(number, count)`` of the workers that divide a host's chips among them.
Share = tuple[int, int] | None


class Parallelism(StrEnum):
    """How the experts of a layer are spread over the mesh.

    - ``tensor``: every device holds a part of every expert.
    - ``expert``: every device holds some experts whole.
    - ``expert-kernel``: the same, packed for the fused kernel (``USE_MOE_EP_KERNEL=1``).
    """

    TENSOR = "tensor"
    EXPERT = "expert"
    EXPERT_KERNEL = "expert-kernel"


class Implementation(StrEnum):
    """Which of upstream's implementations of a model is asked for.

    - ``auto``: tpu-inference chooses, by architecture and load format
      (``models/common/model_loader.py``, ``resolve_model_architecture``, 0.21 to 0.32).
    - ``vllm``: vLLM's.
    - ``jax``: tpu-inference's own, of flax's nnx; vLLM's where it has none.
    """

    AUTO = "auto"
    VLLM = "vllm"
    JAX = "jax"


@dataclass(frozen=True)
class Target:
    """A mesh to load onto.

    Attributes:
        name: the name the user asks for.
        devices: number of devices in the mesh.
        platform: what XLA calls the devices: ``cpu``, ``tpu``, or ``xla`` if torch_xla names
            them.
        parallelism: how experts are spread over the mesh.
        backend: the packing that follows from it.
        nan: what happens to NaNs on the way to this target's devices.
        device_indexes: ids of the JAX devices that form the mesh, in order; empty for those
            the process sees.
        chips: the TPU chips to lock while a load runs.
        environment: the variables a load process starts with.
        mesh: the axes of the mesh, if it has more than one (:mod:`harness.load.meshes`).
        engine: arguments of vLLM's ``EngineArgs`` that ask for such a mesh.
        strategy: tpu-inference's ``sharding_strategy`` that asks for it.
        hosts: number of processes that divide the devices.
        host: the number of this load's own process.
        coordinator: where the hosts of an emulated slice meet, ``address:port``.
        impl: which implementation of the model to load. Users and the options leave it at
            ``auto``; every family describes vLLM's.
        on: what starts the hosts, if the harness does not: ``ray``, or ``ray:ADDRESS``.
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
    impl: Implementation = Implementation.VLLM
    on: str = ""

    def __str__(self) -> str:
        text = f"{self.name}, {self.devices} device{'' if self.devices == 1 else 's'}"
        text += f" as {self.mesh}" if self.mesh else ""
        text += f" on {self.hosts} hosts" if self.hosts > 1 else ""
        text += " of a Ray cluster" if self.on else ""
        text += "" if self.parallelism is Parallelism.TENSOR else f", {self.parallelism}"
        return text if self.impl is not Implementation.JAX else f"{text}, {self.impl}"
