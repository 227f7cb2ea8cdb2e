"""Repeated loads of faultless checkpoints: a harness that finds anything in them is wrong.

    make soak

Seeds, families, the number of files, ``RUNAI_STREAMER_CONCURRENCY`` and
``RUNAI_STREAMER_MEMORY_LIMIT`` vary from run to run. One line a run; exit 1 at the first finding.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.families.registry import recipes
from harness.load.process import LoadProcesses
from harness.report.message import failure_text
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify

FILES = (1, 2, 4, 7)
CONCURRENCY = ("1", "4", "16")
MEMORY_LIMIT = ("-1", "0")


class Run(NamedTuple):
    """One faultless checkpoint and how it is streamed."""

    seed: int
    recipe: str
    files: int
    concurrency: str
    memory_limit: str

    def __str__(self) -> str:
        return (
            f"{self.recipe:<13} seed {self.seed:<3} files {self.files} "
            f"concurrency {self.concurrency:<2} memory limit {self.memory_limit:>2}"
        )

    @property
    def stream_options(self) -> dict[str, str]:
        """The streamer's variables."""
        return {
            "RUNAI_STREAMER_CONCURRENCY": self.concurrency,
            "RUNAI_STREAMER_MEMORY_LIMIT": self.memory_limit,
        }


def runs(count: int) -> Iterator[Run]:
    """``count`` runs; any twelve in a row have every setting of the streamer twice."""
    settings = itertools.cycle(itertools.product(MEMORY_LIMIT, CONCURRENCY))
    names, files = itertools.cycle(recipes()), itertools.cycle(FILES * 2 + FILES[:1])
    for seed, recipe, number, (limit, concurrency) in zip(
        range(count), names, files, settings, strict=False
    ):
        yield Run(seed, recipe, number, concurrency, limit)


def main(arguments: list[str] | None = None) -> int:
    """Do the runs; 1 at the first that is not equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args(arguments)
    base = Path(tempfile.mkdtemp(prefix="clean-runs-"))
    try:
        with LoadProcesses() as processes:
            for number, run in enumerate(runs(options.runs), start=1):
                path = write_checkpoint(
                    run.recipe, base / str(number), seed=run.seed, files=run.files
                ).path
                report = verify(path, stream_options=run.stream_options, processes=processes)
                shutil.rmtree(path)
                print(f"{number:>3}/{options.runs} {run}: {report.status}", flush=True)
                if report.status is not Status.EQUAL:
                    print(failure_text(report))
                    return 1
    finally:
        shutil.rmtree(base)
    print(f"{options.runs} runs, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
