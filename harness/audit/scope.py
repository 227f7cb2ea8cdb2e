"""Names and where they get their values: the scopes of one module.

Order inside a function is not looked at: a name may hold any value that is assigned to it
anywhere in its function. That finds too much rather than too little.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(eq=False)
class Scope:
    """A function, or the module.

    Attributes:
        node: the function; None for the module.
        parent: the scope around it.
        owner: the class a method belongs to, directly or through the functions around it.
        values: what is assigned to each name; None where that is not an expression.
        returns: the expressions a function returns.
    """

    node: Function | None
    parent: Scope | None
    owner: ast.ClassDef | None
    values: dict[str, list[ast.expr | None]] = field(default_factory=dict)
    returns: list[ast.expr] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The function's name; a lambda has none of its own."""
        return "" if self.node is None or isinstance(self.node, ast.Lambda) else self.node.name

    @property
    def arguments(self) -> list[str]:
        """Names of the function's arguments, those by keyword alone last."""
        if self.node is None:
            return []
        of = self.node.args
        return [a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs)]

    @property
    def is_method(self) -> bool:
        """Whether the first argument is the object or class it is called on."""
        return self.arguments[:1] in (["self"], ["cls"])

    @property
    def path(self) -> str:
        """Class and functions, as one would say them: ``Model.load_weights``."""
        if self.parent is None:
            return "<module>"
        around = self.parent.path if self.parent.node else ""
        around = around or (self.owner.name if self.owner else "")
        return ".".join(filter(None, [around, self.name or "<lambda>"]))

    def holder(self, name: str) -> Scope | None:
        """The scope, from here outwards, in which ``name`` is an argument or gets a value."""
        scope: Scope | None = self
        while scope and name not in scope.values and name not in scope.arguments:
            scope = scope.parent
        return scope

    def is_inside(self, other: Scope) -> bool:
        """Whether this scope lies strictly inside ``other``."""
        scope = self.parent
        while scope and scope is not other:
            scope = scope.parent
        return scope is other


class Names(ast.NodeVisitor):
    """Everything the audit asks of one module's names.

    Attributes:
        module: the outermost scope.
        calls: every call and the scope it stands in.
        functions: the scopes of functions by name, methods included.
        members: what is assigned to ``self.<name>``, by class and name.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.module = Scope(None, None, None)
        self.calls: list[tuple[ast.Call, Scope]] = []
        self.functions: dict[str, list[Scope]] = {}
        self.members: dict[tuple[str, str], list[tuple[ast.expr, Scope]]] = {}
        self._scope = self.module
        self._class: ast.ClassDef | None = None
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods belong to the class; its other names count as the scope's around it."""
        outer, self._class = self._class, node
        self.generic_visit(node)
        self._class = outer

    def _function(self, node: Function) -> None:
        scope = Scope(node, self._scope, self._class)
        if scope.name:
            self.functions.setdefault(scope.name, []).append(scope)
        if isinstance(node, ast.Lambda):
            scope.returns.append(node.body)
        outer, self._scope = self._scope, scope
        self.generic_visit(node)
        self._scope = outer

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        """Remember the call."""
        self.calls.append((node, self._scope))
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Remember what is returned."""
        if node.value:
            self._scope.returns.append(node.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """``a = b = value``."""
        for target in node.targets:
            self._bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """``a: T = value``."""
        if node.value:
            self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """``(a := value)``."""
        self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """``for a in …``: the value is not known."""
        self._bind(node.target, None)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self._scope.values.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List):
            pairwise = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            values = value.elts if pairwise else [None] * len(target.elts)  # type: ignore[union-attr]
            for element, each in zip(target.elts, values, strict=True):
                self._bind(element, each)
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and value:
            key = (self._class.name if self._class else "", target.attr)
            self.members.setdefault(key, []).append((value, self._scope))
