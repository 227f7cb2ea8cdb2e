"""What the tests of ``ci/`` and ``docker/`` share: the scripts as modules, and a fake stack."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("setup.py", "pairs.py", "nightly.py", "nightly_summary.py", "run_nightly.sh")

#: Each fake writes down how it was called and ends as $PLAN says. What is planned for one
#: environment alone has its name in the file's: ``pytest.venv-0.21``.
FAKE_HEAD = """#!/bin/sh
me=$(basename "$0"); where=$(basename "$(dirname "$(dirname "$0")")")
echo "$me $where $*" >> "$PLAN/calls"
planned() { cat "$PLAN/$1$where" 2>/dev/null || cat "$PLAN/$1" 2>/dev/null || echo "$2"; }
"""
FAKE_PYTEST = """
case "$*" in *--hypothesis-profile=nightly*)
  echo "the properties"; exit "$(planned properties 0)";;
esac
for option; do case $option in
  --reports=*) out=${option#--reports=};;
esac; done
echo "the scenarios of $where"
if [ -e "$PLAN/slow" ]; then
  trap 'kill $!; echo ended >> "$PLAN/calls"; exit 2' TERM
  sleep 60 & touch "$PLAN/running"; wait
fi
cp "$PLAN/session.json" "$out/"
[ ! -e "$PLAN/summary.md" ] || cp "$PLAN/summary.md" "$out/"
[ -z "$GITHUB_STEP_SUMMARY" ] || echo "pytest's own" >> "$GITHUB_STEP_SUMMARY"
exit "$(planned pytest 0)"
"""
FAKE_HARNESS = """
if [ "$1" = doctor ]; then echo "what doctor says"; exit "$(planned doctor 0)"; fi
if [ "$1" = history ]; then echo "what changed in $3"; exit 0; fi
for option; do case $option in --output=*) out=${option#--output=};; esac; done
ended=$(planned audit 0)
[ "$ended" -gt 1 ] || echo '{"runs": [{"results": [{}, {}, {}]}]}' > "$out"
exit "$ended"
"""
FAKE_UV = """#!/bin/sh
echo "uv $*" >> "$PLAN/calls"
case "$1 $2" in
  "python find") exit 1;;
  "pip sync")
    echo >> "$PLAN/syncs"
    [ "$(wc -l < "$PLAN/syncs")" -gt "$(cat "$PLAN/sync-fails" 2>/dev/null || echo 0)" ] || exit 1;;
  venv*) for last; do :; done; mkdir -p "$last/bin"; cp "$PLAN/pytest-fake" "$last/bin/pytest"
    cp "$PLAN/harness-fake" "$last/bin/harness"
    [ ! -e "$PLAN/python-fake" ] || cp "$PLAN/python-fake" "$last/bin/python";;
esac
"""


@dataclass
class FakeStack:
    """A copy of the nightly's scripts, with programs that do as they are told."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> Path:
        return self.root / "plan"

    @property
    def out(self) -> Path:
        return self.root / "reports" / "nightly"

    def tell(self, **endings: int) -> None:
        for name, ending in endings.items():
            (self.plan / name.replace("__", ".venv-").replace("_", "-")).write_text(f"{ending}\n")

    def calls(self, program: str) -> list[str]:
        path = self.plan / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.split()[0] == program]

    def command(self, *options: str) -> list[str]:
        return [str(self.root / "ci" / "run_nightly.sh"), "--retry-seconds=0", *options]

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options), env=self.environment, capture_output=True, text=True, timeout=60
        )

    def written(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.out / "nightly.json").read_text())
        return content


def row(scenario: str, status: str = "equal", known: str = "") -> dict[str, Any]:
    """A row of a session file, as the harness's plugin writes it."""
    causes = [] if status == "equal" else [{"cause": "swapped", "summary": "gate is up"}]
    tally = {"experts_compared": 24, "bytes_compared": 1000}
    report = {"status": status, "known_issue": known, "tallies": [tally], "diagnoses": causes}
    report["repeat"] = f"pytest -k {scenario}"
    return {"scenario": scenario, "report": report, "failed": False, "why": ""}


def plan_session(plan: Path, rows: list[dict[str, Any]], failed: list[str]) -> None:
    """Have the fake pytest leave these rows, of which some failed; those without one broke off."""
    why = "first\nsecond"
    rows = [one | {"failed": one["scenario"] in failed, "why": why} for one in rows]
    names = {one["scenario"] for one in rows}
    broken = [{"test": name, "message": why} for name in failed if name not in names]
    (plan / "session.json").write_text(json.dumps({"rows": rows, "broken": broken}))


def fake_stack(root: Path) -> FakeStack:
    """Lay a :class:`FakeStack` under ``root``."""
    (root / "ci").mkdir()
    (root / "plan").mkdir()
    (root / "bin").mkdir()
    for script in SCRIPTS:
        shutil.copy(ROOT / "ci" / script, root / "ci")
    shutil.copytree(ROOT / "ci" / "stacks", root / "ci" / "stacks")  # no Python in it
    shutil.copy(ROOT / "pyproject.toml", root)
    program(root / "plan" / "pytest-fake", FAKE_HEAD + FAKE_PYTEST)
    program(root / "plan" / "harness-fake", FAKE_HEAD + FAKE_HARNESS)
    program(root / "bin" / "uv", FAKE_UV)
    rows = [row("vl-fused"), row("mtp-s3", "load-failed", "a-known-issue")]
    plan_session(root / "plan", rows, [])
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {"PATH": path, "PLAN": str(root / "plan"), "PYTHON": sys.executable}
    return FakeStack(root, {"HOME": str(root), "PYENV_ROOT": str(root), **kept})


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def script(name: str, folder: str = "ci") -> ModuleType:
    """A script of ``ci/`` or ``docker/`` as a module; the folder does not stay on the path."""
    place = str(ROOT / folder)
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)


def tool(name: str) -> str:
    """A linter that ``ci/stacks/tools.in`` brings; skips where it is not installed."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip(f"no {name} here: make lock, then make setup, brings it (ci/stacks/tools.in)")
    return found


def linted(*command: str) -> None:
    """Fail with what a linter says, if it says anything."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
