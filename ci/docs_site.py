"""A hook of mkdocs: what pages link to outside ``docs/`` becomes a page of the site.

Pages link to each other, to the code and to the pages at the root by relative paths, so that the
links work where the repository is read. mkdocs knows ``docs/`` alone: the files that are linked
from there, and from those, are added under ``repository/``, and the links follow them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
#: The pages that are in the navigation, whoever links to them.
PAGES = (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "ci" / "tpu-vm.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)#\s]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for path in sorted(linked()):
        files.append(File.generated(config, address(path), content=content(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as they are in the site."""
    source = source_of(page.file.src_uri)
    return markdown if source.suffix != ".md" else with_links(markdown, source)


def linked() -> set[Path]:
    """The files outside ``docs/`` that are linked from there, or from one of them."""
    waiting, found = [*DOCS.glob("*.md"), *PAGES], set(PAGES)
    while waiting:
        for target in targets(waiting.pop()):
            if target.is_file() and not target.is_relative_to(DOCS) and target not in found:
                found.add(target)
                waiting.append(target)
    return found


def targets(page: Path) -> Iterator[Path]:
    """What a Markdown file links to."""
    if page.suffix == ".md":
        for match in LINK.finditer(page.read_text()):
            yield (page.parent / match[0]).resolve()


def address(path: Path) -> str:
    """Where a file of the repository lies among the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = f"repository/{path.relative_to(ROOT).as_posix()}"
    return inside if path.suffix == ".md" else f"{inside}.md"


def source_of(uri: str) -> Path:
    """The file of the repository behind a page: the inverse of :func:`address`."""
    if not uri.startswith("repository/"):
        return DOCS / uri
    path = ROOT / uri.removeprefix("repository/")
    return path if path.is_file() else path.with_suffix("")


def content(path: Path) -> str:
    """A Markdown file as it is; any other as a listing."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT).as_posix()}\n\n~~~~~~~~\n{text.rstrip()}\n~~~~~~~~\n"


def with_links(markdown: str, source: Path) -> str:
    """``markdown`` with every link to a file of the repository leading to its page."""
    here = os.path.dirname(address(source))

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match[0]).resolve()
        if not (target.is_file() and target.is_relative_to(ROOT)):
            return match[0]
        return os.path.relpath(address(target), here or ".")

    return LINK.sub(moved, markdown)
