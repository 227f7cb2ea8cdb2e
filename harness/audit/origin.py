"""Whose loader a call calls: the value of the callee, followed back through the module.

Followed: ``x.weight_loader``, ``getattr(x, "weight_loader", …)``, ``cast``, ``partial``, names and
``self.<name>`` with their assignments, conditional values, arguments of functions back to the
calls of these in the same module, and functions of the module that return a loader.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from harness.audit.scope import Names, Scope
from harness.audit.signature import LOADER

_OWNERS = re.compile(r"(^|_)(self|cls|layer|module|experts|mlp|moe|linear|proj)$")
_PARAMETERS = re.compile(r"(param|weight|bias|scale|tensor|buffer)")


class OriginKind(IntEnum):
    """Whose loader it is; where a name may hold several, the largest counts."""

    NONE = 0
    """No loader: a function, a class, anything else."""
    ORIGINAL = 1
    """Handed in: the original loader inside a wrapper."""
    LAYER = 2
    """A layer's method: of itself, of its parent class, of another layer."""
    UNKNOWN = 3
    """Not to be told."""
    PARAMETER = 4
    """A parameter's attribute: what a loader hook replaces."""


@dataclass(frozen=True)
class Origin:
    """A loader's source, and the arguments ``partial`` has bound to it already."""

    kind: OriginKind
    owner: str = ""
    args: tuple[ast.expr, ...] = ()
    keywords: tuple[ast.keyword, ...] = ()


class Origins:
    """Follows expressions of one module."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._callers: dict[str, list[tuple[ast.Call, Scope]]] = {}
        for call, scope in names.calls:
            self._callers.setdefault(last_name(call.func), []).append((call, scope))

    def of(self, value: ast.expr, scope: Scope) -> Origin:
        """The strongest of everything ``value`` may be."""
        self._seen: set[tuple[int, int]] = set()
        return max(self._of(value, scope), key=lambda o: o.kind, default=Origin(OriginKind.NONE))

    def of_callee(self, call: ast.Call, scope: Scope) -> Origin:
        """The origin of what ``call`` calls."""
        found = self.of(call.func, scope)
        if found.kind is not OriginKind.PARAMETER:
            return found
        subject = [*found.args, *call.args][:1]
        subject = subject or [k.value for k in call.keywords if k.arg == "param"]
        if subject and _owns(found.owner, ast.unparse(subject[0])):
            return replace(found, kind=OriginKind.LAYER)
        if subject and self._wraps(call.func, subject[0], scope):
            return replace(found, kind=OriginKind.ORIGINAL)
        return found

    def _of(self, value: ast.expr | None, scope: Scope) -> Iterator[Origin]:
        """Everything ``value`` may be; each expression is looked at once."""
        if (id(value), id(scope)) in self._seen:
            return
        self._seen.add((id(value), id(scope)))
        if value is not None and (owner := loader_owner(value)):
            yield Origin(_kind(owner), ast.unparse(owner))
            return
        match value:
            case None:
                yield Origin(OriginKind.UNKNOWN)
            case ast.Name(id=name):
                yield from self._of_name(name, scope)
            case ast.NamedExpr(value=named):
                yield from self._of(named, scope)
            case ast.IfExp() | ast.BoolOp():
                for branch in _branches(value):
                    yield from self._of(branch, scope)
            case ast.Call():
                yield from self._of_result(value, scope)
            case ast.Subscript():
                yield Origin(_of_item(value))
            case ast.Attribute():
                yield from self._of_member(value, scope)

    def _of_name(self, name: str, scope: Scope) -> Iterator[Origin]:
        holder = scope.holder(name)
        if holder is None:
            return
        for value in holder.values.get(name, []):
            yield from self._of(value, holder)
        if name in holder.arguments:
            yield from self._of_argument(name, holder)

    def _of_argument(self, name: str, function: Scope) -> Iterator[Origin]:
        """An argument is what this module's calls of the function pass."""
        found = False
        for call, scope in self._callers.get(function.name, []) if function.name else []:
            if (passed := argument(call, name, function)) is not None:
                for origin in self._of(passed, scope):
                    found = True
                    yield origin
        if not found and "loader" in name:
            yield Origin(OriginKind.ORIGINAL)

    def _of_result(self, call: ast.Call, scope: Scope) -> Iterator[Origin]:
        name = last_name(call.func)
        if name == "cast" and len(call.args) == 2:
            yield from self._of(call.args[1], scope)
        elif name == "partial" and call.args:
            for origin in self._of(call.args[0], scope):
                args = (*origin.args, *call.args[1:])
                yield replace(origin, args=args, keywords=(*origin.keywords, *call.keywords))
        elif name in ("get", "pop") and call.args and _is_loader_name(call.args[0]):
            yield Origin(OriginKind.ORIGINAL)
        elif functions := self.names.functions.get(name):
            for function in functions:
                for value in function.returns:
                    yield from self._of(value, function)
        elif LOADER in name and [a for a in call.args if _is_parameter(a)]:
            yield Origin(OriginKind.UNKNOWN)

    def _of_member(self, value: ast.Attribute, scope: Scope) -> Iterator[Origin]:
        if isinstance(value.value, ast.Name) and value.value.id == "self" and scope.owner:
            for assigned, where in self.names.members.get((scope.owner.name, value.attr), []):
                yield from self._of(assigned, where)

    def _wraps(self, callee: ast.expr, subject: ast.expr, scope: Scope) -> bool:
        """Whether a function hands its own argument to a loader it caught from around it.

        Such a function takes the loader's place on a parameter; one the module calls by its name
        is a helper.
        """
        if not isinstance(callee, ast.Name) or not isinstance(subject, ast.Name):
            return False
        caught, given = scope.holder(callee.id), scope.holder(subject.id)
        if not caught or not given or subject.id not in given.arguments:
            return False
        return given.is_inside(caught) and not (self._called_as(given) & set(self._callers))

    def _called_as(self, function: Scope) -> set[str]:
        names = {function.name} - {""}
        assigned = function.parent.values.items() if function.parent else ()
        return names | {name for name, values in assigned if function.node in values}


