"""Bounds of every number that a user or a checkpoint hands in, and the readers that hold them.

A number out of bounds is refused where it comes in, before anything is sized by it: a count of
experts makes lists, a count of devices makes threads, a count of seconds goes to the kernel.
Published models and TPU slices stay far below each bound; what is left below it costs seconds.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from harness.base.errors import BadInput

#: Emulated devices: as many as a whole TPU v6e pod has. Each takes threads and buffers of one
#: machine; a million of them took minutes before they failed.
MOST_EMULATED_DEVICES = 256
#: Emulated hosts: each is a process that holds the imported stack, some 1 GB.
MOST_EMULATED_HOSTS = 16
#: Hosts of a TPU slice. The largest, TPU7x's, has 9216 chips, four to a host.
MOST_TPU_HOSTS = 4096
#: Seconds to wait for anything: a day, beyond which the kernel's own limits are not far (2**31 ms).
MOST_SECONDS = 86_400.0

#: Experts a layer, and of all layers together. Published models have up to 512 and 30 720.
MOST_EXPERTS = 4096
MOST_EXPERTS_OF_ALL_LAYERS = 2**18
#: Heads, and the width of one: layouts are tables of heads.
MOST_HEADS = 2**16
#: Any other size of a model: vLLM's and torch's shapes hold it, and so does one axis of a tensor.
MOST_OF_A_SIZE = 2**31 - 1

_MODEL = "the config.json of the published model"


def require_count(value: object, what: str, *, where: str, most: int, why: str) -> int:
    """``value`` as a count: an integer from 1 to ``most``.

    Args:
        value: what was asked for.
        what: it counts, in the plural.
        where: the option.
        most: the largest there is.
        why: there are no more.

    Raises:
        BadInput: it is something else.
    """
    if type(value) is int and 1 <= value <= most:
        return value
    raise BadInput(
        f"{shown(value)} {what}",
        where=where,
        expected=f"a whole number from 1 to {most}: {why}",
        hint=f"{where} {min(4, most)}",
    )


def require_seconds(value: object, where: str) -> float:
    """``value`` as seconds to wait: a number above 0, a day at most.

    Args:
        value: what was asked for.
        where: the option.

    Raises:
        BadInput: it is something else.
    """
    if isinstance(value, int | float) and value is not True and 0 < value <= MOST_SECONDS:
        return float(value)
    raise BadInput(
        f"{shown(value)} seconds",
        where=where,
        expected=f"more than 0 and at most {MOST_SECONDS:.0f} seconds, a day",
        hint=f"{where} 3600",
    )


def section(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """The object ``key`` of ``config.json``; None where it has none.

    Raises:
        BadInput: it is no object.
    """
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise BadInput(
            f"{key} is a JSON {type(value).__name__}",
            where=where,
            expected="a JSON object",
            hint=_MODEL,
        )
    return value if key in config else None


def size(
    of: Mapping[str, Any],
    key: str,
    where: str,
    *,
    least: int = 1,
    most: int = MOST_OF_A_SIZE,
    default: int | None = None,
    why: str = "",
) -> int:
    """The number ``key`` of ``config.json``: a JSON integer, no text, boolean or fraction.

    Args:
        of: the object that has it.
        key: its name.
        where: the file is.
        least: the smallest.
        most: the largest.
        default: what stands for an absent one; without, it has to be there.
        why: it cannot be larger.

    Raises:
        BadInput: it is absent, something else, or out of bounds.
    """
    value = of.get(key, default)
    if type(value) is int and least <= value <= most:
        return value
    raise BadInput(
        f"{key} is {shown(of[key])}" if key in of else f"{key} is absent",
        where=where,
        expected=f"an integer from {least} to {most}" + (f", {why}" if why else ""),
        hint=_MODEL,
    )


def flag(of: Mapping[str, Any], key: str, where: str) -> bool:
    """The boolean ``key`` of ``config.json``; false where it is absent.

    Raises:
        BadInput: it is no boolean: the text "false" would count as true.
    """
    value = of.get(key, False)
    if isinstance(value, bool):
        return value
    raise BadInput(f"{key} is {shown(value)}", where=where, expected="true or false", hint=_MODEL)


class _Shown(reprlib.Repr):
    """Values for a message: never deep, never long, whatever they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out integers of more than 4300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 8192 else "a huge integer"


def shown(value: object) -> str:
    """A value as a message may name it: printable ASCII, some 200 characters at most."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = _Shown().repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:197]}..."
