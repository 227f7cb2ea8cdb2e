"""Documents changed by structure and by byte, for properties that hold of whatever comes in."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

#: Written as they stand here, where JSON's encoder would write something else or refuse.
_RAW = ("1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1.0", "01", "-0", '"\\ud800"')
_MARK = "\ue000"
_MARKED = re.compile(rf'"{_MARK}(\d+)"')

_ODD_TEXTS = (
    "", " ", "\0", "\x1b[31m", "\n", "é", "\U0001f600", "٢", "..", "../x", "/etc/passwd",
    "a" * 2000, "BF16", "U8", "F64", "x.safetensors", "fp8", "0", "-1", "0-5", "9-1", "0-999999999",
    "999999999e", "3e1d4e", "1e", "equal", "different", "load-failed", "decoder", "mtp", "bits",
    "<script>", "|`*_",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 8, 127, 128, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
    2**64, 10**18, 10**30, -(2**63), 0.5, 8.9, -0.0, 1e308, 1e-308,
)  # fmt: skip
_SCALARS = (
    st.sampled_from(_NUMBERS)
    | st.sampled_from(_ODD_TEXTS)
    | st.sampled_from([None, True, False])
    | st.integers(0, len(_RAW) - 1).map(lambda number: f"{_MARK}{number}")
    | st.integers(-9, 99)
    | st.text(max_size=6)
)
_VALUES = _SCALARS | st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_ODD_TEXTS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def encoded(document: Any) -> bytes:
    """JSON, with the odd numbers and texts of ``_RAW`` in it."""
    text = json.dumps(document)
    text = text.replace(json.dumps(_MARK)[1:-1], _MARK)
    return _MARKED.sub(lambda found: _RAW[int(found[1])], text).encode()


Slot = tuple[Any, Any]


@st.composite
def _slot(draw: st.DrawFn, document: Any) -> Slot | None:
    """A place in a document: a container and a key or index of it."""
    where: Slot | None = None
    at = document
    while isinstance(at, dict | list) and at:
        key = draw(st.sampled_from(sorted(at)) if isinstance(at, dict)
                   else st.integers(0, len(at) - 1))  # fmt: skip
        where, at = (at, key), at[key]
        if draw(st.integers(0, 3)) == 0:
            break
    return where


def _change(draw: st.DrawFn, document: Any) -> None:
    slot = draw(_slot(document))
    if slot is None:
        return
    container, key = slot
    kind = draw(
        st.sampled_from(["value", "value", "value", "remove", "swap", "add", "wrap", "grow"])
    )
    if kind == "value":
        container[key] = draw(_VALUES)
    elif kind == "remove":
        del container[key]
    elif kind == "wrap":
        wide = [container[key]] * draw(st.sampled_from([1, 2, 70]))
        container[key] = draw(st.sampled_from([wide, {"x": container[key]}, _deep(900)]))
    elif kind == "grow" and isinstance(container[key], list):
        container[key] = container[key] * draw(st.sampled_from([0, 2, 200]))
    elif kind == "add" and isinstance(container, dict):
        container[draw(st.sampled_from(_ODD_TEXTS) | st.text(max_size=6))] = draw(_VALUES)
    elif other := draw(_slot(document)):
        container[key] = copy.deepcopy(other[0][other[1]])


@st.composite
def changed_structure(draw: st.DrawFn, document: Callable[[], Any]) -> bytes:
    """A JSON document of which one to three values, members or items are others."""
    content = copy.deepcopy(document())
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, content)
    return encoded(content)


@st.composite
def changed_bytes(draw: st.DrawFn, document: Callable[[], bytes]) -> bytes:
    """Bytes of which a few are changed, left out, repeated or cut off."""
    content = bytearray(document())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["set", "set", "insert", "remove", "repeat", "cut"]))
        if kind == "set" and content:
            content[at] = draw(st.integers(0, 255) | st.sampled_from(b'"{}[],:0-9e.\\'))
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        elif kind == "remove":
            del content[at : at + length]
        elif kind == "repeat":
            content[at:at] = content[at : at + length]
        elif draw(st.booleans()):
            del content[at:]
    return bytes(content)


def changed(document: Callable[[], Any]) -> st.SearchStrategy[bytes]:
    """A JSON document, changed either way."""
    return changed_structure(document) | changed_bytes(lambda: json.dumps(document()).encode())
