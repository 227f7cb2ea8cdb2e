"""How fast ``harness digest`` reads a checkpoint, against plain reading of its files.

    python benchmarks/digest_files.py --family qwen3-vl-moe --shapes published:qwen3-vl-30b-a3b

A synthetic checkpoint is written and its files are brought into the page cache. Then they are read
and thrown away, by one core and by all, and digested, in turns; all figures are medians. Seconds of
the wall clock, and of cores, which say more where others use the machine. Storages differ: gate and
up that lie transposed take another kernel.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from verified_load import read_from_disk

from harness.compare.digesting import digests_of
from harness.devices.digest import warm_up
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint

_BLOCK = 8 << 20
_CORES = len(os.sched_getaffinity(0))


def read_all(path: Path, cores: int) -> None:
    """Read every byte of the files, and drop it."""
    blocks = [
        (file, start)
        for file in sorted(path.glob("*.safetensors"))
        for start in range(0, file.stat().st_size, _BLOCK)
    ]
    buffers = [np.empty(_BLOCK, np.uint8) for _ in range(cores)]

    def read(number: int) -> None:
        for file, start in blocks[number::cores]:
            descriptor = os.open(file, os.O_RDONLY)
            os.preadv(descriptor, [buffers[number].data], start)
            os.close(descriptor)

    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(read, range(cores)))


def ratio(seconds: dict[str, list[float]]) -> float:
    """The rate of digesting against that of reading, turn by turn; the median."""
    turns = zip(seconds["read, all cores, s"], seconds["digest, s"], strict=True)
    return median(read / digest for read, digest in turns)


def main() -> None:
    """Write a checkpoint, measure, print a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="qwen3-vl-moe")
    parser.add_argument("--shapes", default="tiny")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(
            options.family, Path(directory, "c"), shapes=options.shapes, layers=options.layers
        ).path
        read_from_disk(path)
        work: dict[str, Callable[[], object]] = {
            "read, one core, s": partial(read_all, path, 1),
            "read, all cores, s": partial(read_all, path, _CORES),
            "digest, s": lambda: digests_of(ModelCheckpoint(path)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        of_cores: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(options.repeats):
            for name, run in work.items():
                started, used = time.perf_counter(), time.process_time()
                run()
                seconds[name].append(time.perf_counter() - started)
                of_cores[name].append(time.process_time() - used)
        nbytes = ModelCheckpoint(path).nbytes
        size = len(digests_of(ModelCheckpoint(path)).encoded())
    middle = {name: median(found) for name, found in seconds.items()}
    row = {
        "model": f"{options.family} {options.shapes}",
        "GB": f"{nbytes / 1e9:.1f}",
        **{name: f"{value:.2f}" for name, value in middle.items()},
        "digest, GB/s": f"{nbytes / middle['digest, s'] / 1e9:.1f}",
        "of reading on all cores": f"{ratio(seconds):.2f}",
        "by seconds of cores": f"{ratio(of_cores):.2f}",
        "file, kB": f"{size / 1e3:.0f}",
    }
    print(f"{_CORES} cores\n\n| {' | '.join(row)} |\n|{'---|' * len(row)}")
    print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()
