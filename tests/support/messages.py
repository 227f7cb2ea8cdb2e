"""The list of the errors a user can meet: ``python -m tests.support.messages`` prints it.

It is read from the source, so that none is forgotten; what a message quotes stands in braces.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HARNESS = Path(__file__).parents[2] / "harness"
KINDS = frozenset({"BadInput", "TargetUnavailable", "InternalError", "NotWritten"})


class Message(NamedTuple):
    """The four fields of an error that is made at ``place``; None for one that is left out."""

    place: str
    kind: str
    what: str | None
    where: str | None
    expected: str | None
    hint: str | None

    @property
    def paragraph(self) -> str:
        """As the user reads it."""
        return f"{self.what} ({self.where}). Expected: {self.expected}. Try: {self.hint}."


def messages(root: Path = HARNESS) -> list[Message]:
    """Every error of the harness's own kinds that is made anywhere, by file and line."""
    return [
        message
        for path in sorted(root.rglob("*.py"))
        for message in _made_in(path.read_text(), path.relative_to(root).as_posix())
    ]


def _made_in(source: str, place: str) -> Iterator[Message]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        given = {each.arg: _text(each.value) for each in node.keywords}
        if node.func.id in KINDS and None not in given:  # **fields are another's, who is listed
            what = _text(node.args[0]) if node.args else given.get("what")
            fields = (what, *(given.get(name) for name in ("where", "expected", "hint")))
            yield Message(f"{place}:{node.lineno}", node.func.id, *fields)


def _text(node: ast.expr) -> str:
    """What an expression says, as far as it stands in the source."""
    match node:
        case ast.Constant(value=str(said)):
            return said
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{_text(body)}|{_text(other)}"
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case _:
            return f"{{{ast.unparse(node)}}}"


if __name__ == "__main__":
    for one in messages():
        print(f"{one.place} {one.kind}\n    {one.paragraph}\n")
