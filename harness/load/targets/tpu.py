"""The TPU target: the chips of this host, found without touching them, or of a whole slice.

Whoever initialises libtpu owns the chips until it ends, so the process that starts loads must
not. All that is needed can be read from device files, PCI ids and the environment, the places
libtpu, JAX (``jax/_src/hardware_utils.py``, 0.10.2) and tpu-inference (``tpu_info.py``, 0.26.0)
read themselves.

On a slice this process is one of its hosts: every host runs the same command, and ``harness
merge`` makes one report of theirs.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.base.bounds import MOST_EMULATED_DEVICES, MOST_TPU_HOSTS
from harness.base.errors import TargetUnavailable
from harness.load.target import Parallelism, Share, Target
from harness.load.targets.driver import Capability, Limit
from harness.load.targets.tpu_inference import TpuInference

_GOOGLE = "0x1ae0"

#: PCI device ids of TPU chips and the generation each is (JAX ``hardware_utils.py``).
_GENERATIONS: dict[str, str] = {
    "0x0027": "v3",
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "tpu7x",
}

#: Devices JAX shows for a chip: two tensor cores each from TPU7x on, and up to v3; else one.
_DEVICES_PER_CHIP = {"v3": 2, "tpu7x": 2}

#: Process bounds of a part of a host's chips, ``x,y,z``. libtpu takes these shapes only.
_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
_FIRST_PORT = 8476

#: Who tells a host of a slice its number: GKE and Cloud TPU, and libtpu's own name for it.
_NUMBER = ("TPU_WORKER_ID", "CLOUD_TPU_TASK_ID")


class Tpu(TpuInference):
    """The TPU chips of this host, or a part of them; all devices JAX shows by default."""

    name = "tpu"
    platform = "tpu"
    capabilities = frozenset(
        {
            Capability.SEVERAL_HOSTS,
            Capability.MESHES,
            Capability.OWN_MEMORY,
            Capability.OWN_MODELS,
        }
    )
    hosts = Limit(MOST_TPU_HOSTS, "no slice has more")
    devices = Limit(MOST_EMULATED_DEVICES * MOST_TPU_HOSTS, "no slice has more")

    def target(self, devices: int | None, parallelism: Parallelism, share: Share) -> Target:
        """What is asked for on this host; its chips are divided among workers by ``share``.

        Raises:
            BadInput: not a number of devices.
            TargetUnavailable: no TPU here, or not so many chips.
        """
        if devices is not None:
            self.devices_of_one_host(devices)
        host = find_tpu()
        chips = _share(host.chips, share)
        wanted = len(chips) * host.devices_per_chip if devices is None else devices
        count = -(-wanted // host.devices_per_chip)
        if count > len(host.chips):
            raise TargetUnavailable(
                f"{wanted} devices", where="--devices",
                expected=f"at most {host.devices} ({host})", hint=f"--devices {host.devices}",
            )  # fmt: skip
        # More than a worker's share: from the first chip on; the locks make the others wait.
        chips = chips[:count] if count <= len(chips) else host.chips[:count]
        asked = super().target(wanted, parallelism, share)
        environment = asked.environment | chip_environment(host, chips)
        return replace(asked, chips=chips, environment=environment)

    def over_hosts(self, one: Target, hosts: int) -> Target:
        """This host of a slice."""
        return replace(super().over_hosts(one, hosts), host=host_number(hosts))


TARGET = Tpu()


@dataclass(frozen=True)
class TpuHost:
    """The TPU chips of this host.

    Attributes:
        chips: numbers of the chips this process may use, ascending.
        generation: ``v6e``, ``tpu7x`` …, or ``unknown``.
        topology: as the environment states it, else empty.
        libtpu: version of the package, or the path ``TPU_LIBRARY_PATH`` names.
        whole: whether ``chips`` are all of the host's.
    """

    chips: tuple[int, ...]
    generation: str
    topology: str
    libtpu: str
    whole: bool = True

    @property
    def devices_per_chip(self) -> int:
        """Devices JAX shows for one chip."""
        return _DEVICES_PER_CHIP.get(self.generation, 1)

    @property
    def devices(self) -> int:
        """Devices JAX shows for all of :attr:`chips`."""
        return len(self.chips) * self.devices_per_chip

    def __str__(self) -> str:
        chips = f"{len(self.chips)} chip{'' if len(self.chips) == 1 else 's'}"
        topology = f", topology {self.topology}" if self.topology else ""
        return f"TPU {self.generation}, {chips}{topology}, libtpu {self.libtpu}"


def find_tpu(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> TpuHost:
    """The TPU of this host; nothing is opened.

    Args:
        environ: the environment to read.
        root: where ``dev`` and ``sys`` are.

    Raises:
        TargetUnavailable: no chip or no libtpu; the message says what was looked for.
    """
    numbers = _chip_numbers(root)
    libtpu = _libtpu(environ)
    if not numbers or not libtpu:
        raise TargetUnavailable(
            "no TPU chip" if not numbers else "no libtpu",
            where="/dev/accel*, /dev/vfio/*"
            if not numbers
            else "TPU_LIBRARY_PATH, the package libtpu",
            expected="a TPU VM with its device files and with libtpu installed",
            hint="--target emulated runs anywhere; on a TPU VM run as a user who may read "
            "/dev/accel* or /dev/vfio, in an environment with vllm-tpu",
        )
    visible = _visible(environ, numbers)
    return TpuHost(
        chips=visible,
        generation=_generation(environ, root),
        topology=environ.get("TPU_TOPOLOGY") or environ.get("TPU_CHIPS_PER_HOST_BOUNDS") or "",
        libtpu=libtpu,
        whole=visible == numbers,
    )


def host_number(hosts: int, environ: Mapping[str, str] = os.environ) -> int:
    """Which host of a TPU slice this is.

    Raises:
        TargetUnavailable: the environment does not say, or not one of so many hosts.
    """
    stated = next((environ[name] for name in _NUMBER if environ.get(name)), "")
    if not re.fullmatch(r"[0-9]{1,6}", stated) or int(stated) >= hosts:
        raise TargetUnavailable(
            f"{stated!r} is not the number of one of {hosts} hosts",
            where=" or ".join(_NUMBER),
            expected=f"0 to {hosts - 1}, as GKE sets it on the hosts of a slice",
            hint="run one process on every host of the slice; --hosts 1 on a single host",
        )
    return int(stated)


def chip_environment(host: TpuHost, chips: tuple[int, ...]) -> dict[str, str]:
    """The variables that give a process ``chips`` and no others.

    A process on all of the host's chips needs none. On a part of them each process is a slice of
    its own, with a port of its own, as tpu-inference sets it for its data-parallel ranks
    (``worker/tpu_worker.py``, ``_setup_dp_chip_isolation``).

    Raises:
        TargetUnavailable: libtpu has no bounds for so many chips.
    """
    if host.whole and chips == host.chips:
        return {}
    if len(chips) not in _BOUNDS:
        raise TargetUnavailable(
            f"no mesh on {len(chips)} of the host's chips",
            where="--devices",
            expected=f"{', '.join(map(str, _BOUNDS))} chips, or all of the host's",
            hint=f"--devices {max(n for n in _BOUNDS if n <= len(chips)) * host.devices_per_chip}",
        )
    port = _FIRST_PORT + chips[0]
    return {
        "TPU_VISIBLE_CHIPS": ",".join(map(str, chips)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS[len(chips)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_PORT": str(port),
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "CLOUD_TPU_TASK_ID": "0",
    }


def _share(chips: tuple[int, ...], share: Share) -> tuple[int, ...]:
    """The chips of worker ``number`` of ``count``; workers beyond the chips share the last ones."""
    if share is None:
        return chips
    number, count = share
    size = max(1, len(chips) // count)
    start = min(number * size, len(chips) - size)
    return chips[start : start + size]


def _chip_numbers(root: Path) -> tuple[int, ...]:
    """Chips by their device files: ``/dev/accel0`` …, or ``/dev/vfio/0`` … from v5e on."""
    accel = [re.fullmatch(r"accel(\d+)", path.name) for path in root.glob("dev/accel*")]
    numbers = [int(match[1]) for match in accel if match]
    if not numbers:
        vfio = sum(path.name.isdigit() for path in root.glob("dev/vfio/*"))
        numbers = list(range(vfio))  # a group's name is no chip number
    return tuple(sorted(numbers))


def _visible(environ: Mapping[str, str], numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The chips that ``TPU_VISIBLE_CHIPS``, or its older name, leaves to this process."""
    stated = environ.get("TPU_VISIBLE_CHIPS") or environ.get("TPU_VISIBLE_DEVICES")
    if not stated:
        return numbers
    return tuple(sorted({int(part) for part in re.findall(r"\d+", stated)} & set(numbers)))


def _generation(environ: Mapping[str, str], root: Path) -> str:
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        if vendor.read_text().strip() == _GOOGLE:
            device = vendor.with_name("device").read_text().strip()
            if device in _GENERATIONS:
                return _GENERATIONS[device]
    stated = environ.get("TPU_ACCELERATOR_TYPE", "").rpartition("-")[0]
    return {"v5litepod": "v5e"}.get(stated, stated) or "unknown"


def _libtpu(environ: Mapping[str, str]) -> str:
    if path := environ.get("TPU_LIBRARY_PATH"):
        return path if Path(path).is_file() else ""
    if importlib.util.find_spec("libtpu") is None:
        return ""
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "of unknown version"
