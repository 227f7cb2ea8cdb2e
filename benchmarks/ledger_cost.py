"""What the ledger and the poison cost a load: bare, with the ledger alone, and with both.

    python benchmarks/ledger_cost.py --shapes published:qwen3-vl-30b-a3b --layers 1 --repeats 3

Each load has a process of its own, forked from one that has imported the stack; the three kinds
take turns, and the figures are medians. Times are of the load under test alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import msgspec

from harness import engine, recording, tpu_engine
from harness.checkpoint import Checkpoint
from harness.experts import reference_parts
from harness.family import Part
from harness.load import LoadProcess
from harness.synthetic.writer import write_checkpoint
from harness.target import Target, emulated_target

KINDS = ("bare", "ledger", "ledger and poison")
_MIB = 1 << 20


def load_job(argument: bytes) -> bytes:
    """Load once, as the kind says; seconds, and peak resident bytes."""
    import resource

    path, target, parts, kind = msgspec.json.decode(
        argument, type=tuple[str, Target, tuple[Part, ...], str]
    )
    if kind == "bare":
        patch.object(tpu_engine, "recording", lambda base, ledgers: base).start()
    if kind == "ledger":
        recording._poison = lambda parameter: None
    loaded = engine.load(path, target, parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return msgspec.json.encode((loaded.load_seconds, peak))


def measure(path: Path, repeats: int) -> dict[str, list[tuple[float, int]]]:
    """Seconds and peak bytes of each kind of load, ``repeats`` times, in turns."""
    target = emulated_target()
    parts = [part.part for part in reference_parts(Checkpoint(path))]
    seen: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    with LoadProcess(target) as process:
        for kind in KINDS * repeats:
            argument: Any = (str(path), target, parts, kind)
            answer = process.run(
                "benchmarks.ledger_cost:load_job", msgspec.json.encode(argument), timeout=900
            )
            seen[kind].append(msgspec.json.decode(answer, type=tuple[float, int]))
    return seen


def main() -> None:
    """Write a checkpoint, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="qwen3-vl-moe")
    parser.add_argument("--shapes", default="tiny")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        written = write_checkpoint(
            options.family, Path(directory, "checkpoint"), shapes=options.shapes,
            layers=options.layers, experts=options.experts,
        )  # fmt: skip
        seen = measure(written.path, options.repeats)
    base = median(seconds for seconds, _ in seen[KINDS[0]])
    print(f"{options.family} {options.shapes}, {written.nbytes / _MIB:.0f} MiB")
    for kind, results in seen.items():
        seconds, peak = (median(column) for column in zip(*results, strict=True))
        print(f"{kind:<18} {seconds:7.2f} s  x{seconds / base:.3f}  peak {peak / _MIB:6.0f} MiB")


if __name__ == "__main__":
    main()
