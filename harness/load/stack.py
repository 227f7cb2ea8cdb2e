"""The upstream releases under test, which stack they make, and the harness that tests them."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.base.errors import TargetUnavailable

HARNESS = "moe-load-harness"

#: Distributions whose versions a report states; the first names the stack, the last is ours.
PACKAGES: tuple[str, ...] = (
    "vllm", "tpu-inference", "runai-model-streamer", "jax", "jaxlib", "torch", "torch-xla",
    "torchax", "transformers", "safetensors", "numpy", HARNESS,
)  # fmt: skip

_REQUIRED = ("vllm", "tpu-inference", "runai-model-streamer", "jax", "torch")


def installed_versions() -> dict[str, str]:
    """The installed version of each of :data:`PACKAGES`; absent ones are left out.

    The harness's own has the commit, where it is a checkout: ``0.1.0 (0123456789ab-dirty)``.
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if HARNESS in found and (commit := commit_of(Path(__file__).parents[2])):
        found[HARNESS] += f" ({commit})"
    return found


@cache
def commit_of(root: Path) -> str:
    """The commit of the checkout at ``root``, and whether it was changed since; empty for none."""
    if not (root / ".git").exists():
        return ""  # installed; what lies around site-packages is no checkout of the harness
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        ran = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


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
