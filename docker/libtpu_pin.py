"""Prints the libtpu that the installed tpu-inference requires, as ``libtpu==<version>``.

The stacks leave libtpu out (``ci/stacks/off-tpu.overrides``): it is for a TPU only. tpu-inference
pins it in its metadata, for a release and for a commit alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement


def pin(requirements: Iterable[str]) -> str:
    """The libtpu among ``requirements``.

    Raises:
        SystemExit: there is none.
    """
    for requirement in map(Requirement, requirements):
        if requirement.name == "libtpu" and str(requirement.specifier).startswith("=="):
            return f"libtpu{requirement.specifier}"
    raise SystemExit("tpu-inference pins no libtpu: install the one its documentation names")


if __name__ == "__main__":
    sys.stdout.write(pin(requires("tpu-inference") or []) + "\n")
