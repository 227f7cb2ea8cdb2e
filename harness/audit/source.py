"""Where the audited sources are and what of them is read. Nothing of them is ever imported.

A whole vLLM has 1800 to 2900 Python files; fewer than 250 of them hold the word that matters, so
files are chosen by their text and only those are parsed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.base.errors import BadInput

_RELEASE = re.compile(r"version = '([^']+)'")


@dataclass(frozen=True)
class SourceModule:
    """One parsed file: its path inside the package's parent, with forward slashes, and its tree."""

    file: str
    tree: ast.Module


@dataclass(frozen=True)
class Package:
    """A Python package on disk."""

    name: str
    path: Path
    _parsed: dict[str, ast.Module] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Every Python file's text, by its path inside the package's parent."""
        files = sorted(self.path.rglob("*.py"))
        return {self._relative(file): file.read_text("utf-8", "replace") for file in files}

    @property
    def version(self) -> str:
        """The release: as the build wrote it, or as installed; empty in a bare checkout."""
        found = _RELEASE.search(self.texts.get(f"{self.name}/_version.py", ""))
        installed = [
            p.name.split("-")[1] for p in self.path.parent.glob(f"{self.name}-*.dist-info")
        ]
        return found[1] if found else ".".join(installed).removesuffix(".dist")

    def module(self, file: str) -> SourceModule:
        """One file, parsed; ``file`` is a key of :attr:`texts`."""
        if file not in self._parsed:
            self._parsed[file] = _parsed(file, self.texts[file])
        return SourceModule(file, self._parsed[file])

    def modules(self, *words: str, under: str = "") -> Iterator[SourceModule]:
        """The files below ``under`` whose text holds one of ``words``, parsed.

        Raises:
            BadInput: a file is no Python this interpreter can parse.
        """
        for file, text in self.texts.items():
            if file.startswith(f"{self.name}/{under}") and any(word in text for word in words):
                yield self.module(file)

    def _relative(self, file: Path) -> str:
        return (Path(self.name) / file.relative_to(self.path)).as_posix()


def _parsed(file: str, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise BadInput(
            f"not Python: {error.msg}",
            where=f"{file}:{error.lineno}",
            expected="sources this interpreter can parse",
            hint="run the audit with the Python the audited release is for",
        ) from error


def package_at(name: str, path: Path | None) -> Package:
    """The package ``name``: in a checkout, as a package directory, or as installed.

    Args:
        name: the import name.
        path: a directory that holds the package, or is it; None for the installed one.

    Raises:
        BadInput: no such package there.
    """
    if path is None:
        return Package(name, _installed(name))
    for candidate in (path / name, path):
        if candidate.name == name and (candidate / "__init__.py").is_file():
            return Package(name, candidate)
    raise BadInput(
        f"no package {name} here",
        where=str(path),
        expected=f"a checkout that holds {name}/__init__.py, or the directory {name} itself",
        hint=f"git clone the sources, or leave the option out to audit the installed {name}",
    )


def installed_package(name: str) -> Package | None:
    """The installed package, or None; a top-level package is found without importing it."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Package(name, Path(places[0])) if places else None


def _installed(name: str) -> Path:
    if found := installed_package(name):
        return found.path
    raise BadInput(
        f"{name} is not installed here",
        where="this interpreter's packages",
        expected=f"{name} installed, or the path of a checkout",
        hint="make setup, or name a checkout",
    )
