"""What verification adds to a load: time against the bare load, rates, and memory.

    python benchmarks/verified_load.py --family qwen3-vl-moe --shapes published:qwen3-vl-30b-a3b \
        --layers 1 4 --repeats 3 --json out.json --plot out.svg

For every number of layers and of experts a synthetic checkpoint is written, and read from disk
once: it is in the page cache as one that was downloaded some time ago. Then all loads of
``benchmarks/loads.py``, in turns, each turn in another order, each load in a process forked from
one with the stack imported. Reading the files is measured beside them, memcpy right after each
comparison. All figures are medians. Memory is the private part, RssAnon, sampled every 20 ms while
the job runs. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from loads import JOBS, Figures

from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import child
from harness.load.process import LoadProcess
from harness.load.target import Parallelism, Target
from harness.load.targets.known_targets import target_named
from harness.synthetic.writer import write_checkpoint
from harness.verification.digests import write_digests

_MIB = 1 << 20
_NAMES = [job.__name__ for job in JOBS]


class Row(msgspec.Struct, kw_only=True):
    """One checkpoint: its sizes, medians in seconds and bytes, and the ratios made of them."""

    layers: int
    experts: int
    nbytes: int
    largest_expert_tensor: int
    read: float
    memcpy: float
    memcpy_on_all_cores: float
    of_memcpy: float
    experts_of_memcpy: float
    seconds: dict[str, float]
    compare: float
    compare_by_digests: float
    compare_by_file: float
    compared: int
    peak: dict[str, int]
    comparing_adds: int

    @property
    def ratio(self) -> float:
        """The bare load and a comparison, against the bare load."""
        return (self.seconds["bare"] + self.compare) / self.seconds["bare"]

    @property
    def whole_ratio(self) -> float:
        """The load with ledger and poison and its comparison, against the bare load."""
        return (self.seconds["verified"] + self.compare) / self.seconds["bare"]

    @property
    def rate(self) -> float:
        """Bytes of the checkpoint that all cores together compare in a second."""
        return self.compared / self.compare


def measure(path: Path, target: Target, repeats: int) -> dict[str, list[Figures]]:
    """Every kind of job, in turns; the first turn fills caches and does not count."""
    parts = tuple(part.part for part in reference_parts(ModelCheckpoint(path)))
    argument = msgspec.json.encode((str(path), target, parts))
    seen: dict[str, list[Figures]] = {name: [] for name in _NAMES}
    child.JOBS.update({f"loads:{name}": f"loads:{name}" for name in _NAMES})
    with LoadProcess(target) as process:
        for turn in range(repeats + 1):
            first = turn % len(_NAMES)
            for name in [*_NAMES[first:], *_NAMES[:first]] if turn else ["streamed", "bare"]:
                answer = process.run(f"loads:{name}", argument, target, timeout=900)
                if turn:
                    seen[name].append(msgspec.json.decode(answer, type=Figures))
    return seen


def read_seconds(path: Path, repeats: int = 5) -> float:
    """Seconds of one core's reads of the files, which are in the page cache."""
    buffer = np.empty(8 * _MIB, dtype=np.uint8)

    def read() -> None:
        for file in path.glob("*.safetensors"):
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer.data):
                    pass

    return seconds(read, repeats)


def read_from_disk(path: Path) -> None:
    """Bring the files into the page cache as reading does, in larger pages than writing."""
    os.sync()
    for file in path.glob("*.safetensors"):
        with file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_seconds(path, repeats=1)


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The median of some runs."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return median(found)


def row(path: Path, target: Target, repeats: int) -> Row:
    """Measure one checkpoint."""
    checkpoint = ModelCheckpoint(path)
    decoder = reference_parts(checkpoint)[0]
    largest = max(entry.nbytes for name, entry in checkpoint.entries.items() if "experts" in name)
    read_from_disk(path)
    write_digests(path, Path(f"{path}.digests"))
    read = read_seconds(path)
    seen = measure(path, target, repeats)

    def middle(name: str, field: str) -> float:
        return float(median(getattr(figures, field) for figures in seen[name]))

    return Row(
        layers=len(decoder.layers),
        experts=decoder.shape.experts,
        nbytes=checkpoint.nbytes,
        largest_expert_tensor=largest,
        read=read,
        memcpy=middle("verified", "memcpy"),
        memcpy_on_all_cores=middle("verified", "memcpy_on_all_cores"),
        of_memcpy=median(f.compared / f.compare / f.memcpy_on_all_cores for f in seen["verified"]),
        experts_of_memcpy=median(
            f.experts_compared / f.experts / f.memcpy_on_all_cores for f in seen["verified"]
        ),
        seconds={name: middle(name, "load") for name in _NAMES},
        compare=middle("verified", "compare"),
        compare_by_digests=middle("digested", "compare"),
        compare_by_file=middle("by_file", "compare"),
        compared=int(middle("verified", "compared")),
        peak={name: int(middle(name, "peak")) for name in _NAMES},
        comparing_adds=int(
            median(f.peak_comparing - f.after_load for f in seen["verified"])
        ),
    )  # fmt: skip


