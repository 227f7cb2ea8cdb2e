"""Has a request verified on every host this machine plays, at once; gathers their reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from threading import Event

import msgspec

from harness import job, progress
from harness.errors import InternalError
from harness.job import VerifyRequest
from harness.load import LoadProcess, LoadProcessError
from harness.load_processes import LoadProcesses
from harness.report import Failure, HostPart, Report
from harness.target import Target

_JOB = f"{job.__name__}:{job.verify_job.__name__}"
#: For the other hosts, once one failed: most fail alike, one that waits for it would wait long.
_GRACE_SECONDS = 15.0


def outcomes(
    request: VerifyRequest,
    unfinished: Report,
    hosts: Sequence[Target],
    processes: LoadProcesses,
    timeout: float,
) -> list[Report]:
    """The report of every host, in their order.

    Args:
        request: what to verify; each host gets it with its own target, the first shows progress.
        unfinished: the report to complete.
        hosts: the target as each host sees it.
        processes: where they run.
        timeout: seconds.

    Raises:
        HarnessError: a host refused, or, :class:`harness.errors.InternalError`, what compares
            and explains raised an error there.
    """
    requests = [
        msgspec.structs.replace(
            request, target=host, progress="" if host.host else request.progress
        )
        for host in hosts
    ]
    if len(requests) == 1:
        return [_outcome(requests[0], unfinished, processes.of(hosts[0]), timeout)]
    running, cancelled = [processes.of(host) for host in hosts], Event()
    with ThreadPoolExecutor(len(hosts)) as pool:
        futures = [
            pool.submit(_outcome, each, unfinished, process, timeout, cancelled)
            for each, process in zip(requests, running, strict=True)
        ]
        _end_all_when_one_fails(futures, running, cancelled)
        return [future.result() for future in futures]


def _end_all_when_one_fails(
    futures: Sequence[Future[Report]], running: Sequence[LoadProcess], cancelled: Event
) -> None:
    """Wait for all hosts; where one fails, or the wait is interrupted, end those still at it."""
    try:
        for future in as_completed(futures):
            if future.exception() or future.result().failure:
                wait(futures, _GRACE_SECONDS)
                break
    finally:
        cancelled.set()
        for future, process in zip(futures, running, strict=True):
            if not future.done():
                process.cancel()


def _outcome(
    request: VerifyRequest,
    unfinished: Report,
    process: LoadProcess,
    timeout: float,
    cancelled: Event | None = None,
) -> Report:
    """One host's report; a load that raised, crashed or hung is one, too.

    Raises:
        InternalError: the load had ended, and what compares crashed. Of several hosts each may be
            ended by another's failure, at any time, so there it counts as the load's.
    """
    started = time.perf_counter()
    figures = Path(request.progress or process.scratch / "figures")
    figures.unlink(missing_ok=True)  # those of the job before
    request = msgspec.structs.replace(request, progress=str(figures))
    argument = msgspec.json.encode((request, unfinished))
    try:
        answer = process.run(_JOB, argument, request.target, timeout=timeout, cancelled=cancelled)
        report = msgspec.json.decode(answer, type=Report)
    except LoadProcessError as error:
        if request.target.hosts == 1 and not error.late and _was_comparing(figures):
            raise _broke_off(error, request.reference) from error
        failure = Failure(error=error.what, message="", log_tail=error.details)
        report = msgspec.structs.replace(unfinished, failure=failure)
    target = request.target
    if target.hosts > 1:
        report.hosts = [_part(report, target, time.perf_counter() - started)]
        if report.failure:
            report.failure = msgspec.structs.replace(report.failure, host=target.host)
    return report


def _was_comparing(figures: Path) -> bool:
    found = progress.read(figures)
    return found is not None and found.phase == job.COMPARE


def _broke_off(error: LoadProcessError, reference: str) -> InternalError:
    return InternalError(
        f"the load ended well, the comparison did not: {error.what}",
        where=reference,
        expected="files that can be read, and stay as they are, until all is compared",
        hint="look at the disk the files are on; if they are whole, report this\n" + error.details,
    )


def _part(report: Report, target: Target, seconds: float) -> HostPart:
    return HostPart(
        number=target.host,
        of=target.hosts,
        devices=report.hosts[0].devices if report.hosts else (),
        status=report.status,
        differences=len(report.differences),
        seconds=seconds,
        peak_rss=report.timings.peak_rss,
    )
