"""One word for one thing: no two modules, and no two classes, of the harness share a name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent


def shared(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def modules(root: Path) -> list[str]:
    """The names of files; every room has an ``__init__``."""
    return [path.stem for path in root.rglob("*.py") if path.stem != "__init__"]


def classes(root: Path) -> list[str]:
    """The names of classes at the top of files, but for those that are a file's own."""
    trees = (ast.parse(path.read_text()) for path in root.rglob("*.py"))
    named = (node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    return [name for name in named if not name.startswith("_")]


def test_no_two_modules_share_a_name() -> None:
    assert shared(modules(ROOT)) == []


def test_no_two_classes_share_a_name() -> None:
    assert shared(classes(ROOT)) == []


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("a/place.py", "b/place.py", ["place"]),
        ("a/place.py", "b/location.py", []),
        ("a/__init__.py", "b/__init__.py", []),
    ],
)
def test_a_name_of_two_modules_is_seen(
    tmp_path: Path, one: str, other: str, found: list[str]
) -> None:
    for name in (one, other):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("class Place: ...\n\nclass _Own: ...\n")
    assert shared(modules(tmp_path)) == found
    assert shared(classes(tmp_path)) == ["Place"]
