"""The stacks that are set up beside the running one, and verifying on them.

Run as a program, in the environment of a stack, it verifies checkpoints one after the other, from
one process that has imported the stack once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from harness.load.process import LoadProcesses
from harness.load.targets.known_targets import target_named
from harness.report.report import Report
from harness.verification.verify import verify

ROOT = Path(__file__).parents[2]
_TIMEOUT = 900.0


def environment_of(stack: str) -> Path:
    """The environment of a stack that is set up in this checkout; the default one's is ``.venv``.

    Where there is none the test is skipped.
    """
    found = sorted(ROOT.glob(f".venv*/lib/python3.*/site-packages/vllm-{stack}.*.dist-info"))
    if not found:
        pytest.skip(f"stack {stack} is not set up: make setup STACK={stack}")
    return found[0].parents[3]


def verified_on(stack: str, checkpoints: Sequence[Path]) -> list[Report]:
    """The report of each checkpoint, verified on another stack and without an option."""
    python = environment_of(stack) / "bin" / "python"
    done = subprocess.run(
        [python, "-m", __name__, *map(str, checkpoints)],
        cwd=ROOT, capture_output=True, check=False, timeout=_TIMEOUT,
    )  # fmt: skip
    assert not done.returncode, done.stderr.decode()[-3000:]
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Report])


def _reports(checkpoints: Sequence[str]) -> list[Report]:
    target = target_named("emulated")  # vLLM's implementation, of every family
    with LoadProcesses() as processes:
        return [verify(checkpoint, target, processes=processes) for checkpoint in checkpoints]


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_reports(sys.argv[1:])) + b"\n")
