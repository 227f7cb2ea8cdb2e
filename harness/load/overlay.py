"""Bring your own: a checkout's Python laid over the installed packages of a stack.

``path:<vllm checkout>[,<tpu-inference checkout>]``, or ``path:,<tpu-inference checkout>``, puts the
checkouts' packages, and nothing else of the checkouts, before the installed ones on the load
process's import path. The installed packages are never edited. Compiled parts are not needed to
load weights onto XLA devices.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from harness.base.errors import BadInput

PREFIX = "path:"
_PACKAGES = ("vllm", "tpu_inference")
_REQUIREMENTS = {"vllm": "requirements/common.txt", "tpu_inference": "requirements.txt"}

#: Pins a stack overrides on purpose (``ci/stacks/*.overrides``); a checkout need not meet them.
_OVERRIDDEN = {
    "torch", "torchvision", "torchaudio", "torch-xla", "torchcodec", "numba", "libtpu",
    "flashinfer-python", "flashinfer-cubin",
}  # fmt: skip


@dataclass(frozen=True)
class Overlay:
    """Packages to import from somewhere else: import name to package directory."""

    packages: dict[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {_commit(path)}" for name, path in self.packages.items())

    @property
    def option(self) -> str:
        """What ``--stack`` is given to get it; empty for none."""
        named = [str(self.packages.get(name, "")) for name in _PACKAGES]
        return PREFIX + ",".join(named).rstrip(",") if self.packages else ""

    def link_into(self, directory: Path) -> Path:
        """Make ``directory`` an import path that holds the packages and nothing else."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, package in self.packages.items():
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(package)
        return directory


def overlay_from(stack: str) -> Overlay:
    """The overlay that ``STACK=`` asks for; an empty one for the name of a stack.

    Raises:
        BadInput: a checkout is absent, is none, or does not fit the installed stack's pins.
    """
    if not stack.startswith(PREFIX):
        return Overlay()
    checkouts = [path and Path(path).expanduser() for path in stack.removeprefix(PREFIX).split(",")]
    if len(checkouts) > len(_PACKAGES):
        raise BadInput(
            f"{len(checkouts)} checkouts",
            where=f"STACK={stack}",
            expected="path:<vllm checkout>[,<tpu-inference checkout>]",
            hint="at most these two",
        )
    packages = {}
    for name, checkout in zip(_PACKAGES, checkouts, strict=False):
        if checkout == "" and len(checkouts) > 1:
            continue  # that package stays as it is installed
        packages[name] = _package(name, Path(checkout))
        _require_pins(name, Path(checkout))
    return Overlay(packages)


def _package(name: str, checkout: Path) -> Path:
    for candidate in (checkout / name, checkout):
        if candidate.name == name and (candidate / "__init__.py").is_file():
            return candidate.resolve()
    raise BadInput(
        f"no package {name} in the checkout",
        where=str(checkout),
        expected=f"a directory that holds {name}/__init__.py",
        hint="STACK=path:<vllm checkout>[,<tpu-inference checkout>], in this order",
    )


def _require_pins(name: str, checkout: Path) -> None:
    """The checkout's own requirements, where it states them, must be met by what is installed."""
    stated = checkout / _REQUIREMENTS[name]
    if not stated.is_file():
        return
    unmet = [text for line in stated.read_text().splitlines() if (text := _unmet(line))]
    if unmet:
        raise BadInput(
            f"the checkout of {name} does not fit the installed stack: {'; '.join(unmet)}",
            where=str(stated),
            expected="requirements that the stack's pins meet",
            hint="a stack nearer to the checkout, or a checkout nearer to the stack",
        )


def _unmet(line: str) -> str:
    try:
        requirement = Requirement(line.split("#")[0].strip())
    except InvalidRequirement:
        return ""  # blank, an option, or a URL
    if requirement.name.lower() in _OVERRIDDEN:
        return ""
    if requirement.marker and not requirement.marker.evaluate():
        return ""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement} is not installed"
    met = requirement.specifier.contains(installed, prereleases=True)
    return "" if met else f"{requirement}, installed is {installed}"


def _commit(package: Path) -> str:
    """Where a package came from: path and commit, and whether files were changed since."""
    git = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12"]
    ran = subprocess.run(git, capture_output=True, text=True, check=False)
    commit = ran.stdout.strip() if ran.returncode == 0 else "no commit"
    return f"{package} ({commit})"
