"""Loads a checkpoint through the real stack, in the process that calls it, as its target asks."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator

from harness.base.errors import TargetUnavailable
from harness.families.family import Family, Part
from harness.families.registry import families
from harness.load.hook import Hook
from harness.load.loaded import Adapt, Ledgers, Loaded
from harness.load.target import Target
from harness.load.targets.registry import driver_named, driver_of, targets


def preload(target: str) -> None:
    """Import the stack of the named target, touching no device, so that forked loads need not.

    Raises:
        TargetUnavailable: an import touched a device: the loads forked from here would inherit it.
        Exception: whatever the stack raises when it is imported.
    """
    driver = driver_named(target)
    for module in (*driver.modules, *(_models() if driver.imports_models else ())):
        importlib.import_module(module)
    if any(driver.alive() for driver in targets().values()):
        raise TargetUnavailable(
            "importing the stack touched a device",
            where=f"the loading process of {target}",
            expected="no backend of XLA alive before the first load is forked",
            hint="a module of the checkout under test that makes an array when it is imported",
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
    hook: Hook = Hook.UPSTREAM,
    num_layers: int | None = None,
    ledgers: Ledgers | None = None,
    adapt: Adapt = lambda loader: loader,
) -> Loaded:
    """Stream ``checkpoint`` onto ``target`` and return what arrived.

    Args:
        checkpoint: the model path vLLM is given.
        family: the checkpoint's; None where nobody described it, so that nothing can be cut.
        target: where to; this process must have been started with its environment.
        parts: what to load: the target model, the draft model, or both.
        hook: the loader hook the load goes through.
        num_layers: build the decoder with its first layers only; all of it is streamed anyway.
        ledgers: receives each part's loader calls, also those before an error.
        adapt: changes the loader class under test, for tests that plant faults in it.

    Raises:
        TargetUnavailable: this process has other devices than the target's.
        Exception: whatever the stack under test raises, unchanged.
    """
    ledgers = {} if ledgers is None else ledgers
    return driver_of(target).load(
        checkpoint,
        family,
        target,
        parts,
        hook=hook,
        num_layers=num_layers,
        ledgers=ledgers,
        adapt=adapt,
    )
