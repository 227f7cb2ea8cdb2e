"""Fails where a run of tests skipped one for want of anything but a TPU or a GPU.

``python3 ci/skips.py FILE``, standard library only; FILE is the output of pytest, of which ``-ra``
lists each skip and its reason.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SKIPPED = re.compile(r"^SKIPPED \[\d+\] (.+)$", re.MULTILINE)
#: What no machine of CI has, and what there is nothing of in a release, so nothing to test.
RIGHT = re.compile(r"\b(TPUs?|GPUs?|CUDA|this release has no|loads on 0\.21)\b")


def wrong_skips(output: str) -> list[str]:
    """Each skip that has another reason: the test's place, and why."""
    return [said for said in SKIPPED.findall(output) if not RIGHT.search(said.partition(": ")[2])]


def main(path: str) -> int:
    found = wrong_skips(Path(path).read_text(errors="replace"))
    for said in found:
        print(f"ci: skipped, though nothing but a TPU or a GPU may be missing: {said}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
