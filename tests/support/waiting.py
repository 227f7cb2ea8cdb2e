"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether all have ended; a zombie has, and waits to be asked how."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
