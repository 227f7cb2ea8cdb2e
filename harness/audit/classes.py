"""Which model classes run a piece of code, and which architectures these are.

Reached means: the class whose method it is, or a class whose methods name the function; then every
class that names one of those, in its bases or its body, in the same module and in modules that
import it. A class that names another and never runs the code in question is counted too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from harness.audit.source import Package

_REGISTRY = "model_executor/models/registry.py"


def concerned_classes(vllm: Package, file: str, function: str) -> tuple[str, ...]:
    """Names of the classes that reach ``function`` of ``file``, in alphabetical order.

    Args:
        vllm: the audited package.
        file: path of the module inside the package's parent.
        function: class and functions, joined by points.
    """
    tree = vllm.module(file).tree
    owner, _, _ = function.partition(".")
    here = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    first = {owner} if owner in here else _naming(here.values(), {owner})
    found = _reaching(list(here.values()), first)
    for module in vllm.modules(*found, under="model"):
        if module.file != file and (imported := _imported(module.tree) & found):
            classes = [n for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)]
            found |= _reaching(classes, imported) - imported
    return tuple(sorted(found))


def architectures(vllm: Package, classes: Iterable[str]) -> tuple[str, ...]:
    """What ``config.json`` calls those of ``classes`` the registry knows."""
    wanted = set(classes)
    found = set()
    for module in vllm.modules("", under=_REGISTRY):
        for table in (node for node in ast.walk(module.tree) if isinstance(node, ast.Dict)):
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and value.elts:
                    last = value.elts[-1]
                    if isinstance(last, ast.Constant) and last.value in wanted:
                        found.add(str(key.value))
    return tuple(sorted(found))


def _reaching(classes: list[ast.ClassDef], first: set[str]) -> set[str]:
    """``first`` and every class that names one of them, however indirectly."""
    found, added = set(first), set(first)
    while added:
        added = _naming(classes, found) - found
        found |= added
    return found


def _naming(classes: Iterable[ast.ClassDef], names: set[str]) -> set[str]:
    return {node.name for node in classes if names & _names(node)}


def _names(node: ast.AST) -> set[str]:
    """Every name and attribute of a tree."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _imported(tree: ast.Module) -> set[str]:
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))
    return {alias.name for node in imports for alias in node.names}
