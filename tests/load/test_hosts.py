"""Targets of several hosts: what is asked for, and which host this is."""

from __future__ import annotations

import pytest

from harness.base.errors import BadInput, TargetUnavailable
from harness.load.targets.known_targets import driver_of, meshed, target_named, target_on
from harness.load.targets.tpu import host_number


def test_one_host_is_the_target_itself() -> None:
    assert target_on("emulated", 2) == target_named("emulated", 2)
    target = target_named("emulated", 2)
    assert driver_of(target).played_here(target) == [target]


def test_the_emulated_hosts_meet_and_each_knows_its_number() -> None:
    target = target_on("emulated", 8, hosts=2)
    assert str(target) == "emulated, 8 devices on 2 hosts"
    first, second = driver_of(target).played_here(target)
    assert (first.host, second.host) == (0, 1)
    assert first.coordinator == second.coordinator
    assert first.coordinator.startswith("127.0.0.1:")


def test_each_host_has_the_targets_own_default() -> None:
    assert target_on("emulated", hosts=3).devices == 12


def test_a_mesh_of_several_axes_over_hosts() -> None:
    target = meshed("emulated", "data=2,model=4", hosts=2)
    assert (target.devices, target.hosts) == (8, 2)
    assert str(target) == "emulated, 8 devices as data=2,model=4 on 2 hosts"


@pytest.mark.parametrize(("name", "devices", "hosts"), [("emulated", 5, 2), ("emulated", 4, 0)])
def test_what_cannot_be(name: str, devices: int, hosts: int) -> None:
    with pytest.raises(BadInput, match=f"{hosts} hosts") as raised:
        target_on(name, devices, hosts=hosts)
    assert raised.value.where == "--hosts"


@pytest.mark.parametrize(("environ", "number"), [
    ({"TPU_WORKER_ID": "3"}, 3),
    ({"CLOUD_TPU_TASK_ID": "0"}, 0),
    ({"TPU_WORKER_ID": "1", "CLOUD_TPU_TASK_ID": "0"}, 1),
])  # fmt: skip
def test_the_environment_says_which_host_this_is(environ: dict[str, str], number: int) -> None:
    assert host_number(4, environ) == number


@pytest.mark.parametrize("environ", [{}, {"TPU_WORKER_ID": "4"}, {"TPU_WORKER_ID": "first"}])
def test_an_environment_that_does_not_say(environ: dict[str, str]) -> None:
    with pytest.raises(TargetUnavailable, match="is not the number of one of 4 hosts"):
        host_number(4, environ)


def test_torch_xla_has_one_host() -> None:
    with pytest.raises(TargetUnavailable, match="2 hosts on torch-xla"):
        target_on("torch-xla", 4, hosts=2)
