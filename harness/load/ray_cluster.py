"""A Ray cluster: the nodes that are hosts of a mesh, as tpu-inference's Ray executor takes them.

That executor takes every node that has the resource ``TPU``, one worker each, and wants one of them
to be the node it runs on (tpu-inference ``executors/ray_distributed_executor.py``,
``_initialize_ray_cluster``). It uses a connection that is there already. This makes one whose
processes have the environment of the load, and ends all of them with it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from harness.base.errors import TargetUnavailable
from harness.load.target import Target

#: What Ray calls a TPU chip, and tpu-inference asks for (``platforms/tpu_platform.py``).
RESOURCE = "TPU"
_HOST_IP = "VLLM_HOST_IP"
#: For a worker that is dying, from its first closed connection on; and between two questions.
_SECONDS_TO_END, _SECONDS_BETWEEN = 10.0, 0.2

_Told = TypeVar("_Told")


class Node(NamedTuple):
    """A node that is a host: its number among them, Ray's id of it, and its address."""

    host: int
    id: str
    address: str

    def __str__(self) -> str:
        return f"host {self.host}, Ray node {self.id[:12]} at {self.address}"


@contextmanager
def connected(target: Target, environment: Mapping[str, str]) -> Iterator[list[Node]]:
    """Have this process drive a job on the cluster while the body runs; its processes end with it.

    Args:
        target: names the cluster, and how many hosts it is to have.
        environment: of the job's processes, whichever node they are on.

    Yields:
        The nodes, this one first.

    Raises:
        TargetUnavailable: there is no cluster, or not with such nodes.
    """
    import ray

    address = target.on.partition(":")[2] or "auto"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": dict(environment)},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TargetUnavailable(
            f"no Ray cluster: {str(error).splitlines()[0]}",
            where=f"--on {target.on}",
            expected="a cluster that is up, of the same releases of Ray and Python as this",
            hint="ray start --head on one host, ray start --address=HEAD:6379 on the others",
        ) from error
    try:
        here = ray.get_runtime_context().get_node_id()
        nodes = nodes_of(ray.nodes(), here, target.hosts)
        os.environ.setdefault(_HOST_IP, nodes[0].address)
        yield nodes
    finally:
        ray.shutdown()


def nodes_of(known: list[dict[str, Any]], here: str, hosts: int) -> list[Node]:
    """The nodes that tpu-inference's executor will take, this one first.

    Args:
        known: what Ray tells of its nodes.
        here: the id of this one.
        hosts: how many there are to be.

    Raises:
        TargetUnavailable: others, or this is none of them.
    """
    found = [n for n in known if n["Alive"] and n["Resources"].get(RESOURCE, 0) >= 1]
    if len(found) != hosts:
        raise TargetUnavailable(
            f"{len(found)} of {len(known)} nodes have the resource {RESOURCE}",
            where="the Ray cluster",
            expected=f"{hosts}: tpu-inference's executor takes all of them",
            hint=f"--hosts {len(found)}, or ray start --resources='{{\"{RESOURCE}\": 4}}' on a "
            "node that has not declared its chips",
        )
    if here not in {node["NodeID"] for node in found}:
        raise TargetUnavailable(
            f"this node has no {RESOURCE}",
            where="the Ray cluster",
            expected="the harness on a node with chips: tpu-inference's executor requires it",
            hint="start it on one of " + ", ".join(n["NodeManagerAddress"] for n in found),
        )
    found.sort(key=lambda node: (node["NodeID"] != here, node["NodeID"]))
    return [
        Node(number, node["NodeID"], node["NodeManagerAddress"])
        for number, node in enumerate(found)
    ]


