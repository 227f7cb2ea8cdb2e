"""Writes the table of ``docs/parameters.md`` from the data; the test compares the two."""

from __future__ import annotations

from pathlib import Path

from harness.parameter_table import BEGIN, END, parameter_table, upstream_list

PAGE = Path(__file__).parent.parent / "docs" / "parameters.md"


def page(text: str) -> str:
    """The page with the table as the data has it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{parameter_table()}\n{upstream_list()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