def argument(call: ast.Call, name: str, function: Scope) -> ast.expr | None:
    """What ``call`` passes for the argument ``name`` of ``function``."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    bound = function.is_method and isinstance(call.func, ast.Attribute)
    index = function.arguments.index(name) - bound
    before = call.args[: index + 1]
    if 0 <= index < len(call.args) and not any(isinstance(a, ast.Starred) for a in before):
        return call.args[index]
    return None


def last_name(function: ast.expr) -> str:
    """The name a function is called by, without what it is called on."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def loader_owner(value: ast.expr) -> ast.expr | None:
    """``x`` of ``x.weight_loader`` or ``getattr(x, "weight_loader", …)``."""
    if isinstance(value, ast.Attribute) and value.attr == LOADER:
        return value.value
    if not isinstance(value, ast.Call) or last_name(value.func) != "getattr":
        return None
    return value.args[0] if len(value.args) > 1 and _is_loader_name(value.args[1]) else None


def _kind(owner: ast.expr) -> OriginKind:
    text = ast.unparse(owner)
    last = text.split(".")[-1]
    of_class = isinstance(owner, ast.Name) and last[:1].isupper()
    layer = text == "super()" or of_class or _OWNERS.search(last)
    return OriginKind.LAYER if layer and not _PARAMETERS.search(last) else OriginKind.PARAMETER


def _owns(owner: str, subject: str) -> bool:
    """Whether the loader's owner holds the parameter: then it is the layer."""
    return subject.startswith(f"{owner}.")


def _of_item(value: ast.Subscript) -> OriginKind:
    if _is_loader_name(value.slice):
        return OriginKind.ORIGINAL
    return OriginKind.UNKNOWN if "loader" in ast.unparse(value.value) else OriginKind.NONE


def _is_loader_name(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value == LOADER


def _is_parameter(value: ast.expr) -> bool:
    return bool(_PARAMETERS.search(ast.unparse(value).split("[")[0]))


def _branches(value: ast.IfExp | ast.BoolOp) -> list[ast.expr]:
    return [value.body, value.orelse] if isinstance(value, ast.IfExp) else value.values
