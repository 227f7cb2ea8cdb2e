"""Every format there is: a file of this package that has ``FORMATS`` is found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import harness.families.formats as package
from harness.base.errors import BadInput
from harness.families.formats.format import WeightFormat


@cache
def formats() -> dict[str, type[WeightFormat]]:
    """All formats, by name."""
    found: dict[str, type[WeightFormat]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        held = importlib.import_module(f"{package.__name__}.{module.name}")
        found |= {each.name: each for each in getattr(held, "FORMATS", ())}
    return found


def format_named(name: str) -> WeightFormat:
    """The format of that name, as the writer makes it.

    Raises:
        BadInput: there is none.
    """
    if name not in formats():
        raise BadInput(
            f"unknown format {name!r}", where="--quantised",
            expected="one of " + ", ".join(formats()), hint="--quantised fp8",
        )  # fmt: skip
    return formats()[name]()


def format_of(quantization: Mapping[str, Any]) -> WeightFormat | None:
    """The format that ``quantization_config`` announces, if any is known to."""
    return next((f for each in formats().values() if (f := each.of(quantization))), None)
