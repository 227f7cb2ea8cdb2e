"""What a load brings into an engine's workers: the layers around the loader under test.

vLLM calls the plugins of the group ``vllm.general_plugins`` in every process of an engine, once,
before it makes a worker (vLLM ``plugins/__init__.py``, ``load_general_plugins``). :func:`plugin` is
one. It does something in a process that has a :class:`LoadSession` alone: a load of the harness
began there, or the worker's environment names the function that begins one. In any other engine of
an environment that the harness is installed in, nothing is registered and nothing recorded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from harness.load.loader_layers import LoaderLayer, layered
from harness.load.target import Target

#: Names, in a worker that another process of the harness asked for, what begins its session, as
#: ``module:function``. It is taken out as it is read, so that no process started there has it.
BEGIN = "HARNESS_BEGIN"


@dataclass
class LoadSession:
    """One load of the harness, in the process that holds the weights.

    Attributes:
        target: where to.
        layers: around the loader under test, the innermost first.
        devices: of the mesh, where upstream is not to look for them.
        began: when it began, in seconds of :func:`time.perf_counter`.
        mesh: that upstream made, platform and number of each device, where the worker told.
        load_began: when upstream made the loader; None before.
        registered: whether the loader is registered inside :attr:`layers`.
    """

    target: Target
    layers: Sequence[LoaderLayer]
    devices: Sequence[Any] | None = None
    began: float = field(default_factory=time.perf_counter)
    mesh: Sequence[tuple[str, int]] | None = None
    load_began: float | None = None
    registered: bool = False


#: The load that is under way in this process; None for an engine of somebody else.
current: LoadSession | None = None


@contextmanager
def entered(begun: LoadSession) -> Iterator[None]:
    """Have the engine's workers in this process be of ``begun`` while the body runs."""
    global current
    current = begun
    try:
        _register_here(begun)
        yield
    finally:
        current = None


def plugin() -> None:
    """vLLM's general plugin: register the loader, inside the layers of the session.

    Raises:
        Exception: whatever the named function does: then the worker does not start.
    """
    global current
    if current is None and (begin := os.environ.pop(BEGIN, "")):
        module, function = begin.split(":")
        current = getattr(import_module(module), function)()
    if current is not None and not current.registered:
        _register(current)


def _register_here(begun: LoadSession) -> None:
    """Have vLLM call its plugins; it does so once in a process, of which this may be a later load.

    An environment that was made before this plugin was named, or a ``VLLM_PLUGINS`` without it,
    leaves it out: here it is called anyhow.
    """
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if not begun.registered:
        plugin()


def _register(begun: LoadSession) -> None:
    from tpu_inference.models.vllm.vllm_model_loader import RunaiIncrementalModelLoader
    from vllm.model_executor.model_loader import register_model_loader

    loader = layered(RunaiIncrementalModelLoader, [*begun.layers, _timing(begun)])
    register_model_loader("runai_streamer")(loader)
    begun.registered = True


def _timing(begun: LoadSession) -> LoaderLayer:
    """A layer that notes when the first loader is made: upstream's load begins."""

    def layer(base: type[Any]) -> type[Any]:
        class TimedLoader(base):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                if begun.load_began is None:
                    begun.load_began = time.perf_counter()
                super().__init__(*args, **kwargs)

        return TimedLoader

    return layer


@contextmanager
def alone() -> Iterator[None]:
    """Have tpu-inference take this process for the only host while the body runs.

    With ``TPU_MULTIHOST_BACKEND=ray`` a configuration gets the Ray executor (``platforms/
    tpu_platform.py``, ``check_and_update_config``), and a worker that is made looks up its TPU's
    coordinates (``worker/tpu_worker.py``, ``init_device``), which CPU devices do not have.
    """
    stated = os.environ.pop(MULTIHOST, None)
    try:
        yield
    finally:
        if stated is not None:
            os.environ[MULTIHOST] = stated


#: tpu-inference's variable: ``ray`` for a worker that is one of several.
MULTIHOST = "TPU_MULTIHOST_BACKEND"


def as_one_of_several() -> None:
    """Load as a Ray worker does: each process places the shards it can address.

    tpu-inference asks the variable when it moves weights (``layers/common/utils.py``,
    ``general_device_put``).
    """
    os.environ[MULTIHOST] = "ray"
