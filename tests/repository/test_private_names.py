"""Tests use what the harness offers: none reaches for a name that begins with an underscore."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent
TESTS = Path(__file__).parents[1]

#: Upstream's own, which layers around its loader override, those of torch's modules, and those of
#: every named tuple.
OTHERS = {
    "_get_weights_iterator", "_prepare_weights", "_buffers", "_parameters", "_replace", "_fields",
    "_asdict",
}  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def defined(tree: ast.AST) -> Iterator[str]:
    """The private names that a module gives: to functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                found = name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found = name
            case _:
                continue
        if is_private(found) and found not in OTHERS:
            yield found


@cache
def private_names() -> frozenset[str]:
    sources = (path.read_text() for path in ROOT.rglob("*.py"))
    return frozenset(name for text in sources for name in defined(ast.parse(text)))


def used(text: str) -> Iterator[str]:
    """The private names of the harness that a test reads, imports or replaces.

    A class of the test's own may have an attribute of the same name, and use it by ``self``.
    """
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if (
                module.split(".")[0] == "harness"
            ):
                yield from (name.name for name in names if is_private(name.name))
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if name in private_names():
                yield name
            case ast.Call(func=ast.Attribute(attr="setattr" | "delattr"), args=arguments):
                texts = (a.value for a in arguments if isinstance(a, ast.Constant))
                ends = (text.rpartition(".")[2] for text in texts if isinstance(text, str))
                yield from (name for name in ends if name in private_names())


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_private_name_of_the_harness_is_used(path: Path) -> None:
    assert list(used(path.read_text())) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from harness.base.secrets import _known", "_known"),
        ("from harness.base import secrets\nsecrets._known()", "_known"),
        ('monkeypatch.setattr(secrets, "_known", dict)', "_known"),
        ('monkeypatch.setattr("harness.base.secrets._known", dict)', "_known"),
        ("recorder._ledger.calls", "_ledger"),
    ],
)
def test_who_reaches_for_one_is_seen(text: str, name: str) -> None:
    assert list(used(text)) == [name]


@pytest.mark.parametrize(
    "text", ["self._known", "key._replace(layer=1)", "loader._get_weights_iterator()"]
)
def test_what_is_the_tests_own_or_others_is_not(text: str) -> None:
    assert list(used(text)) == []
