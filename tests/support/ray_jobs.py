"""A verification on Ray with a fault planted on host 1: in its worker, or in its node."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import msgspec

from harness.base.progress import Meter
from harness.load import extension
from harness.load.inside import LoadSession
from harness.report.report import Report
from harness.verification import over_ray
from harness.verification.job import VerifyRequest

#: Names the fault, among the options of the stream.
FAULT = "PLANTED_FAULT"


def verify_with_fault(argument: bytes, meter: Meter) -> bytes:
    request, report = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    return msgspec.json.encode(over_ray.run(request, report, meter, f"{__name__}:begin"))


def begin() -> LoadSession:
    """Begin as the harness does, and plant the fault that the environment names on host 1."""
    session = over_ray.begin()
    if session.target.host == 1:
        match os.environ[FAULT]:
            case "worker dies while streaming":
                session.layers = [*session.layers, dying(os.getpid())]
            case "node dies while streaming":
                session.layers = [*session.layers, dying(os.getppid())]  # Ray's raylet
            case "worker dies while comparing":
                extension.FUNCTIONS["compare loaded"] = f"{__name__}:die"
    return session


def dying(pid: int) -> Any:
    """A layer that ends a process once some tensors came."""

    def layer(base: type[Any]) -> type[Any]:
        class DyingLoader(base):  # type: ignore[misc]
            def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
                for number, item in enumerate(super()._get_weights_iterator(*args, **kwargs)):
                    if number == 5:
                        os.kill(pid, signal.SIGKILL)
                    yield item

        return DyingLoader

    return layer


def die(worker: Any, argument: str) -> str:
    """In place of the comparison."""
    os.kill(os.getpid(), signal.SIGKILL)
    return argument
