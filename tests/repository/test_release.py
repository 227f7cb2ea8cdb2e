"""A release: one version, a changelog, a citation, and forms that ask for reports."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from harness.app.cli import main as harness
from harness.load.stack import HARNESS, installed_versions
from harness.report.page import page
from tests.support.manifests import load
from tests.support.pages import all_equal
from tests.support.pipelines import ROOT, linted, tool

CHANGELOG = ROOT / "CHANGELOG.md"
CITATION = ROOT / "CITATION.cff"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def declared() -> str:
    """The version, at the one place where it stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def changelog_faults(text: str, of: str) -> list[str]:
    """Where a changelog is not as Keep a Changelog 1.1.0 has it: heads, their order, parts."""
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    found = [] if heads[:1] == ["Unreleased"] else ["what is not released does not come first"]
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", head) for head in heads[1:]]
    if not all(released):
        return [*found, "a release without version and date"]
    numbers = [Version(match[1]) for match in released if match]
    dates = [date.fromisoformat(match[2]) for match in released if match]
    if numbers != sorted(set(numbers), reverse=True) or dates != sorted(dates, reverse=True):
        found.append("releases are not the last one first")
    if numbers and numbers[0] > Version(of):
        found.append(f"{numbers[0]} is released, and the version is {of}")
    for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", part, re.MULTILINE)
        if kinds != [kind for kind in KINDS if kind in kinds]:
            found.append(f"parts are {', '.join(kinds)}")
    return found


GOOD = (
    "## Unreleased\n### Added\n### Fixed\n## 0.2.0 - 2026-02-01\n### Added\n## 0.1.0 - 2026-01-01\n"
)


def test_the_changelog() -> None:
    assert changelog_faults(CHANGELOG.read_text(), declared()) == []


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        ("", "", []),
        ("## Unreleased\n### Added\n### Fixed\n", "", ["what is not released does not come first",
                                                      ]),
        (" - 2026-02-01", "", ["a release without version and date"]),
        ("0.2.0", "0.0.9", ["releases are not the last one first"]),
        ("0.2.0", "0.3.0", ["0.3.0 is released, and the version is 0.2.0"]),
        ("2026-02-01", "2025-02-01", ["releases are not the last one first"]),
        ("### Added\n### Fixed", "### Fixed\n### Added", ["parts are Fixed, Added"]),
        ("### Fixed", "### News", ["parts are Added, News"]),
    ],
)  # fmt: skip
def test_a_wrong_changelog_is_seen(old: str, new: str, faults: list[str]) -> None:
    assert changelog_faults(GOOD.replace(old, new, 1), "0.2.0") == faults


def test_one_version() -> None:
    """Of the package that is installed, of the citation, and of every report."""
    assert version(HARNESS) == declared()
    assert load(CITATION)["version"] == declared()
    assert installed_versions()[HARNESS].split()[0] == declared()
    places = [p for p in ROOT.glob("harness/**/*.py") if f'"{declared()}"' in p.read_text()]
    assert places == []


def test_the_page_says_which_harness_wrote_it() -> None:
    session = all_equal()
    session.rows[0].report.environment.versions[HARNESS] = "0.1.0 (0123456789ab)"
    assert "harness 0.1.0 (0123456789ab)" in page(session).decode()


def test_the_citation_schema() -> None:
    schema = "--builtin-schema=vendor.citation-file-format"
    linted(tool("check-jsonschema"), schema, str(CITATION))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_schema(path: Path) -> None:
    kind = "config" if path.stem == "config" else "forms"
    linted(tool("check-jsonschema"), f"--builtin-schema=vendor.github-issue-{kind}", str(path))


@pytest.mark.parametrize("path", [p for p in FORMS if p.stem != "config"], ids=lambda p: p.name)
def test_forms_ask_for_the_report(path: Path) -> None:
    """Each has a field for it, and says how to get one by a command that there is."""
    fields: list[dict[str, Any]] = load(path)["body"]
    (report,) = [field for field in fields if field.get("id") == "report"]
    assert "harness verify CHECKPOINT --json report.json" in report["attributes"]["description"]
    assert set(re.findall(r"`harness ([a-z-]+)", json.dumps(fields))) <= set(harness.commands)
    options = {option for command in harness.commands["verify"].params for option in command.opts}
    assert "--json" in options
