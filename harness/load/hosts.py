"""Targets of several hosts: one process on each, the mesh over the devices of all.

The emulated target plays all hosts on this machine. On a TPU slice this process is one of them:
every host runs the same command, and ``harness merge`` makes one report of theirs.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import replace

from harness.base.bounds import (
    MOST_EMULATED_DEVICES,
    MOST_EMULATED_HOSTS,
    MOST_TPU_HOSTS,
    require_count,
)
from harness.base.errors import BadInput, TargetUnavailable
from harness.load.target import Parallelism, Share, Target, target_named

#: Who tells a host of a slice its number: GKE and Cloud TPU, and libtpu's own name for it.
_NUMBER = ("TPU_WORKER_ID", "CLOUD_TPU_TASK_ID")


def target_on(
    name: str,
    devices: int | None = None,
    parallelism: Parallelism = Parallelism.TENSOR,
    hosts: int = 1,
    share: Share = None,
) -> Target:
    """The named target over the devices of several hosts.

    Args:
        name: of the target, one that goes through tpu-inference where hosts are several.
        devices: of all hosts together; where None, each has the target's own default.
        parallelism: how experts are spread over them.
        hosts: how many; 1 is the target itself.
        share: see :func:`harness.load.target.target_named`.

    Raises:
        BadInput: no number of hosts or devices, too many, or the hosts do not divide the devices.
        TargetUnavailable: as of the target; it has one host only; nobody says which host this is.
    """
    _require_counts(name, devices, hosts)
    if hosts == 1:
        return target_named(name, devices, parallelism, share)
    if name == "torch-xla":
        raise TargetUnavailable(
            f"{hosts} hosts on torch-xla", where="--hosts",
            expected="a target that goes through tpu-inference", hint="--target emulated",
        )  # fmt: skip
    if devices is not None and devices % hosts:
        raise BadInput(
            f"{hosts} hosts with {devices} devices on {name}",
            where="--hosts",
            expected="hosts that divide the devices",
            hint="--target emulated --hosts 2 --devices 8",
        )
    each = None if devices is None else devices // hosts
    one = target_named(name, each, parallelism, share)
    several = replace(one, devices=one.devices * hosts, hosts=hosts, device_indexes=())
    if name != "tpu":
        return several
    # From the start: its worker is to look its coordinates up, which a TPU has.
    environment = one.environment | {"TPU_MULTIHOST_BACKEND": "ray"}
    return replace(several, host=host_number(hosts), environment=environment)


def _require_counts(name: str, devices: int | None, hosts: int) -> None:
    """Neither hosts nor devices beyond what this machine plays, or what a slice has."""
    on_tpu = name == "tpu"
    most = MOST_TPU_HOSTS if on_tpu else MOST_EMULATED_HOSTS
    why = "no slice has more" if on_tpu else "each is a process here that holds the stack"
    require_count(hosts, "hosts", where="--hosts", most=most, why=why)
    if devices is not None:
        require_devices(name, devices)


def require_devices(name: str, devices: int, where: str = "--devices") -> None:
    """No more devices, of all hosts together, than the named target can have anywhere.

    Raises:
        BadInput: there are, or it is no number of devices.
    """
    on_tpu = name == "tpu"
    most = MOST_EMULATED_DEVICES * (MOST_TPU_HOSTS if on_tpu else 1)
    why = "no slice has more" if on_tpu else "each takes threads and memory of this machine"
    require_count(devices, "devices", where=where, most=most, why=why)


def host_number(hosts: int, environ: Mapping[str, str] = os.environ) -> int:
    """Which host of a TPU slice this is.

    Raises:
        TargetUnavailable: the environment does not say, or not one of so many hosts.
    """
    stated = next((environ[name] for name in _NUMBER if environ.get(name)), "")
    if not re.fullmatch(r"[0-9]{1,6}", stated) or int(stated) >= hosts:
        raise TargetUnavailable(
            f"not the number of one of {hosts} hosts: {stated!r}",
            where=" or ".join(_NUMBER),
            expected=f"0 to {hosts - 1}, as GKE sets it on the hosts of a slice",
            hint="run one process on every host of the slice; --hosts 1 on a single host",
        )
    return int(stated)


def played_here(target: Target) -> list[Target]:
    """The hosts this machine plays: all of an emulated slice, of a TPU slice its own."""
    if target.hosts == 1 or target.platform == "tpu":
        return [target]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [replace(target, host=n, coordinator=coordinator) for n in range(target.hosts)]