COLUMNS: dict[str, Callable[[Row], str]] = {
    "layers": lambda r: f"{r.layers}",
    "experts": lambda r: f"{r.experts}",
    "GB": lambda r: f"{r.nbytes / 1e9:.1f}",
    "read, s": lambda r: f"{r.read:.2f}",
    "streamer, s": lambda r: f"{r.seconds['streamed']:.2f}",
    "bare load, s": lambda r: f"{r.seconds['bare']:.1f}",
    "with ledger, s": lambda r: f"{r.seconds['ledger']:.1f}",
    "and poison, s": lambda r: f"{r.seconds['recorded']:.1f}",
    "compare, s": lambda r: f"{r.compare:.2f}",
    "by digests, s": lambda r: f"{r.compare_by_digests:.2f}",
    "with a digest file, s": lambda r: f"{r.compare_by_file:.2f}",
    "(bare + compare) / bare": lambda r: f"{r.ratio:.3f}",
    "verified / bare": lambda r: f"{r.whole_ratio:.3f}",
    "compare, GB/s": lambda r: f"{r.rate / 1e9:.1f}",
    "memcpy, one core, all, GB/s": lambda r: (
        f"{r.memcpy / 1e9:.1f}, {r.memcpy_on_all_cores / 1e9:.1f}"
    ),
    "compare, of memcpy on all": lambda r: f"{r.of_memcpy:.2f}",
    "experts alone": lambda r: f"{r.experts_of_memcpy:.2f}",
    "peak, bare, MiB": lambda r: f"{r.peak['bare'] / _MIB:.0f}",
    "peak, verified, MiB": lambda r: f"{r.peak['verified'] / _MIB:.0f}",
    "comparing adds, MiB": lambda r: f"{r.comparing_adds / _MIB:.0f}",
    "largest expert tensor, MiB": lambda r: f"{r.largest_expert_tensor / _MIB:.0f}",
}


def plot(rows: list[Row], title: str, file: Path) -> None:
    """Bars of seconds: bare load, what ledger and poison add, the comparison."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"  # words stay words
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.5 * len(rows)), layout="constrained")
    names = [f"{r.layers} x {r.experts} experts, {r.nbytes / 1e9:.1f} GB" for r in rows]
    left = [0.0] * len(rows)
    for label, values in (
        ("bare load", [r.seconds["bare"] for r in rows]),
        ("ledger and poison", [max(r.seconds["verified"] - r.seconds["bare"], 0) for r in rows]),
        ("comparison", [r.compare for r in rows]),
    ):
        axes.barh(names, values, left=left, label=label)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(title)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})  # a plot of the same rows is the same file


def main() -> None:
    """Write checkpoints, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="qwen3-vl-moe")
    parser.add_argument("--shapes", default="tiny")
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--experts", type=int, nargs="+", default=[0], help="0: as published")
    parser.add_argument("--parallelism", choices=list(Parallelism), default=Parallelism.TENSOR)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the rows")
    parser.add_argument("--plot", type=Path, help="draw the rows; needs matplotlib")
    options = parser.parse_args()
    target = target_named("emulated", 4, Parallelism(options.parallelism))
    title = f"{options.family} {options.shapes}, {target}"
    print(f"{title}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for layers in options.layers:
        for experts in options.experts:
            with tempfile.TemporaryDirectory() as directory:
                path = write_checkpoint(
                    options.family, Path(directory, "checkpoint"), shapes=options.shapes,
                    layers=layers, experts=experts or None,
                ).path  # fmt: skip
                rows.append(row(path, target, options.repeats))
                print(f"| {' | '.join(cell(rows[-1]) for cell in COLUMNS.values())} |", flush=True)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    if options.plot:
        plot(rows, title, options.plot)


if __name__ == "__main__":
    main()
