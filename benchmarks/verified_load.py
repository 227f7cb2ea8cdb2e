"""What verification adds to a load: time against the bare load, rates, and memory.

    python benchmarks/verified_load.py --family qwen3-vl-moe --shapes published:qwen3-vl-30b-a3b \
        --layers 1 4 --repeats 3

For every number of layers a synthetic checkpoint is written and read once, so that it is in the
page cache. Then, in turns, each in a process forked from one with the stack imported: the bare
load, without ledger and poison; the verified one, whose comparison follows the load; and the
streamer's own iterator alone. Reading the files and memcpy are measured beside them. All figures
are medians. Memory is the private part, RssAnon, sampled every 20 ms while the job runs; mapped
files are not in it.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np

from harness import engine, job, tpu_engine
from harness.checkpoint import Checkpoint
from harness.device import DevicePart
from harness.experts import reference_parts
from harness.family import Part
from harness.job import VerifyRequest
from harness.load import LoadProcess
from harness.loaded import Loaded
from harness.report import Environment, Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.target import Parallelism, Target, emulated_target
from harness.verify_parameters import expert_copies

_MIB = 1 << 20


class Figures(msgspec.Struct):
    """One job: seconds of the load and of the comparison, peaks of private memory in bytes.

    ``compared`` counts bytes of the checkpoint.
    """

    load: float
    compare: float = 0.0
    compared: int = 0
    peak: int = 0
    peak_comparing: int = 0
    after_load: int = 0


def bare_job(argument: bytes) -> bytes:
    """Load by upstream's loader as it is."""
    path, target, parts = msgspec.json.decode(argument, type=tuple[str, Target, tuple[Part, ...]])
    patch.object(tpu_engine, "recording", lambda base, ledgers: base).start()
    with peak() as seen:
        loaded = engine.load(path, target, parts)
    return msgspec.json.encode(Figures(loaded.load_seconds, peak=seen[0]))


def verified_job(argument: bytes) -> bytes:
    """Load and compare, as :func:`harness.job.run` does."""
    path, target, parts = msgspec.json.decode(argument, type=tuple[str, Target, tuple[Part, ...]])
    request = VerifyRequest(checkpoint=path, reference=path, target=target, parts=parts)
    environment = Environment(stack="", python="", versions={}, target=str(target))
    report = Report(
        checkpoint=path, reference=path, family="", status=Status.LOAD_FAILED,
        environment=environment,
    )  # fmt: skip
    at_end: list[int] = []

    def counted(loaded: Loaded, part: Part) -> list[DevicePart]:
        at_end.append(private())
        return expert_copies(loaded, part)

    patch.object(job, "expert_copies", counted).start()
    with peak() as seen, peak(since=at_end) as comparing:
        report = job.run(request, report)
    assert report.status is Status.EQUAL, report.differences[:3]
    return msgspec.json.encode(
        Figures(
            report.timings.load, report.timings.compare, report.all_bytes_compared,
            seen[0], comparing[0], at_end[0],
        )
    )  # fmt: skip


def streamer_job(argument: bytes) -> bytes:
    """Iterate over all tensors with the streamer's own iterator."""
    from runai_model_streamer import SafetensorsStreamer

    path, _, _ = msgspec.json.decode(argument, type=tuple[str, Target, tuple[Part, ...]])
    started = time.perf_counter()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(p) for p in sorted(Path(path).glob("*.safetensors"))])
        count = sum(1 for _ in streamer.get_tensors())
    assert count
    return msgspec.json.encode(Figures(time.perf_counter() - started))


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


JOBS = {"bare": bare_job, "verified": verified_job, "streamer": streamer_job}


def measure(path: Path, target: Target, repeats: int) -> dict[str, list[Figures]]:
    """Every kind of job, in turns; the first turn fills caches and does not count."""
    parts = tuple(part.part for part in reference_parts(Checkpoint(path)))
    argument = msgspec.json.encode((str(path), target, parts))
    seen: dict[str, list[Figures]] = {kind: [] for kind in JOBS}
    with LoadProcess(target) as process:
        for _ in range(repeats + 1):
            for kind, work in JOBS.items():
                answer = process.run(
                    f"benchmarks.verified_load:{work.__name__}", argument, timeout=900
                )
                seen[kind].append(msgspec.json.decode(answer, type=Figures))
    return {kind: figures[1:] for kind, figures in seen.items()}


def memcpy_rate() -> float:
    """Bytes a second of one core's copies of 256 MiB."""
    source = np.ones(256 * _MIB, dtype=np.uint8)
    target = np.empty_like(source)
    return source.nbytes / seconds(lambda: np.copyto(target, source))


def read_rate(path: Path) -> float:
    """Bytes a second of one core's reads of the files, which are in the page cache."""
    buffer = np.empty(8 * _MIB, dtype=np.uint8)

    def read() -> None:
        for file in path.glob("*.safetensors"):
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer.data):
                    pass

    return sum(f.stat().st_size for f in path.glob("*.safetensors")) / seconds(read)


def seconds(work: Any, repeats: int = 5) -> float:
    """The median of some runs."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return median(found)


def row(path: Path, layers: int, target: Target, repeats: int) -> str:
    """Measure one checkpoint; a line of the table."""
    seen = measure(path, target, repeats)

    def middle(kind: str, field: str) -> float:
        return float(median(getattr(figures, field) for figures in seen[kind]))

    checkpoint = Checkpoint(path)
    bare, compare = middle("bare", "load"), middle("verified", "compare")
    load, compared = middle("verified", "load"), middle("verified", "compared")
    fused = max(entry.nbytes for name, entry in checkpoint.entries.items() if "experts" in name)
    above = middle("verified", "peak_comparing") - middle("verified", "after_load")
    return (
        f"| {layers} | {checkpoint.nbytes / 1e9:.1f} | {checkpoint.nbytes / read_rate(path):.2f} "
        f"| {middle('streamer', 'load'):.2f} | {bare:.1f} | {load:.1f} | {compare:.2f} "
        f"| {(bare + compare) / bare:.3f} | {compared / compare / 1e9:.1f} "
        f"| {compared / compare / memcpy_rate():.2f} "
        f"| {middle('bare', 'peak') / _MIB:.0f} | {middle('verified', 'peak') / _MIB:.0f} "
        f"| {above / _MIB:.0f} | {fused / _MIB:.0f} |"
    )


HEADER = (
    "| layers | GB | read, s | streamer, s | bare load, s | load with ledger, s | compare, s "
    "| (bare + compare) / bare | compare, GB/s | of memcpy | peak, bare, MiB | peak, MiB "
    "| comparing adds, MiB | largest expert tensor, MiB |"
)


def main() -> None:
    """Write checkpoints, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="qwen3-vl-moe")
    parser.add_argument("--shapes", default="tiny")
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--experts", type=int)
    parser.add_argument("--parallelism", choices=list(Parallelism), default=Parallelism.TENSOR)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    target = emulated_target(4, Parallelism(options.parallelism))
    print(f"{options.family} {options.shapes}, {target}\n\n{HEADER}\n|{'---|' * 14}")
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as directory:
            path = write_checkpoint(
                options.family, Path(directory, "checkpoint"), shapes=options.shapes,
                layers=layers, experts=options.experts,
            ).path  # fmt: skip
            print(row(path, layers, target, options.repeats), flush=True)


if __name__ == "__main__":
    main()
