"""What a target can do and how a load onto it is done: one class a target.

:class:`harness.load.target.Target` says what was asked for, and travels to the loading process; a
driver acts for all targets of its name, in the parent and in that process alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from harness.base.bits import Nan
from harness.base.bounds import MOST_EMULATED_DEVICES, MOST_EMULATED_HOSTS, require_count
from harness.base.errors import TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.devices.parameter_layout import HOST, Packing
from harness.families.family import Part
from harness.load.loaded import Loaded
from harness.load.loader_layers import LoaderLayer
from harness.load.target import Parallelism, Share, Target


class Capability(StrEnum):
    """What a target may be able to do; where it cannot, the reader of the capability says so.

    - ``several hosts``: its mesh can be over the devices of several processes.
    - ``meshes``: its mesh can have several axes.
    - ``fixed device order``: its mesh has the devices asked for in the order asked for; without
      it, upstream orders them.
    - ``memory of its own``: its devices do not share the host's memory.
    - ``own models``: some models are served by tpu-inference's own JAX models; without it, all are
      by vLLM's.
    """

    SEVERAL_HOSTS = "several hosts"
    MESHES = "meshes"
    FIXED_ORDER = "fixed device order"
    OWN_MEMORY = "memory of its own"
    OWN_MODELS = "own models"


class Limit(NamedTuple):
    """The most that can be asked for, and why not more."""

    most: int
    why: str


class Driver(ABC):
    """A target: what it can do, and how a load onto it is done.

    Nothing here touches a device but :meth:`load`, :meth:`ready` and :meth:`leave`, which run in
    the loading process.

    Attributes:
        name: as the user asks for it.
        platform: what XLA calls the devices.
        capabilities: what it can do.
        backends: the packing of experts that follows from how they are spread.
        nan: what the way to the device does to NaNs.
        modules: of the stack, imported before the first fork; none of them touches a device.
        lazy: what the stack imports when a load needs it first, some of it in some releases only;
            imported then, too, where it is there, so that not each load does it again.
        imports_models: whether vLLM's modules of the families are imported then, too.
        default_devices: size of the mesh where none is asked for.
        hosts: how many a mesh can be over.
        devices: how many a mesh can have, of all hosts together.
    """

    name: ClassVar[str]
    platform: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    backends: ClassVar[Mapping[Parallelism, Backend]]
    nan: ClassVar[Nan]
    modules: ClassVar[tuple[str, ...]]
    lazy: ClassVar[tuple[str, ...]] = ()
    imports_models: ClassVar[bool] = True
    default_devices: ClassVar[int] = 4
    hosts: ClassVar[Limit] = Limit(
        MOST_EMULATED_HOSTS, "each is a process here that holds the stack"
    )
    devices: ClassVar[Limit] = Limit(
        MOST_EMULATED_DEVICES, "each takes threads and memory of this machine"
    )

    def can(self, capability: Capability) -> bool:
        """Whether it has a capability."""
        return capability in self.capabilities

    def target(self, devices: int | None, parallelism: Parallelism, share: Share) -> Target:
        """What is asked for on one host.

        Args:
            devices: size of the mesh, or None.
            parallelism: how experts are spread over it.
            share: ``(number, count)`` where several workers divide the host's devices; only
                devices that one process at a time may open are divided.

        Raises:
            BadInput: not a number of devices of one host.
            TargetUnavailable: this machine, or this environment, has none such.
        """
        devices = self.devices_of_one_host(devices)
        self.require_parallelism(parallelism)
        return Target(
            name=self.name,
            devices=devices,
            platform=self.platform,
            parallelism=parallelism,
            backend=self.backends[parallelism],
            nan=self.nan,
            device_indexes=self.device_indexes(devices),
            environment=self.environment(devices, parallelism),
        )

    @abstractmethod
    def environment(self, devices: int, parallelism: Parallelism) -> dict[str, str]:
        """The variables a load process starts with."""

    def device_indexes(self, devices: int) -> tuple[int, ...]:
        """Ids of the devices a mesh is built from, in order; none where upstream chooses."""
        return ()

    def devices_of_one_host(self, devices: int | None) -> int:
        """How many devices a mesh on one host has.

        Raises:
            BadInput: it is no such number; a TPU's host has eight at most, and they are counted,
                too.
        """
        return require_count(
            self.default_devices if devices is None else devices, "devices", where="--devices",
            most=MOST_EMULATED_DEVICES, why="each takes threads and memory of one machine",
        )  # fmt: skip

    def require_hosts(self, hosts: int) -> None:
        """Refuse what is no number of hosts.

        Raises:
            BadInput: it is none, or too large.
        """
        require_count(hosts, "hosts", where="--hosts", most=self.hosts.most, why=self.hosts.why)

    def require_devices(self, devices: int, where: str = "--devices") -> None:
        """Refuse what is no number of devices of all hosts together.

        Raises:
            BadInput: it is none, or too large.
        """
        limit = self.devices
        require_count(devices, "devices", where=where, most=limit.most, why=limit.why)

    def require_parallelism(self, parallelism: Parallelism) -> None:
        """Refuse a way to spread experts for which there is no packing.

        Raises:
            TargetUnavailable: there is none.
        """
        if parallelism not in self.backends:
            raise TargetUnavailable(
                f"parallelism {parallelism} on {self.name}",
                where="--parallelism",
                expected="one of " + ", ".join(self.backends),
                hint="--target emulated",
            )

    def over_hosts(self, one: Target, hosts: int) -> Target:
        """What is asked for on one host, on several; for those with ``several hosts``.

        Raises:
            TargetUnavailable: nobody says which host this is.
        """
        return replace(one, devices=one.devices * hosts, hosts=hosts, device_indexes=())

    def over_ray(self, one: Target, hosts: int, on: str) -> Target:
        """What is asked for on one host, on several that Ray starts: each finds its own number."""
        return replace(one, devices=one.devices * hosts, hosts=hosts, device_indexes=(), on=on)

    def played_here(self, target: Target) -> list[Target]:
        """The target as each host that this machine plays sees it."""
        return [target]

    def meshed(self, target: Target, mesh: str) -> Target:
        """The target as a mesh of several axes; for those with ``meshes``."""
        return replace(target, mesh=mesh)

    def packing(self, versions: Mapping[str, str]) -> Packing:
        """What these releases do to parameters; nothing, unless a target says otherwise."""
        return HOST

    def ready(self, target: Target) -> Sequence[Any] | None:
        """Make this process what the target says.

        Returns:
            The devices of the mesh, or None where the stack finds them by itself.

        Raises:
            TargetUnavailable: it is something else already.
        """
        return None

    def leave(self, target: Target) -> None:  # noqa: B027 - most have nothing to leave
        """End this process's part in a slice, when all hosts have come so far."""

    @abstractmethod
    def load(
        self,
        checkpoint: str,
        target: Target,
        parts: Collection[Part],
        *,
        overrides: Mapping[str, Any],
        layers: Sequence[LoaderLayer],
    ) -> Loaded:
        """Stream ``checkpoint`` onto ``target``: see :func:`harness.load.engine.load`.

        Args:
            checkpoint: the model path vLLM is given.
            target: where to.
            parts: what to load.
            overrides: of the model's configuration, as vLLM's ``hf_overrides``.
            layers: around the loader under test, the innermost first.
        """

    @abstractmethod
    def alive(self) -> bool:
        """Whether what it goes through has touched a device in this process."""
