"""The pages: links lead somewhere, verbs and hooks exist, the site has every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.pipelines import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("ci/README.md", "ci/tpu-vm.md", "docker/README.md")),
]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of ``text`` that lead nowhere from where ``page`` is."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
            continue
        if not anchor or target.suffix != ".md":
            continue
        if anchor not in anchors(text if target == page else target.read_text()):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("link", ["nowhere.md", "docs/speed.md#no-such-part", "#neither"])
def test_a_broken_link_is_seen(link: str) -> None:
    assert broken_links(ROOT / "README.md", f"# Title\n[here]({link}) [there](#title)") == [link]


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}" in text, page.name


def test_every_verb_that_is_told_of_exists() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    told = {
        verb
        for page in PAGES
        for line in re.findall(r"(?<=`)make ((?:[a-z]+ ?)+)|^make ((?:[a-z]+ ?)+)",
                               page.read_text(), re.M)
        for verb in " ".join(line).split()
    }  # fmt: skip
    assert told >= {"verify", "test", "setup"}
    assert told <= verbs


def test_the_hooks_run_programs_of_the_environment() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in local["hooks"]] == ["ruff", "ruff-format", "mypy", "shellcheck"]
    pinned = (ROOT / "ci" / "stacks" / "0.26.txt").read_text()
    for hook in local["hooks"]:
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert re.search(rf"^{program}(-py)?==", pinned, re.M), program
