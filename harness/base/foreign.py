"""The border between foreign text and a reader: escaped, cut, and without credentials.

Names in a checkpoint, the messages of upstream and of a store, logs and file names were written by
others. On a terminal their control characters would act, in a table their line breaks would make
rows, and nothing keeps them short. Whatever is shown or written goes through here on its way out,
once or several times: what came through stays as it is when it comes through again.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from harness.base.secrets import redacted

#: Characters of a line, and of a text of several lines, that are shown; the middle of longer ones
#: is left out. A line holds a call, a cause or a path; a text a traceback or the end of a log.
LINE, TEXT = 2000, 20_000

_LINE_BREAK = re.compile("\r\n|\r|\n")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MARK = " … {} characters left out … "

#: The fields of a session that have several lines, by the field or list they stand in.
_TEXTS = {
    ("failure", "message"), ("failure", "log_tail"), ("broken", "error"), ("rows", "why"),
}  # fmt: skip
#: The user's own words, to be used again: longer than a line before they are cut.
_OWN_WORDS = {"checkpoint", "reference", "repeat", "options"}
#: Runs of numbers, which programs read: cut they would be wrong, and they are as long as the
#: report has differences and experts.
_RUNS = {"members", "states", "layers", "experts"}

S = TypeVar("S", bound=msgspec.Struct)


def one_line(text: str, limit: int = LINE) -> str:
    r"""``text`` as one line of printable characters; a line break is ``\n``.

    Args:
        text: whatever it is; what :meth:`str.isprintable` calls unprintable is escaped as Python
            escapes it: controls, escape sequences, directions of writing, halves of surrogates.
        limit: characters it has in the end, 100 at least; the middle of what is longer is left out.
    """
    if len(text) <= limit and text.isprintable():  # as nearly all are
        return text
    return _cut(_escaped(_ends(text, limit)), limit, len(text))


def several_lines(text: str, limit: int = TEXT) -> str:
    """``text`` with its line breaks and tabs, and no other control characters or colours."""
    text = _COLOURS.sub("", text)
    found = _LINE_BREAK.split(_ends(text, limit))
    escaped = "\n".join("\t".join(map(_escaped, line.split("\t"))) for line in found)
    return _cut(escaped, limit, len(text))


def presentable(content: S) -> S:
    """A report or a session as anyone may see it.

    Credentials are replaced by their names first: of one that is cut, the half would stay.
    """
    return msgspec.convert(_presentable(msgspec.to_builtins(redacted(content))), type(content))


def _presentable(content: Any, field: str = "", within: str = "") -> Any:
    if isinstance(content, str):
        return _field(content, field, within)
    if isinstance(content, dict):
        within = field
        return {one_line(key): _presentable(value, key, within) for key, value in content.items()}
    if isinstance(content, list | tuple):  # msgspec leaves tuples as they are
        return [_presentable(item, field, within) for item in content]
    return content


def _field(text: str, field: str, within: str) -> str:
    if (within, field) in _TEXTS:
        return several_lines(text)
    if within in _RUNS or field in _RUNS:
        return _escaped(text)
    return one_line(text, TEXT if field in _OWN_WORDS else LINE)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _ends(text: str, limit: int) -> str:
    """All of ``text`` that can come to be shown; escaped, it is as long or longer."""
    return text if len(text) <= 2 * limit else text[:limit] + text[-limit:]


def _cut(text: str, limit: int, of: int) -> str:
    """At most ``limit`` characters of a text that had ``of``; three quarters are its beginning."""
    if len(text) <= limit:
        return text
    mark = _MARK.format(max(of, len(text)) - limit)
    kept = limit - len(mark)
    return text[: kept - kept // 4] + mark + text[len(text) - kept // 4 :]
