"""What the loader hooks of tpu-inference read, and from where: the contract, from the code.

A hook is a function that is handed a loader's extra arguments: the wrapper around a parameter's
``weight_loader`` (``models/vllm/vllm_model_loader.py``) and the ``maybe_process_…`` methods it
hands them to (``layers/vllm/quantization/``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import msgspec

from harness.audit.origin import last_name
from harness.audit.source import Package, SourceModule

_HOOK = "maybe_process"
_FOLDERS = ("layers/vllm/", "models/vllm/")


class IdRead(msgspec.Struct, frozen=True):
    """One value a hook takes: the name it gets, the expression, the line."""

    name: str
    source: str
    line: int


class HookCode(msgspec.Struct, frozen=True, kw_only=True):
    """One hook.

    Attributes:
        file: path inside the package's parent, with ``line``.
        function: class and function.
        reads: what it takes from ``args`` and ``kwargs``.
        requires: its assertions, as source.
        hands_to: the hook it hands both on to; empty where it uses them itself.
    """

    file: str
    line: int
    function: str
    reads: tuple[IdRead, ...]
    requires: tuple[str, ...]
    hands_to: str


def hooks(tpu_inference: Package) -> list[HookCode]:
    """Every hook of an installed or checked-out tpu-inference."""
    found = []
    for folder in _FOLDERS:
        for module in tpu_inference.modules(_HOOK, under=folder):
            found += [
                hook
                for function, path in _functions(module.tree, "")
                if (hook := _hook(module, function, path))
            ]
    return found


def _functions(node: ast.AST, path: str) -> Iterator[tuple[ast.FunctionDef, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{path}.{child.name}".strip(".")
            if isinstance(child, ast.FunctionDef):
                yield child, inner
            yield from _functions(child, inner)
        else:
            yield from _functions(child, path)


def _hook(module: SourceModule, function: ast.FunctionDef, path: str) -> HookCode | None:
    arguments = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    if not {"args", "kwargs"} <= arguments:
        return None
    hands_to = next((n for n in map(_handed_to, _own(function)) if n), "")
    if not function.name.startswith(_HOOK) and not hands_to:
        return None
    return HookCode(
        file=module.file,
        line=function.lineno,
        function=path,
        reads=tuple(_reads(function)),
        requires=tuple(_requires(function)),
        hands_to=hands_to,
    )


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child
            yield from _own(child)  # type: ignore[arg-type]


def _handed_to(node: ast.AST) -> str:
    if isinstance(node, ast.Call) and last_name(node.func).startswith(_HOOK):
        passed = {ast.unparse(a) for a in [*node.args, *(k.value for k in node.keywords)]}
        return last_name(node.func) if {"args", "kwargs"} <= passed else ""
    return ""


def _reads(function: ast.FunctionDef) -> Iterator[IdRead]:
    named = {
        id(node.value): ast.unparse(node.targets[0])
        for node in _own(function)
        if isinstance(node, ast.Assign)
    }
    for node in _own(function):
        if (key := _key(node)) is not None:
            name = key if isinstance(key, str) else named.get(id(node), f"args[{key}]")
            yield IdRead(name, ast.unparse(node), node.lineno)  # type: ignore[attr-defined]


def _key(node: ast.AST) -> str | int | None:
    """The key of ``kwargs.get(key)``, ``kwargs[key]``, ``args[key]``; for args as text too."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("kwargs.get", "kwargs.pop"):
        value: ast.expr = node.args[0]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("args", "kwargs"):
        value = node.slice
    else:
        return None
    return value.value if isinstance(value, ast.Constant) else ast.unparse(value)  # type: ignore[return-value]


def _requires(function: ast.FunctionDef) -> Iterator[str]:
    for node in _own(function):
        if isinstance(node, ast.Assert):
            yield ast.unparse(node).removeprefix("assert ")
