"""The pages: what they link to and name exists; numbers are the code's; the site has every page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from harness.app.cli import main
from harness.app.options import OF_PYTEST
from harness.report.report import SCHEMA
from tests.support.pipelines import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("ci/README.md", "ci/tpu-vm.md", "docker/README.md")),
]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
README = ROOT / "README.md"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
#: The folders that a path on a page begins with; on a page in ``ci/``, its own too.
FOLDERS = ("harness", "scenarios", "tests", "benchmarks", "ci", "docs", "docker")
OF_CI = ("stacks", "buildkite", "gke")
COMMAND = re.compile(r"(?<![\w/.-])harness ([a-z][a-z-]*)([^\n`|&]*)")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and those it sets itself."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


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


@EVERY_PAGE
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


def lost_paths(page: Path, text: str) -> list[str]:
    """Paths of this repository that a page has in inline code and that do not exist."""
    folders = FOLDERS + (OF_CI if page.parent.name == "ci" else ())
    words = [word.rstrip(":,;)\"") for code in INLINE.findall(FENCE.sub("", text))
             for word in code.split() if not re.search(r"[<>…$(]", word)]  # fmt: skip
    return [
        word for word in words if "/" in word and word.split("/")[0] in folders
        and not any(any(base.glob(word.split("::")[0])) for base in (ROOT, page.parent))
    ]  # fmt: skip


@EVERY_PAGE
def test_every_path_exists(page: Path) -> None:
    assert lost_paths(page, page.read_text()) == []


def test_a_path_that_is_lost_is_seen() -> None:
    text = "`harness/base/bits.py`, `harness/none.py: f` and `ci/stacks/*.overrides`, `docs/*.doc`"
    assert lost_paths(README, text) == ["harness/none.py", "docs/*.doc"]
    assert lost_paths(ROOT / "ci" / "README.md", "`gke/host.sh`, `gke/none.sh`") == ["gke/none.sh"]


def commands(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each ``harness`` command of a page's code, and its options; comments are left out."""
    code = [*FENCE.findall(text), *INLINE.findall(FENCE.sub("", text))]
    for block in code:
        bare = re.sub(r"(^|\s)#.*", "", block.replace("\\\n", " "), flags=re.M)
        for name, rest in COMMAND.findall(bare):
            yield name, set(re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest))


def options_of(name: str) -> set[str]:
    """The options that click knows of a command; none of one that does not exist."""
    command = main.commands.get(name, click.Command(""))
    return {opt for parameter in command.params for opt in parameter.opts if opt[:2] == "--"}


def wrong_commands(text: str) -> list[str]:
    """Commands and options of a page that do not exist."""
    wrong = []
    for name, options in commands(text):
        wrong += [] if name in main.commands else [name]
        wrong += [f"{name} {opt}" for opt in options - options_of(name) - {"--help"}]
    return wrong


@EVERY_PAGE
def test_every_command_exists(page: Path) -> None:
    assert wrong_commands(page.read_text()) == []


def test_a_wrong_command_is_seen() -> None:
    text = "`harness none --x`\n```sh\nharness verify C \\\n  --no-such 3  # --not\n```\n"
    assert sorted(wrong_commands(text)) == ["none", "none --x", "verify --no-such"]


def options_table() -> dict[str, str]:
    """Option of ``harness verify`` to what pytest calls it, as docs/real-weights.md says."""
    part = (ROOT / "docs" / "real-weights.md").read_text().split("## Options")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(--[a-z-]+)[^|]*\|[^|]*\| (?:`(--[a-z-]+)[^|]*|no[^|]*)\|$", part,
                           re.M))  # fmt: skip


def test_the_options_of_verify_are_all_told_of() -> None:
    assert set(options_table()) == options_of("verify")


def test_what_pytest_has_too_is_told_of() -> None:
    known = {f"--{option.name}" for option in OF_PYTEST}
    told = {name for name in options_table().values() if name}
    assert told == known - {"--checkpoint", "--expect", "--families"}


def defined(path: Path) -> set[str]:
    """What a module defines: functions, classes, ``Class.method``, and names that are assigned."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def lost_functions(text: str) -> list[str]:
    """Functions of the table "from a line to the code" that are not in the files beside them."""
    lost = []
    for row in re.findall(
        r"^\|[^|]*\|[^|]*\|([^|]*\|[^|]*)\|$", text.split("## From a line")[1], re.M
    ):
        made_by, _, files = row.partition("|")
        known = [defined((ROOT / "docs" / link).resolve()) for link in LINK.findall(files)]
        lost += [n for n in INLINE.findall(made_by) if not any(n in names for names in known)]
    return lost


def test_every_function_of_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert len(re.findall(r"^\|", text.split("## From a line")[1], re.M)) > 40
    assert lost_functions(text) == []


@pytest.mark.parametrize("name", ["_lost", "Target.lost", "RULES"])
def test_a_function_that_is_lost_is_seen(name: str) -> None:
    row = f"## From a line\n| `stack` | | `{name}` | [target.py](../harness/load/target.py) |\n"
    assert lost_functions(row) == [name]
    assert lost_functions(row.replace(name, "Target.__str__")) == []


def words(text: str) -> list[str]:
    """The words of a page; rules and bars of tables are none."""
    return [word for word in text.replace("|", " ").split() if re.search(r"\w", word)]


def test_the_readme_is_read_in_two_minutes() -> None:
    assert words("|a|`b-c`|\n|---|---|\n# d ·") == ["a", "`b-c`", "d"]
    assert len(words(README.read_text())) <= 500


def test_the_schemas_number_is_the_codes() -> None:
    text = (ROOT / "docs" / "reports.md").read_text()
    assert f"and is {SCHEMA} now" in text
    assert re.findall(r"^\| (\d+) \|", text, re.M)[-1] == str(SCHEMA)


def test_the_faults_that_are_told_of_are_the_tables() -> None:
    (figures,) = re.findall(r"(\d+) faults planted: (\d+) detected",
                            (ROOT / "docs" / "faults.md").read_text())  # fmt: skip
    told = (ROOT / "docs" / "coverage.md").read_text()
    assert "{} faults planted, {} detected".format(*figures) in told
