"""Has a request verified on every host this machine plays, at once; gathers their reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from threading import Event

import msgspec

from harness.base.errors import InternalError
from harness.base.progress import COMPARE, STREAM, Watch
from harness.load.process import IMPORT, LoadProcess, LoadProcessError, LoadProcesses
from harness.load.target import Target
from harness.report.report import Failure, HostPart, Report
from harness.verification.job import VerifyRequest

#: The phases in which the stack under test runs.
_UNDER_TEST = (IMPORT, STREAM)
#: For the other hosts, once one failed: most fail alike, one that waits for it would wait long.
_GRACE_SECONDS = 15.0


def outcomes(
    request: VerifyRequest,
    unfinished: Report,
    hosts: Sequence[Target],
    processes: LoadProcesses,
    timeout: float,
    watch: Watch | None = None,
) -> list[Report]:
    """The report of every host, in their order.

    Args:
        request: what to verify; each host gets it with its own target.
        unfinished: the report to complete.
        hosts: the target as each host sees it.
        processes: where they run.
        timeout: seconds.
        watch: gets the first host's progress.

    Raises:
        HarnessError: a host refused, or, :class:`harness.base.errors.InternalError`, what compares
            and explains raised an error there.
    """
    requests = [msgspec.structs.replace(request, target=host) for host in hosts]
    if len(requests) == 1:
        process, job = processes.of(hosts[0]), processes.job
        return [outcome(requests[0], unfinished, process, timeout, job, watch=watch)]
    running, cancelled = [processes.of(host) for host in hosts], Event()
    watchers = [watch, *[None] * (len(hosts) - 1)]
    with ThreadPoolExecutor(len(hosts)) as pool:
        futures = [
            pool.submit(
                outcome, each, unfinished, process, timeout, processes.job, cancelled, first
            )
            for each, process, first in zip(requests, running, watchers, strict=True)
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


def outcome(
    request: VerifyRequest,
    unfinished: Report,
    process: LoadProcess,
    timeout: float,
    job: str,
    cancelled: Event | None = None,
    watch: Watch | None = None,
) -> Report:
    """One host's report; a load that raised, crashed or hung is one, too.

    Raises:
        InternalError: what broke off was not the stack under test: it had not begun, or had ended,
            and what compares crashed, or what watches over the load ended. Of several hosts each
            may be ended by another's failure, at any time, so there it counts as the load's.
    """
    started = time.perf_counter()
    argument = msgspec.json.encode((request, unfinished))
    try:
        answer = process.run(
            job, argument, request.target, timeout=timeout, cancelled=cancelled, watch=watch
        )
        with InternalError.instead():
            report = msgspec.json.decode(answer, type=Report)
    except LoadProcessError as error:
        if request.target.hosts == 1 and not error.late and error.phase not in _UNDER_TEST:
            raise _broke_off(error, request.reference) from error
        failure = Failure(error=error.what, message="", log_tail=error.details)
        report = msgspec.structs.replace(unfinished, failure=failure)
    target = request.target
    if target.hosts > 1 and not target.on:  # Ray's driver has merged its hosts' reports
        report.hosts = [host_part(report, target, time.perf_counter() - started)]
        if report.failure:
            report.failure = msgspec.structs.replace(report.failure, host=target.host)
    return report


def _broke_off(error: LoadProcessError, reference: str) -> InternalError:
    if error.phase == COMPARE:
        return InternalError(
            f"the load ended well, the comparison did not: {error.what}",
            where=reference,
            expected="files that stay readable and unchanged until everything is compared",
            hint="check the disk that holds the files; if they are intact, report this\n"
            + error.details,
        )
    return InternalError(
        f"the harness failed, not the load under test: {error.what}",
        where="the loading process",
        expected="a process that ends with its load",
        hint="report this, unless somebody killed it or memory ran out\n" + error.details,
    )


def host_part(report: Report, target: Target, seconds: float) -> HostPart:
    """What a host did, by its report; ``seconds`` from its start to its end."""
    return HostPart(
        number=target.host,
        of=target.hosts,
        devices=report.hosts[0].devices if report.hosts else (),
        status=report.status,
        differences=len(report.differences),
        seconds=seconds,
        peak_rss=report.timings.peak_rss,
    )
