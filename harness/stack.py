"""The upstream releases under test: which are installed, and which stack they make."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from harness.errors import TargetUnavailable

#: Distributions whose versions a report states; the first two name the stack.
PACKAGES: tuple[str, ...] = (
    "vllm", "tpu-inference", "runai-model-streamer", "jax", "jaxlib", "torch", "torch-xla",
    "torchax", "transformers", "safetensors", "numpy",
)  # fmt: skip

_REQUIRED = ("vllm", "tpu-inference", "runai-model-streamer", "jax", "torch")


def installed_versions() -> dict[str, str]:
    """The installed version of each of :data:`PACKAGES`; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def require_stack() -> dict[str, str]:
    """The installed versions, when everything a load needs is installed.

    Raises:
        TargetUnavailable: a package is absent.
    """
    found = installed_versions()
    if absent := [package for package in _REQUIRED if package not in found]:
        raise TargetUnavailable(
            f"the stack under test is not installed: {', '.join(absent)}",
            where=f"the environment of Python {platform.python_version()}",
            expected=", ".join(_REQUIRED),
            hint="make setup, then .venv/bin/harness",
        )
    return found


def stack_name(versions: dict[str, str]) -> str:
    """The stack as people call it: vLLM's minor release, ``0.26``."""
    return ".".join(versions.get("vllm", "none").split(".")[:2])
