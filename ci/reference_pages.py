"""Writes the reference pages from the code: docs/cli.md and docs/python.md.

``python -m ci.reference_pages`` writes both, and ``tests/repository/test_reference_pages.py`` holds
them to the code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import click

import harness
from harness.app.cli import main as command_line
from harness.base.writing import write

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 100
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^    ([\w*][\w*, ]*): (.*)")


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        write(DOCS / name, text.encode())


def pages() -> dict[str, str]:
    """Each page's text, by file name."""
    return {"cli.md": cli_page(), "python.md": python_page()}


def cli_page() -> str:
    """What ``--help`` prints, command by command."""
    top = click.Context(command_line, info_name="harness", max_content_width=WIDTH)
    top.terminal_width = WIDTH
    blocks = [
        "# Command line\n",
        "What `harness --help` and `harness COMMAND --help` print; `python -m ci.reference_pages` "
        "writes this page.\n[Reports](reports.md#exit-codes) has the exit codes, and "
        "[Real weights](real-weights.md#options) explains the options of `verify` at length.\n",
        _fenced(top.get_help()),
    ]
    for name in command_line.list_commands(top):
        command = command_line.get_command(top, name)
        assert command is not None, "a command that is listed exists"
        own = click.Context(command, info_name=name, parent=top, max_content_width=WIDTH)
        own.terminal_width = WIDTH
        blocks += [f"## harness {name}\n", _fenced(command.get_help(own))]
    return "\n".join(blocks)


def python_page() -> str:
    """Every public name, with its signature and docstring."""
    blocks = [
        "# Python\n",
        "What `import harness` offers; `python -m ci.reference_pages` writes this page from the "
        "docstrings.\nNames that are not listed may change without notice.\n",
    ]
    for name in sorted(harness.__all__):
        thing = getattr(harness, name)
        blocks += [f'## <a id="{name}"></a>{name}\n', *_described(name, thing)]
    return "\n".join(blocks)


def _described(name: str, thing: Any) -> Iterator[str]:
    if not inspect.isclass(thing):
        yield _fenced(f"{name}{_signature(thing)}", "python")
    yield markdown(inspect.getdoc(thing) or "")


def _signature(function: Any) -> str:
    """Its parameters, one a line."""
    signature = inspect.signature(function)
    lines, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        lines.append(f"    {_shown(parameter)},")
    return "\n".join(["(", *lines, f") -> {signature.return_annotation}"])


def _shown(parameter: inspect.Parameter) -> str:
    """``name: annotation = default``; a default that is no plain value is left to the text."""
    shown = f"{parameter.name}: {parameter.annotation}"
    default = parameter.default
    if default is parameter.empty:
        return shown
    plain = isinstance(default, str | int | float | None) and not isinstance(default, Enum)
    return f"{shown} = {default!r}" if plain else f"{shown} = …"


def markdown(docstring: str) -> str:
    """A docstring of this project as Markdown: sections of entries become lists."""
    out: list[str] = []
    for line in docstring.splitlines():
        if section := _SECTION.match(line):
            out += [f"**{section[1]}**", ""]
        elif entry := _ENTRY.match(line):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif line.startswith("        "):
            out.append(f"  {line.strip()}")
        else:
            out.append(line.strip() if line.startswith("    ") else line)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", "\n".join(out))
    return f"{text.replace('``', '`')}\n"


def _fenced(text: str, kind: str = "text") -> str:
    return f"```{kind}\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    main()
