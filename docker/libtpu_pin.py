"""Prints the libtpu that the installed tpu-inference requires, as ``libtpu==<version>``.

The stacks leave libtpu out (``ci/stacks/off-tpu.overrides``): it is for a TPU only. tpu-inference
pins it in its metadata, for a release and for a commit alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import requires


def pin(requirements: Iterable[str]) -> str:
    """The libtpu among ``requirements``.

    Raises:
        SystemExit: there is none.
    """
    for requirement in requirements:
        name, _, version = requirement.partition(";")[0].partition("==")
        if name.strip() == "libtpu" and version:
            return f"libtpu=={version.strip()}"
    raise SystemExit("tpu-inference pins no libtpu: install the one its documentation names")


if __name__ == "__main__":
    sys.stdout.write(pin(requires("tpu-inference") or []) + "\n")
