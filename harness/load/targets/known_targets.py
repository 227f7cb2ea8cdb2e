"""All targets, and the one a user asks for.

A file of this package that holds a ``TARGET`` is one; another package brings one by an entry point
in the group ``harness.targets``.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points

import harness.load.targets
from harness.base.bounds import shown
from harness.base.errors import BadInput, TargetUnavailable
from harness.load.meshes import mesh_sizes
from harness.load.target import Implementation, Parallelism, Share, Target
from harness.load.targets.driver import Capability, Driver

_GROUP = "harness.targets"


@cache
def targets() -> dict[str, Driver]:
    """All targets by name, in the order of their files.

    Raises:
        BadInput: what an entry point brings is no target, or has the name of another.
    """
    found: dict[str, Driver] = {}
    for where, driver in _registered():
        if not isinstance(driver, Driver) or driver.name in found:
            raise BadInput(
                f"not a target, or a name that is taken: {driver!r}",
                where=where,
                expected=f"a Driver that is called none of {', '.join(found)}",
                hint=f"mend or uninstall the package that has this entry point in {_GROUP}",
            )
        found[driver.name] = driver
    return found


def _registered() -> Iterator[tuple[str, object]]:
    """Where each target is from, and the target."""
    for name in sorted(
        module.name for module in pkgutil.iter_modules(harness.load.targets.__path__)
    ):
        module = importlib.import_module(f"{harness.load.targets.__name__}.{name}")
        if hasattr(module, "TARGET"):
            yield module.__name__, module.TARGET
    for entry in entry_points(group=_GROUP):
        yield entry.value, entry.load()


def driver_named(name: str) -> Driver:
    """The target called ``name``.

    Raises:
        BadInput: there is none.
    """
    if name not in targets():
        raise BadInput(
            f"unknown target {name!r}",
            where="--target",
            expected="one of " + ", ".join(targets()),
            hint="--target emulated",
        )
    return targets()[name]


def driver_of(target: Target) -> Driver:
    """What acts for a target, in whichever process this is."""
    return driver_named(target.name)


def target_named(
    name: str,
    devices: int | None = None,
    parallelism: Parallelism = Parallelism.TENSOR,
    share: Share = None,
) -> Target:
    """The target a user asked for, on one host.

    Args:
        name: one of :func:`targets`.
        devices: number of devices in the mesh; None takes the target's default.
        parallelism: how experts are spread over the mesh.
        share: ``(number, count)`` if several workers divide a host's chips.

    Raises:
        BadInput: there is no such target, or it cannot have that many devices.
        TargetUnavailable: this machine or environment lacks the target.
    """
    return driver_named(name).target(devices, parallelism, share)


def target_on(
    name: str,
    devices: int | None = None,
    parallelism: Parallelism = Parallelism.TENSOR,
    hosts: int = 1,
    share: Share = None,
    on: str = "",
) -> Target:
    """The named target over the devices of several hosts: one process on each.

    Args:
        name: of the target, one with ``several hosts`` where hosts are several.
        devices: of all hosts together; where None, each has the target's own default.
        parallelism: how experts are spread over them.
        hosts: how many; 1 is the target itself.
        share: see :func:`target_named`.
        on: what starts them, where the harness does not: ``ray``, or ``ray:ADDRESS``.

    Raises:
        BadInput: no number of hosts or devices, too many, or the hosts do not divide the devices.
        TargetUnavailable: as of the target; it has one host only; nobody says which host this is.
    """
    driver = driver_named(name)
    driver.require_hosts(hosts)
    if devices is not None:
        driver.require_devices(devices)
    if on:
        _require_ray(on, hosts)
    if hosts == 1:
        return driver.target(devices, parallelism, share)
    if not driver.can(Capability.SEVERAL_HOSTS):
        raise _goes_elsewhere(f"{hosts} hosts on {name}", "--hosts")
    if devices is not None and devices % hosts:
        raise BadInput(
            f"{hosts} hosts with {devices} devices on {name}",
            where="--hosts",
            expected="hosts that divide the devices",
            hint="--target emulated --hosts 2 --devices 8",
        )
    each = None if devices is None else devices // hosts
    one = driver.target(each, parallelism, share)
    return driver.over_ray(one, hosts, on) if on else driver.over_hosts(one, hosts)


def _require_ray(on: str, hosts: int) -> None:
    kind, _, address = on.partition(":")
    if kind != "ray" or (":" in on and not address):
        raise BadInput(
            f"unknown place for hosts: {shown(on)}",
            where="--on",
            expected="ray, for the cluster this machine belongs to, or ray:ADDRESS",
            hint="--on ray --hosts 2; without it the harness starts the hosts itself",
        )
    if hosts == 1:
        raise BadInput(
            "one host on a Ray cluster", where="--hosts",
            expected="the number of the cluster's nodes with TPUs, at least two",
            hint="--hosts 2; a single host needs no Ray",
        )  # fmt: skip


def meshed(
    name: str,
    mesh: str,
    parallelism: Parallelism = Parallelism.TENSOR,
    hosts: int = 1,
    share: Share = None,
    on: str = "",
) -> Target:
    """The named target with a mesh of several axes.

    Args:
        name: of the target, one with ``meshes``.
        mesh: sizes of its axes, ``expert=2,model=2``; ``,2d`` keeps the mesh of two axes.
        parallelism: how experts are spread over it.
        hosts: processes its devices are divided among.
        share: see :func:`target_named`.
        on: see :func:`target_on`.

    Raises:
        BadInput: the mesh is malformed, or has too many devices.
        TargetUnavailable: the target has no such mesh, or not so many devices.
    """
    sizes, _ = mesh_sizes(mesh)
    driver = driver_named(name)
    if not driver.can(Capability.MESHES):
        raise _goes_elsewhere(f"a mesh of several axes on {name}", "mesh")
    devices = math.prod(sizes.values())
    driver.require_devices(devices, where="--mesh")
    return driver.meshed(target_on(name, devices, parallelism, hosts, share, on), mesh)


def served_by(target: Target, impl: Implementation) -> Target:
    """The target, asked for an implementation of the model.

    Raises:
        TargetUnavailable: it has vLLM's alone, and was asked for tpu-inference's own.
    """
    if driver_of(target).can(Capability.OWN_MODELS):
        return replace(target, impl=impl)
    if impl is Implementation.JAX:
        raise _goes_elsewhere(f"tpu-inference's own models on {target.name}", "--impl")
    return replace(target, impl=Implementation.VLLM)


def _goes_elsewhere(what: str, where: str) -> TargetUnavailable:
    return TargetUnavailable(
        what,
        where=where,
        expected="a target that goes through tpu-inference",
        hint="--target emulated",
    )
