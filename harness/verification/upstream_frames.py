"""Places in the code of the stack under test, as a reader knows them: from the package on."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from harness.load.ledger import Ledger
from harness.report.report import Failure, Frame

_UPSTREAM = ("vllm", "tpu_inference", "runai_model_streamer", "torchax", "jax", "torch")


def name_sites(ledger: Ledger) -> None:
    """Call sites as a reader knows them: from the package on."""
    names: dict[str, str] = {}
    for number, call in enumerate(ledger.calls):
        if call.site not in names:
            file, _, line = call.site.rpartition(":")
            names[call.site] = f"{_upstream_file(file) or file}:{line}"
        ledger.calls[number] = call._replace(site=names[call.site])


def failure_of(error: Exception) -> Failure:
    """What upstream raised, with the frames that are its own."""
    frames = traceback.extract_tb(error.__traceback__)
    return Failure(
        error=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        message=str(error),
        frames=tuple(
            Frame(file, frame.lineno or 0, frame.name, frame.line or "")
            for frame in frames
            if (file := _upstream_file(frame.filename))
        ),
    )


def _upstream_file(filename: str) -> str | None:
    """``filename`` from its top package on, if that is a package of the stack under test."""
    for package in _UPSTREAM:
        home = getattr(sys.modules.get(package), "__path__", [None])[0]
        if home and Path(filename).is_relative_to(home):
            return str(Path(package, Path(filename).relative_to(home)))
    return None