class Attendant:
    """An actor of the harness on a node, beside the engine's worker there.

    It answers while the worker is busy, so that a worker that died is told from one that works.

    Args:
        host: the node's number.
        coordinator: where an emulated slice meets.
    """

    def __init__(self, host: int, coordinator: str) -> None:
        self._place = (host, coordinator)
        self._worker: list[int] = []  # its pidfd, once it has come
        self._ended = 0.0

    def meet(self, pid: int) -> tuple[int, str]:
        """Take a process for this node's worker; the node's number, and where hosts meet."""
        self._worker = [os.pidfd_open(pid)]
        threading.Thread(target=self.watch, daemon=True).start()
        return self._place

    def watch(self, seconds: float | None = None) -> None:
        """Note when the worker ends, if it does in so many seconds."""
        ended, _, _ = select.select(self._worker, [], [], seconds)
        if ended and not self._ended:
            self._ended = time.time()

    def ended(self) -> float:
        """When the worker ended, in seconds of this node's clock; 0 while it lives or has not come.

        A worker that dies has the executor end all others, so the first to end is the one.
        """
        if self._worker:
            self.watch(0)  # on a busy machine the thread may not have come to it
        return self._ended

    def tell(self, function: str, argument: str) -> str:
        """Run a function of :data:`harness.load.extension.FUNCTIONS` here, without a worker."""
        from harness.load.extension import run_on

        return run_on(None, function, argument)


class Attendants:
    """The actors of all nodes.

    Args:
        nodes: where they are to be.
        coordinator: see :class:`Attendant`.
    """

    def __init__(self, nodes: list[Node], coordinator: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._nodes = nodes
        actor = ray.remote(num_cpus=0)(Attendant)
        self._actors = [
            actor.options(
                name=_name(node.id),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(node.host, coordinator)
            for node in nodes
        ]

    def tell(self, function: str, argument: str) -> list[str]:
        """What each node says, see :meth:`Attendant.tell`.

        Raises:
            TargetUnavailable: one cannot; it is named.
        """
        import ray

        asked = [actor.tell.remote(function, argument) for actor in self._actors]
        told = []
        for node, one in zip(self._nodes, asked, strict=True):
            try:
                told.append(str(ray.get(one)))
            except Exception as error:
                raise TargetUnavailable(
                    f"{node} does not answer: {str(error).strip().splitlines()[-1]}",
                    where="the Ray cluster",
                    expected="nodes that live, with this release of the harness installed",
                    hint="install the same requirements and the harness on all nodes",
                ) from error
        return told

    def lost(self, seconds: float) -> tuple[Node, str] | None:
        """The first node that is gone, else the one whose worker ended first; and which of both.

        A worker that dies closes its connections before it has ended, so another host's error may
        be here first: they are asked again for a while.

        Args:
            seconds: to wait for an answer, until Ray has found out.
        """
        return told_in_time(partial(self._lost, seconds), _SECONDS_TO_END)

    def _lost(self, seconds: float) -> tuple[Node, str] | None:
        """The same, at this moment."""
        import ray

        asked, ended = [actor.ended.remote() for actor in self._actors], dict[float, Node]()
        for node, one in zip(self._nodes, asked, strict=True):
            try:
                when = float(ray.get(one, timeout=seconds))
            except Exception:  # whatever Ray calls it
                return node, "the node died"
            if when:
                ended[when] = node
        return (ended[min(ended)], "the worker's process died") if ended else None


def told_in_time(ask: Callable[[], _Told | None], seconds: float) -> _Told | None:
    """The first answer that is one; None where none comes in so many seconds."""
    end = time.monotonic() + seconds
    while (told := ask()) is None and time.monotonic() < end:
        time.sleep(_SECONDS_BETWEEN)
    return told


def met() -> tuple[int, str]:
    """In a worker: have its node's attendant know it; the node's number, and where hosts meet."""
    import ray

    attendant = ray.get_actor(_name(ray.get_runtime_context().get_node_id()))
    host, coordinator = ray.get(attendant.meet.remote(os.getpid()))
    return int(host), str(coordinator)


def _name(node: str) -> str:
    return f"harness-{node}"
