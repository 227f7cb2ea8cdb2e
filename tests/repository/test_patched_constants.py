"""Tests give values: none replaces a constant of the product to have it smaller."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
#: What replaces an attribute: pytest's, Python's, and those of unittest.mock.
_REPLACING = {"setattr", "delattr", "patch", "object"}


def is_constant(name: str) -> bool:
    return name.isupper() and not name.startswith("_")


@cache
def constants() -> frozenset[str]:
    """The upper-case names that modules of the product give at their top."""
    trees = (
        ast.parse(path.read_text())
        for room in ("harness", "scenarios", "ci")
        for path in (ROOT / room).rglob("*.py")
    )
    tops = (node for tree in trees for node in tree.body)
    stored = (
        name.id
        for node in tops
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    )
    return frozenset(filter(is_constant, stored))


def replaced(text: str) -> Iterator[str]:
    """The constants of the product that a test replaces, by whatever means."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()):
                found = [name]
            case ast.Call(
                func=ast.Attribute(attr=function) | ast.Name(id=function), args=arguments
            ) if function in _REPLACING:
                texts = (a.value for a in arguments if isinstance(a, ast.Constant))
                found = [each.rpartition(".")[2] for each in texts if isinstance(each, str)]
            case _:
                continue
        yield from (name for name in found if name in constants())


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_constant_of_the_product_is_replaced(path: Path) -> None:
    assert list(replaced(path.read_text())) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('monkeypatch.setattr(scanning, "STRETCH", 4)', "STRETCH"),
        ('monkeypatch.setattr("harness.base.scanning.STRETCH", 4)', "STRETCH"),
        ('monkeypatch.delattr(scanning, "STRETCH")', "STRETCH"),
        ('setattr(scanning, "STRETCH", 4)', "STRETCH"),
        ("scanning.STRETCH = 4", "STRETCH"),
        ('patch("harness.base.scanning.STRETCH", 4)', "STRETCH"),
        ('mock.patch.object(scanning, "STRETCH", 4)', "STRETCH"),
        ('monkeypatch.setattr(runs_page, "LOADS", path)', "LOADS"),
    ],
)
def test_who_replaces_one_is_seen(text: str, name: str) -> None:
    assert list(replaced(text)) == [name]


@pytest.mark.parametrize(
    "text",
    [
        'monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)',
        'monkeypatch.setattr(provenance, "find_bytes", search)',
        'monkeypatch.setenv("STRETCH", "4")',
        "nonzero(bits, stretch=4)",
    ],
)
def test_what_is_others_or_a_value_is_not(text: str) -> None:
    assert list(replaced(text)) == []
