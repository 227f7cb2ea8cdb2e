"""Checks, bit for bit, that every expert of an MoE checkpoint reached the device unchanged.

vLLM imports this package while it looks for its platform, so names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.load.extension import Extension
    from harness.load.target import Target
    from harness.load.targets.known_targets import target_named
    from harness.report.report import Report
    from harness.verification.running import verify_engine
    from harness.verification.verify import verify

__all__ = ["Extension", "Report", "Target", "target_named", "verify", "verify_engine"]

_MODULES = {
    "Report": "report.report", "Target": "load.target",
    "target_named": "load.targets.known_targets", "verify": "verification.verify",
    "Extension": "load.extension", "verify_engine": "verification.running",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
