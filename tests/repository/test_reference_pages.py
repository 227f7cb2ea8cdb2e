"""docs/cli.md and docs/python.md are what the code says."""

from __future__ import annotations

import pytest

import harness
from harness.app.cli import main
from tests.support.pipelines import script

reference_pages = script("reference_pages")
PAGES = reference_pages.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    written = (reference_pages.DOCS / name).read_text()
    assert written == PAGES[name], "run python -m ci.reference_pages"


def test_every_command_and_every_name_has_its_heading() -> None:
    for command in main.commands:
        assert f"\n## harness {command}\n" in PAGES["cli.md"]
    for name in harness.__all__:
        assert f'<a id="{name}"></a>' in PAGES["python.md"]


def test_a_docstring_becomes_lists() -> None:
    text = reference_pages.markdown(
        "Do it.\n\nArgs:\n    one: the ``first`` of\n        :func:`a.b.two`.\n    *many: more.\n"
    )
    assert text == "Do it.\n\n**Args**\n\n- `one`: the `first` of\n  `two`.\n- `*many`: more.\n"
