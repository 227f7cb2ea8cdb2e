"""All families: those of this package, one file each; those of packages, and of files, beside it.

A file of this package that holds a ``FAMILY`` is one. Another package brings one by an entry point
in the group ``harness.families``, and a user by a Python file that holds a ``FAMILY``
(``--family``). What somebody brings is code, and runs as what it is.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import harness.families
from harness.base.errors import BadInput
from harness.families.family import Family, Recipe

_GROUP = "harness.families"
#: What is read of a file at most.
MOST_BYTES = 2**20
_HINT = "docs/own-family.md shows a file of a family"


class _Brought(NamedTuple):
    """What a file brought, and the digest of what stood in it."""

    digest: bytes
    family: Family


#: By path, what files brought to this process.
_BROUGHT: dict[str, _Brought] = {}


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their files; then what packages and files bring.

    Raises:
        BadInput: an entry point brings no family, or one with the name, the architecture or a
            recipe of another.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(harness.families.__path__))
    modules = [importlib.import_module(f"{harness.families.__name__}.{name}") for name in names]
    found = [
        module.FAMILY for module in modules if isinstance(getattr(module, "FAMILY", 0), Family)
    ]
    for entry in entry_points(group=_GROUP):
        found.append(_usable(_loaded(entry), entry.value, found))
    return (*found, *(brought.family for brought in _BROUGHT.values()))


@cache
def recipes() -> dict[str, tuple[Family, Recipe]]:
    """What can be written, by name: the family and the recipe."""
    return {recipe.name: (family, recipe) for family in families() for recipe in family.recipes}


def bring(files: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Have the families of these Python files known, in this process, as if they were here.

    A file that was brought already is read again only if something else stands in it now.

    Returns:
        The files' absolute paths, by which another process can bring them.

    Raises:
        BadInput: one is no file, no Python, raises, has no ``FAMILY`` or one that cannot be used,
            or takes the name, the architecture or a recipe of another family.
    """
    return tuple(_bring(os.path.abspath(file)) for file in files)


def _bring(path: str) -> str:
    content = _content(path)
    digest = sha256(content).digest()
    before = _BROUGHT.pop(path, None)
    _know_anew()
    if before and before.digest == digest:
        family = before.family
    else:
        family = _usable(_executed(content, path), path, families())
        _know_anew()
    _BROUGHT[path] = _Brought(digest, family)
    return path


def forget() -> None:
    """Know no more of any file than before the first was brought."""
    _BROUGHT.clear()
    _know_anew()


def _know_anew() -> None:
    families.cache_clear()
    recipes.cache_clear()


def _content(path: str) -> bytes:
    try:
        path.encode()  # it goes into requests, which are text
        if not Path(path).is_file():
            raise OSError("no such file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _refused(f"it cannot be read: {error}", path) from error
    if len(content) > MOST_BYTES:
        raise _refused(f"it has more than {MOST_BYTES} bytes", path)
    return content


def _executed(content: bytes, path: str) -> object:
    """What the file calls ``FAMILY``; no compiled copy of it is left anywhere."""
    module = ModuleType(f"harness_family_{sha256(path.encode()).hexdigest()[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        code = compile(content, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(f"it is not Python: {error}", path) from error
    try:
        exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it raises, SystemExit too, it brings no family
        raise _refused(f"it raises {type(error).__name__}: {error}", path) from error
    if not hasattr(module, "FAMILY"):
        raise _refused("it has no FAMILY", path)
    return module.FAMILY


def _loaded(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:  # whatever its package raises
        raise _refused(f"it raises {type(error).__name__}: {error}", entry.value) from error


def _usable(brought: object, where: str, others: Iterable[Family]) -> Family:
    """``brought``, once it is a family beside ``others``, whose fields answer what is asked."""
    if not isinstance(brought, Family):
        raise _refused(f"its FAMILY is a {type(brought).__name__}, not a Family", where)
    for fault in _faults(brought, tuple(others)):
        raise _refused(fault, where)
    return brought


def _faults(family: Family, others: tuple[Family, ...]) -> Iterator[str]:
    """What keeps a family that somebody brings from being used."""
    for name, text in (("name", family.name), ("architecture", family.architecture)):
        if not isinstance(text, str) or not text.isprintable() or not text.strip():
            yield f"its {name} is {text!r}, not a word"
            return
    taken = {recipe.name: other for other in others for recipe in other.recipes}
    for other in others:
        if family.name == other.name:
            yield f"its name is taken: {family.name}"
        if family.architecture == other.architecture:
            yield f"its architecture is described already: {family.architecture}, by {other.name}"
    try:
        for recipe in family.recipes:
            if recipe.name in taken:
                yield f"its recipe's name is taken: {recipe.name}, by {taken[recipe.name].name}"
            tuple(family.tensors(family.tiny, recipe.mtp))
        tuple(family.rules)
        family.write_config(family.tiny, 0, False)
    except Exception as error:  # whatever its functions raise
        yield f"its FAMILY does not describe a model: {type(error).__name__}: {error}"


def _refused(fault: str, where: str) -> BadInput:
    return BadInput(
        f"not a family file: {fault}",
        where=where,
        expected="Python that defines FAMILY, a harness.families.family.Family of its own name, "
        "architecture and recipes",
        hint=_HINT,
    )


def family_of_architecture(architecture: object) -> Family | None:
    """The family whose ``config.json`` names ``architecture``, or None."""
    return next((family for family in families() if family.architecture == architecture), None)


def family_named(name: str) -> Family:
    """The family called ``name``, as requests between processes call it."""
    return next(family for family in families() if family.name == name)


def recipe_named(name: str) -> tuple[Family, Recipe]:
    """The family and the recipe called ``name``.

    Raises:
        BadInput: there is none.
    """
    if name not in recipes():
        raise BadInput(
            f"unknown recipe {name!r}",
            where="RECIPE",
            expected="one of " + ", ".join(recipes()),
            hint="harness checkpoint qwen3.5-mtp OUT",
        )
    return recipes()[name]
