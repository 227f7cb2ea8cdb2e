"""Causes, which their rules declare; many differences become few diagnoses of them.

``pytest tests/explain/test_causes.py --write-docs`` writes the list of all to ``docs/causes.md``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.base.writing import write
from harness.compare.difference import Difference, Kind
from harness.explain.causes import Cause, Finding, diagnoses_of
from tests.support.cause_list import ELSEWHERE, listed
from tests.support.damages import DAMAGES
from tests.support.differences import a_difference

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "causes.md"
_BEGIN, _END = "<!-- list: written by tests/explain/test_causes.py -->", "<!-- end of list -->"


def test_the_document_lists_every_cause(request: pytest.FixtureRequest) -> None:
    before, rest = DOCUMENT.read_text().split(_BEGIN)
    text = f"{before}{_BEGIN}\n{listed()}{_END}{rest.split(_END)[1]}"
    if request.config.getoption("--write-docs"):
        write(DOCUMENT, text.encode())
    else:
        assert DOCUMENT.read_text() == text, "run with --write-docs"


@pytest.mark.slow
def test_a_cause_takes_one_file(tmp_path: Path) -> None:
    """In a copy of the package, one more file: rules, reports, schema and page know its cause."""
    shutil.copytree(
        Path(harness.__file__).parent, tmp_path / "harness",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    room = tmp_path / "harness" / "explain"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def told(name: str) -> dict[str, Any]:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.support.toy_cause", str(tmp_path / name)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, text=True,
            capture_output=True, check=False, timeout=300,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        assert found.pop("package") == str(tmp_path / "harness" / "__init__.py")
        return found

    before = told("before")
    shutil.copy(ROOT / "tests" / "support" / "toy_rules.py", room)
    after = told("after")
    assert before["experts"] == before["a norm"] == "rows-exchanged"
    assert after["experts"] == after["a norm"] == "mirrored"
    assert after["next step"] == "look for a loop that counts down"
    assert [cause for cause in after["causes"] if cause != "mirrored"] == before["causes"]
    assert set(after["schema"]) - set(before["schema"]) == {"mirrored"}
    assert set(after["page"]) - set(before["page"]) == {
        "| `mirrored` | Its rows are its own, the last one first. | nothing "
        "| look for a loop that counts down | the table |"
    }


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_is_planted(cause: Cause) -> None:
    """In the table of damages, or in the file that the list names, and not in both."""
    in_the_table = any(damage.cause is cause for damage in DAMAGES)
    assert in_the_table is (cause not in ELSEWHERE)
    if not in_the_table:
        assert cause.name in NAMED.findall((ROOT / ELSEWHERE[cause]).read_text())


def test_no_two_causes_share_a_name() -> None:
    with pytest.raises(ValueError, match="two causes are called bit-flip"):
        Cause.declared("bit-flip", "look again")


NAMED = re.compile(r"\bCause\.([A-Z][A-Z_0-9]*)\b")


def test_who_names_a_cause_names_one_that_there_is() -> None:
    """Causes are declared here and there, so that mypy cannot say it."""
    rooms = ("harness", "scenarios", "tests", "benchmarks", "ci")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    named = {(path, name) for path in files for name in NAMED.findall(path.read_text())}
    assert len(named) > 100
    assert {(path, name) for path, name in named if name not in Cause.__members__} == set()


def found(expert: int | None, group: str, evidence: str = "e") -> tuple[Difference, Finding]:
    difference = a_difference(Kind.BITS, layer=1, expert=expert)
    return difference, Finding(Cause.ZEROS, group, "{experts} of layer 1 {hold} zeros", evidence)


def test_a_group_is_one_diagnosis_with_the_first_ones_evidence() -> None:
    differences = [found(3, "a", "first"), found(7, "b"), found(4, "a", "second"), found(5, "a")]
    one, other = diagnoses_of(differences)
    assert (one.first, one.covers, one.members, one.evidence) == (0, 3, "0,2-3", "first")
    assert (other.first, other.covers, other.members) == (1, 1, "1")
    assert one.next_step == Cause.ZEROS.next_step


@pytest.mark.parametrize(
    ("experts", "text"),
    [
        ([3], "expert 3 of layer 1 holds zeros"),
        ([5, 3, 4, 9], "experts 3-5, 9 of layer 1 hold zeros"),
        ([3, 3], "expert 3 of layer 1 holds zeros"),
    ],
)
def test_the_summary_names_all_experts(experts: list[int], text: str) -> None:
    (diagnosis,) = diagnoses_of(found(expert, "a") for expert in experts)
    assert diagnosis.summary == text


def test_nothing_found_is_no_diagnosis() -> None:
    assert diagnoses_of([]) == []
