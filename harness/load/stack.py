"""The upstream releases under test, which stack they make, and the harness that tests them."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from harness.base.errors import TargetUnavailable

HARNESS = "moe-load-harness"

#: Distributions whose versions a report states; the first names the stack, the last is ours.
PACKAGES: tuple[str, ...] = (
    "vllm", "tpu-inference", "runai-model-streamer", "jax", "jaxlib", "torch", "torch-xla",
    "torchax", "transformers", "safetensors", "numpy", HARNESS,
)  # fmt: skip

#: What upstream pins, and ``STREAMER=`` may replace.
_STREAMER = "runai-model-streamer"
#: A build of a day.
_OF_A_DAY = re.compile(r"\.dev(\d{8})$")

_REQUIRED = ("vllm", "tpu-inference", "runai-model-streamer", "jax", "torch")


def installed_versions() -> dict[str, str]:
    """The installed version of each of :data:`PACKAGES`; absent ones are left out.

    The harness's own has the commit, where it is a checkout: ``0.1.0 (0123456789ab-dirty)``; a
    streamer that is not upstream's pin says so: ``0.17.0 (tpu-inference pins 0.15.9)``.
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if HARNESS in found and (commit := commit_of(Path(__file__).parents[2])):
        found[HARNESS] += f" ({commit})"
    if _STREAMER in found and (pin := pinned_streamer()) not in ("", found[_STREAMER]):
        found[_STREAMER] += f" (tpu-inference pins {pin})"
    return found


def pinned_streamer() -> str:
    """The version of the streamer that the installed tpu-inference pins; empty for none."""
    try:
        stated = requires("tpu-inference") or []
    except PackageNotFoundError:
        return ""
    for line in stated:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        pins = [s.version for s in requirement.specifier if s.operator == "=="]
        if requirement.name == _STREAMER and pins:
            return pins[0]
    return ""


def under_test(versions: dict[str, str]) -> dict[str, str]:
    """Of all ``versions`` of a report, those of :data:`PACKAGES`: what a reader is shown."""
    return {name: versions[name] for name in PACKAGES if name in versions}


def every_version(under_test: dict[str, str]) -> dict[str, str]:
    """``under_test``, and then the version of every other installed distribution, sorted."""
    return under_test | {n: v for n, v in _others().items() if n not in under_test}


@cache
def _others() -> dict[str, str]:
    """Every installed distribution by its normalised name, as its folder has name and version.

    The folder's name is enough: to read two hundred files of metadata takes longer than a load.
    """
    found = {}
    for one in distributions():
        folder = str(getattr(one, "_path", "")).rpartition("/")[2]
        name, _, number = folder.removesuffix(".dist-info").rpartition("-")
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = number
    return dict(sorted(found.items()))


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
    """The stack as people call it: vLLM's minor release, ``0.26``.

    Where tpu-inference has another number, or is the build of a day, that follows: ``0.33+0.32``,
    ``0.32+0.32.0.dev20261024``.
    """
    vllm, tpu = versions.get("vllm", "none"), versions.get("tpu-inference", "")
    minor, other = (".".join(text.split(".")[:2]) for text in (vllm, tpu))
    if _OF_A_DAY.search(tpu):
        return f"{minor}+{tpu}"
    return minor if other in ("", minor) else f"{minor}+{other}"


def chronological(text: str) -> Version:
    """A version that compares as builds followed each other.

    tpu-inference names the builds of the days after a release by that release: 0.26.0 was built on
    2026-07-31, ``0.26.0.dev20260731`` to ``0.26.0.dev20260820`` until 0.27.0 was, while PEP 440 has
    them before 0.26.0.

    Raises:
        packaging.version.InvalidVersion: it is none.
    """
    return Version(_OF_A_DAY.sub(r".post\1", text))
