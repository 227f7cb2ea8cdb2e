"""All families: those of this package, one file each, and those of packages that register more.

A file of this package that holds a ``FAMILY`` is one; another package brings one by an entry point
in the group ``harness.families``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

import harness.families
from harness.base.errors import BadInput
from harness.families.family import Family, Recipe

_GROUP = "harness.families"


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their files."""
    names = sorted(module.name for module in pkgutil.iter_modules(harness.families.__path__))
    modules = [importlib.import_module(f"{harness.families.__name__}.{name}") for name in names]
    own = [module.FAMILY for module in modules if isinstance(getattr(module, "FAMILY", 0), Family)]
    return (*own, *(entry.load() for entry in entry_points(group=_GROUP)))


@cache
def recipes() -> dict[str, tuple[Family, Recipe]]:
    """What can be written, by name: the family and the recipe."""
    return {recipe.name: (family, recipe) for family in families() for recipe in family.recipes}


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
            f"unknown family {name!r}",
            where="FAMILY",
            expected="one of " + ", ".join(recipes()),
            hint="harness checkpoint qwen3.5-mtp OUT",
        )
    return recipes()[name]
