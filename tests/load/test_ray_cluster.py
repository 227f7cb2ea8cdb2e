"""Which nodes of a Ray cluster are hosts, and who beside a worker tells that it lives."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from harness.base.errors import BadInput, TargetUnavailable
from harness.load.ray_cluster import Attendant, nodes_of, told_in_time
from harness.load.targets.known_targets import target_on
from tests.support.waiting import wait_for


def ray_node(name: str, tpu: float = 4.0, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": 8.0} | ({"TPU": tpu} if tpu else {})
    return {
        "NodeID": name, "NodeManagerAddress": f"10.0.0.{ord(name[0])}", "Alive": alive,
        "Resources": resources,
    }  # fmt: skip


def test_the_nodes_with_chips_are_hosts_and_this_one_is_the_first() -> None:
    known = [ray_node("c"), ray_node("head", 0), ray_node("b"), ray_node("a", alive=False)]
    assert [(n.host, n.id) for n in nodes_of(known, "c", 2)] == [(0, "c"), (1, "b")]
    assert str(nodes_of(known, "c", 2)[1]) == "host 1, Ray node b at 10.0.0.98"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ([ray_node("a")], "1 of 1 nodes have the resource TPU"),
        ([ray_node("a"), ray_node("b"), ray_node("c")], "3 of 3 nodes have the resource TPU"),
        ([ray_node("a"), ray_node("b", 0)], "1 of 2 nodes have the resource TPU"),
        ([ray_node("b"), ray_node("c"), ray_node("a", 0)], "this node has no TPU"),
    ],
    ids=["too few", "too many", "not declared", "the driver elsewhere"],
)
def test_a_cluster_of_other_nodes_is_refused(known: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(TargetUnavailable) as raised:
        nodes_of(known, "a", 2)
    assert raised.value.what == told


@pytest.mark.parametrize("on", ["slurm", "ray:", "rays", "ray :1"])
def test_what_else_is_to_start_hosts_is_refused(on: str) -> None:
    with pytest.raises(BadInput, match="unknown place for hosts") as raised:
        target_on("emulated", 8, hosts=2, on=on)
    assert raised.value.where == "--on"


def test_one_host_needs_no_ray() -> None:
    with pytest.raises(BadInput, match="one host on a Ray cluster"):
        target_on("emulated", 4, hosts=1, on="ray")


def test_a_target_says_that_ray_starts_its_hosts() -> None:
    target = target_on("emulated", 8, hosts=2, on="ray:head:6379")
    assert str(target) == "emulated, 8 devices on 2 hosts of a Ray cluster"


def test_an_attendant_sees_its_worker_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        attendant = Attendant(1, "here:1")
        assert attendant.ended() == 0.0
        assert attendant.meet(worker.pid) == (1, "here:1")
        assert attendant.ended() == 0.0
        worker.kill()
        wait_for(lambda: attendant.ended() > 0)
        first = attendant.ended()
        assert attendant.ended() == first


def test_an_attendant_that_is_asked_looks_itself() -> None:
    """Its thread may be late."""

    class Late(Attendant):
        def watch(self, seconds: float | None = None) -> None:
            if seconds is not None:
                super().watch(seconds)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        attendant = Late(1, "here:1")
        attendant.meet(worker.pid)
        assert attendant.ended() == 0.0
        worker.kill()
        worker.wait()
        assert attendant.ended() > 0


def test_a_worker_that_is_not_quite_dead_is_asked_for_again() -> None:
    answers = iter([None, None, "host 1"])
    assert told_in_time(lambda: next(answers), 60) == "host 1"
    assert told_in_time(lambda: None, 0.3) is None
