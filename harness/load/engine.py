"""Loads a checkpoint through the real stack, in the process that calls it, as its target asks."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence

from harness.base.errors import TargetUnavailable
from harness.base.progress import Meter
from harness.families.family import Family, Part
from harness.families.known_families import families
from harness.load.loaded import Ledgers, Loaded
from harness.load.loader_layers import LoaderLayer, cutting
from harness.load.recording import recording
from harness.load.target import Target
from harness.load.targets.known_targets import driver_named, driver_of, targets


def preload(target: str) -> None:
    """Import the stack of the named target, touching no device, so that forked loads need not.

    Raises:
        TargetUnavailable: an import touched a device: the loads forked from here would inherit it.
        Exception: whatever the stack raises when it is imported.
    """
    driver = driver_named(target)
    for module in (*driver.modules, *(_models() if driver.imports_models else ())):
        importlib.import_module(module)
    for module in driver.lazy:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    if any(driver.alive() for driver in targets().values()):
        raise TargetUnavailable(
            "importing the stack touched a device",
            where=f"the loading process of {target}",
            expected="no XLA backend alive before the first load is forked",
            hint="look for a module of the checkout under test that makes an array on import",
        )


def _models() -> Iterator[str]:
    for family in families():
        yield from family.upstream_modules


def leave(target: Target) -> None:
    """End this process's part in a slice, when all hosts have come so far."""
    driver_of(target).leave(target)


def load(
    checkpoint: str,
    family: Family | None,
    target: Target,
    parts: Collection[Part],
    *,
    num_layers: int | None = None,
    ledgers: Ledgers | None = None,
    meter: Meter | None = None,
    planted: Sequence[LoaderLayer] = (),
) -> Loaded:
    """Stream ``checkpoint`` onto ``target`` and return what arrived.

    Args:
        checkpoint: the model path vLLM is given.
        family: the checkpoint's; None where nobody described it, so that nothing can be cut.
        target: where to; this process must have been started with its environment.
        parts: what to load: the target model, the draft model, or both.
        num_layers: build the decoder with its first layers only; all of it is streamed anyway.
        ledgers: receives each part's loader calls, also those before an error.
        meter: counts the bytes that are streamed.
        planted: layers around the loader under test, below the one that records: faults.

    Raises:
        TargetUnavailable: this process has other devices than the target's, or this machine no
            shared memory for a lock.
        Exception: whatever the stack under test raises, unchanged.
    """
    ledgers = {} if ledgers is None else ledgers
    try:
        return driver_of(target).load(
            checkpoint,
            target,
            parts,
            overrides=family.config_overrides(num_layers) if family else {},
            layers=layers_of(family, num_layers, ledgers, meter or Meter(), planted),
        )
    except OSError as error:
        if is_of_a_lock(error):
            raise _no_shared_memory(error) from error
        raise


def is_of_a_lock(error: OSError) -> bool:
    """Whether what failed is a lock of :mod:`multiprocessing`, which lies in shared memory.

    vLLM's executor makes one (0.26 and 0.32, ``v1/executor/uniproc_executor.py``).
    """
    frames = traceback.extract_tb(error.__traceback__)
    locks = sys.modules.get("multiprocessing.synchronize")  # vLLM's import: this house has none
    return bool(frames and locks) and frames[-1].filename == getattr(locks, "__file__", None)


def _no_shared_memory(error: OSError) -> TargetUnavailable:
    return TargetUnavailable(
        f"no shared memory for the lock of vLLM's executor: {error.strerror or error}",
        where="/dev/shm",
        expected="a few free pages, in which a semaphore can be made",
        hint="df /dev/shm shows it; a container has more with docker run --shm-size=1g",
    )


def layers_of(
    family: Family | None,
    num_layers: int | None,
    ledgers: Ledgers,
    meter: Meter,
    planted: Sequence[LoaderLayer] = (),
) -> list[LoaderLayer]:
    """The layers around the loader of a load, the innermost first: see :func:`load`."""
    cut = [cutting(family, num_layers)] if family and num_layers is not None else []
    return [*cut, *planted, recording(family, ledgers, meter)]
