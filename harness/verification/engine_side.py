"""What runs on a worker of an engine, next to its weights: the table is in the worker's extension.

A worker that nobody of the harness started has no ledger: what is on its devices is compared, and
how it came there is not known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from harness.base.errors import HarnessError, InternalError, SentError
from harness.base.progress import Meter
from harness.families.known_families import bring
from harness.load.engines import described, held
from harness.load.targets.known_targets import driver_of
from harness.report.report import Report
from harness.verification.job import Verification, VerifyRequest

#: Where a load entered that was over when the harness came.
ENTRY = "an engine that runs, asked by collective_rpc"


class WorkerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's report, or what kept it from one."""

    report: Report | None = None
    error: SentError | None = None


def describe(worker: Any, _: str) -> str:
    """What the worker is, as JSON of :class:`harness.load.engines.EngineWorker`.

    Raises:
        TargetUnavailable: it is no worker of tpu-inference that has loaded.
    """
    return msgspec.json.encode(described(worker)).decode()


def compare(worker: Any, argument: str) -> str:
    """Compare what the worker holds, as JSON of :class:`WorkerAnswer`.

    Args:
        worker: of tpu-inference, once it has loaded.
        argument: JSON of a request and an unfinished report.
    """
    request, unfinished = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    try:
        answer = WorkerAnswer(report=_compared(worker, request, unfinished))
    except HarnessError as error:
        answer = WorkerAnswer(error=SentError.of(error))
    except Exception as error:
        answer = WorkerAnswer(error=SentError.of(InternalError.of(error)))
    return msgspec.json.encode(answer).decode()


def _compared(worker: Any, request: VerifyRequest, unfinished: Report) -> Report:
    bring(request.families)
    target = replace(request.target, host=described(worker).target.host)
    request = msgspec.structs.replace(request, target=target)
    loaded = held(worker, driver_of(target), request.parts, entry=ENTRY)
    return Verification(request, unfinished, Meter()).timed(loaded)
