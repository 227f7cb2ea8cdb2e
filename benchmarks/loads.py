"""The loads that ``benchmarks/verified_load.py`` measures; each runs in a process of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from harness.base.progress import Meter
from harness.compare.digest_comparison import Method
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine, recording
from harness.load.target import Target
from harness.report.report import Environment, Report, Status
from harness.verification import job
from harness.verification import part_verification as part
from harness.verification.job import VerifyRequest
from harness.verification.part_verification import PartVerification
from harness.verification.verify import digests_used


class Figures(msgspec.Struct):
    """One job: seconds of the load and of the comparison, peaks of private memory in bytes.

    ``compared`` counts bytes of the checkpoint, ``experts`` and ``experts_compared`` are seconds
    and bytes of the experts alone. memcpy, in bytes a second, is measured right after: how fast
    a rented machine's memory is changes within minutes.
    """

    load: float
    compare: float = 0.0
    compared: int = 0
    experts: float = 0.0
    experts_compared: int = 0
    memcpy: float = 0.0
    memcpy_on_all_cores: float = 0.0
    peak: int = 0
    peak_comparing: int = 0
    after_load: int = 0


def _given(argument: bytes) -> tuple[str, Target, tuple[Part, ...]]:
    return msgspec.json.decode(argument, type=tuple[str, Target, tuple[Part, ...]])


def bare(argument: bytes, _: Meter) -> bytes:
    """Load by upstream's loader as it is."""
    vars(engine)["recording"] = lambda *_: lambda base: base
    return _loaded(argument)


def ledger(argument: bytes, _: Meter) -> bytes:
    """Load with the ledger, without the poison."""
    recording._poison = lambda parameter: None
    return _loaded(argument)


def recorded(argument: bytes, _: Meter) -> bytes:
    """Load with ledger and poison."""
    return _loaded(argument)


def _loaded(argument: bytes) -> bytes:
    with peak() as seen:
        path, target, parts = _given(argument)
        loaded = engine.load(path, ModelCheckpoint(path).family, target, parts)
    return msgspec.json.encode(Figures(loaded.load_seconds, peak=seen[0]))


def verified(argument: bytes, _: Meter) -> bytes:
    """Load with ledger and poison, and compare, as :func:`harness.verification.job.run` does."""
    return _verified(argument, Method.AUTO)


def digested(argument: bytes, _: Meter) -> bytes:
    """The same, but experts are compared by digests that XLA makes on the device."""
    return _verified(argument, Method.DIGESTS)


def by_file(argument: bytes, _: Meter) -> bytes:
    """The same, compared with the digest file beside the checkpoint."""
    return _verified(argument, Method.AUTO, f"{_given(argument)[0]}.digests")


def _verified(argument: bytes, method: Method, digests: str = "") -> bytes:
    path, target, parts = _given(argument)
    request = VerifyRequest(
        checkpoint=path, reference=path, digests=digests, target=target, parts=parts,
        method=method,
    )  # fmt: skip
    environment = Environment(stack="", python="", versions={}, target=str(target))
    report = Report(
        checkpoint=path, reference=path, family="", status=Status.LOAD_FAILED,
        environment=environment, digests=digests_used(digests) if digests else None,
    )  # fmt: skip
    at_end: list[int] = []
    expert_copies = vars(part)["expert_copies"]

    def noting(*given: Any) -> Any:
        at_end.append(private())
        return expert_copies(*given)

    vars(part)["expert_copies"] = noting  # what is compared first
    others = _others_timed()
    with peak() as seen, peak(since=at_end) as comparing:
        report = job.run(request, report)
    assert report.status is Status.EQUAL, report.differences[:3]
    assert report.timings is not None
    return msgspec.json.encode(
        Figures(
            load=report.timings.load,
            compare=report.timings.compare,
            compared=report.all_bytes_compared,
            experts=report.timings.compare - sum(others),
            experts_compared=sum(tally.bytes_compared for tally in report.tallies),
            memcpy=memcpy_rate(),
            memcpy_on_all_cores=memcpy_rate(len(os.sched_getaffinity(0))),
            peak=seen[0],
            peak_comparing=comparing[0],
            after_load=at_end[0],
        )
    )


def _others_timed() -> list[float]:
    """The seconds that each part's parameters besides experts will take to compare."""
    compare, seconds = PartVerification.of_parameters, list[float]()

    def timed(self: PartVerification) -> Any:
        started = time.perf_counter()
        try:
            return compare(self)
        finally:
            seconds.append(time.perf_counter() - started)

    PartVerification.of_parameters = timed  # type: ignore[method-assign]
    return seconds


def memcpy_rate(cores: int = 1, repeats: int = 5) -> float:
    """Bytes a second that cores copy together, 256 MiB each; the median of some runs."""
    sources = [np.ones(256 << 20, dtype=np.uint8) for _ in range(cores)]
    targets = [np.empty_like(source) for source in sources]
    found = []
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(repeats):
            started = time.perf_counter()
            list(threads.map(np.copyto, targets, sources))
            found.append(cores * sources[0].nbytes / (time.perf_counter() - started))
    return median(found)


def streamed(argument: bytes, _: Meter) -> bytes:
    """Iterate over all tensors with the streamer's own iterator."""
    from runai_model_streamer import SafetensorsStreamer

    path = _given(argument)[0]
    started = time.perf_counter()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(p) for p in sorted(Path(path).glob("*.safetensors"))])
        count = sum(1 for _ in streamer.get_tensors())
    assert count
    return msgspec.json.encode(Figures(time.perf_counter() - started))


#: In the order of the first turn.
JOBS = (streamed, bare, ledger, recorded, verified, digested, by_file)


def private() -> int:
    """Bytes of this process's private memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def peak(since: list[int] | None = None) -> Iterator[list[int]]:
    """The largest private memory while the body runs; once ``since`` is not empty, if given."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if since is None or since:
                seen[0] = max(seen[0], private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()
