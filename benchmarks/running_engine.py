"""An engine that runs, asked for its weights: seconds by each reference; a flipped bit is named.

``PYTHONPATH=. python benchmarks/running_engine.py [CHECKPOINT] [--target gpu]``; without a
checkpoint a tiny one is written. It ends with status 1 where an engine that holds its checkpoint is
not found equal, or one bit that is changed in place is not named.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from harness.compare.digest_comparison import Method
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.stack import require_stack
from harness.load.targets.known_targets import driver_of, target_named
from harness.report.report import Report
from harness.synthetic.writer import write_checkpoint
from harness.verification.digests import write_digests
from harness.verification.running import verify_engine
from tests.support.engines import executor_of, flip_a_bit


def main() -> int:
    """Ask, change a bit, ask again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="")
    parser.add_argument("--target", default="emulated")
    parser.add_argument("--devices", type=int)
    options = parser.parse_args()
    require_stack()
    target = target_named(options.target, options.devices)
    os.environ.update(target.environment)
    with tempfile.TemporaryDirectory() as scratch:
        path = options.checkpoint or str(write_checkpoint("qwen3.5-mtp", Path(scratch, "c")).path)
        digests = Path(scratch, "digests")
        write_digests(path, digests)
        driver_of(target).ready(target)
        started = time.perf_counter()
        drafts = any(n.part is Part.MTP for n in ModelCheckpoint(path).namings)
        executor = executor_of(path, target, draft=drafts)
        print(f"loaded in {time.perf_counter() - started:.1f} s, {target}")
        wrong = [
            _told(name, verify_engine(executor, reference, method=method), equal=True)
            for name, reference, method in (
                ("checkpoint", path, Method.AUTO),
                ("digest file", digests, Method.AUTO),
                ("read back", path, Method.READBACK),
            )
        ]
        print(f"changed one bit of {flip_a_bit(executor, 'w2_weight')}, where it lies")
        for name, reference in (("checkpoint", path), ("digest file", str(digests))):
            wrong.append(_told(name, verify_engine(executor, reference), equal=False))
    return int(any(wrong))


def _told(name: str, report: Report, *, equal: bool) -> bool:
    """Print a report; whether it is not as it should be."""
    causes = "; ".join(diagnosis.summary for diagnosis in report.diagnoses)
    print(
        f"{name:12} {report.status:10} {report.experts_compared} experts, "
        f"{sum(tally.compared for tally in report.parameters)} other parameters, "
        f"{report.timings.compare:.2f} s, peak RSS {report.timings.peak_rss / 1e9:.1f} GB  {causes}"
    )
    flipped = any("is flipped" in diagnosis.summary for diagnosis in report.diagnoses)
    return bool(report.diagnoses) if equal else not flipped


if __name__ == "__main__":
    sys.exit(main())
