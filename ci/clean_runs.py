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

from harness.load.process import LoadProcesses
from harness.load.stack import installed_versions
from harness.report.known_issue import expected_issues
from harness.report.message import failure_text
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from scenarios.by_rule import all_by_rule
from scenarios.known_issues import KNOWN_ISSUES
from scenarios.scenario import Scenario

FILES = (1, 2, 4, 7)
CONCURRENCY = ("1", "4", "16")
MEMORY_LIMIT = ("-1", "0")


class Run(NamedTuple):
    """One faultless checkpoint and how it is streamed."""

    seed: int
    row: Scenario
    files: int
    concurrency: str
    memory_limit: str

    def __str__(self) -> str:
        return (
            f"{self.recipe:<13} seed {self.seed:<3} files {self.files} "
            f"concurrency {self.concurrency:<2} memory limit {self.memory_limit:>2}"
        )

    @property
    def recipe(self) -> str:
        """What is written."""
        return self.row.recipe

    @property
    def stream_options(self) -> dict[str, str]:
        """The streamer's variables, and those without which upstream does not load it."""
        return self.row.stream_options | {
            "RUNAI_STREAMER_CONCURRENCY": self.concurrency,
            "RUNAI_STREAMER_MEMORY_LIMIT": self.memory_limit,
        }


def faultless() -> tuple[Scenario, ...]:
    """The row of each recipe that the installed releases load without a known issue."""
    versions = installed_versions()
    return tuple(
        row
        for row in all_by_rule()
        if row.parallelism is None
        and not expected_issues(row.load(), versions, "emulated", KNOWN_ISSUES)
    )


def runs(count: int) -> Iterator[Run]:
    """``count`` runs; any twelve in a row have every setting of the streamer twice."""
    settings = itertools.cycle(itertools.product(MEMORY_LIMIT, CONCURRENCY))
    rows, files = itertools.cycle(faultless()), itertools.cycle(FILES * 2 + FILES[:1])
    for seed, row, number, (limit, concurrency) in zip(
        range(count), rows, files, settings, strict=False
    ):
        yield Run(seed, row, number, concurrency, limit)


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
                    run.recipe, base / str(number), seed=run.seed, files=run.files,
                    tied=run.row.tied,
                ).path  # fmt: skip
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
