"""The wheel holds the harness and the scenarios, and runs them from an empty folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from harness.report.report import Session, Status
from tests.support.nested import nested_environment

ROOT = Path(__file__).parents[2]
SCENARIOS = ("-m", "pytest", "--pyargs", "harness.scenarios")


def run(*command: str | Path, at: Path) -> str:
    """What a command prints, in an environment without this checkout."""
    environment = nested_environment(COLUMNS="200")
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    return run(sys.executable, ROOT / "ci" / "setup.py", "--uv", at=ROOT).strip()


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By way of the source distribution, which must hold what the wheel is made of."""
    out = tmp_path_factory.mktemp("wheel")
    run(uv, "build", "--quiet", "--out-dir", out, ROOT, at=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack's packages and the wheel. The stack's own ``.pth`` files, one of which names this
    checkout, have no effect there.
    """
    at = tmp_path_factory.mktemp("environment") / "env"
    run(uv, "venv", "--quiet", "--python", sys.executable, at, at=at.parent)
    (packages,) = at.glob("lib/*/site-packages")
    (stack,) = Path(sys.prefix).glob("lib/*/site-packages")
    (packages / "stack.pth").write_text(f"{stack}\n")
    options = ("--quiet", "--python", at / "bin" / "python", "--no-deps")
    run(uv, "pip", "install", *options, wheel, at=at.parent)
    return at / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_the_wheel_holds_one_package_whole(wheel: Path) -> None:
    """Every file of the two folders, data files too, and nothing else of the repository."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [p for top in ("harness", "scenarios") for p in (ROOT / top).rglob("*") if p.is_file()]
    names = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts}
    assert held == {n.replace("scenarios/", "harness/scenarios/", n.startswith("s")) for n in names}


def test_the_commands_run(environment: Path, empty: Path) -> None:
    code = "import harness, harness.scenarios as s; print(harness.__file__, s.__file__)"
    for file in run(environment / "python", "-c", code, at=empty).split():
        assert Path(file).is_relative_to(environment.parent)
    assert "verify" in run(environment / "harness", "--help", at=empty)


def test_the_scenarios_are_those_of_the_checkout(environment: Path, empty: Path) -> None:
    options = ("--collect-only", "-q", "-p", "no:randomly")
    installed = run(environment / "python", *SCENARIOS, *options, at=empty)
    here = run(sys.executable, "-m", "pytest", "scenarios", *options, at=ROOT)
    ids = [[line.partition("[")[2] for line in text.splitlines() if "[" in line]
           for text in (installed, here)]  # fmt: skip
    assert ids[0] == ids[1]
    assert len(ids[0]) > 50


def test_a_scenario_runs_and_says_how_to_repeat_it(environment: Path, empty: Path) -> None:
    """On a release where a whole Qwen3-VL arrives; elsewhere its failure is the known one."""
    test = "harness.scenarios.test_experts::test_experts[vl-2-devices]"
    options = ("--moe-reports=out", "--moe-expect=known", "-p", "no:cacheprovider")
    run(environment / "python", "-m", "pytest", "--pyargs", test, *options, at=empty)
    assert sorted(os.listdir(empty)) == ["out"]
    written = (empty / "out" / "session.json").read_bytes()
    (row,) = msgspec.json.decode(written, type=Session).rows
    assert not row.failed
    assert row.report.status is Status.EQUAL or row.report.known_issue
    again = shlex.split(row.report.repeat)
    (test,) = [word for word in again if "::" in word]
    assert Path(test.partition("::")[0]).is_relative_to(environment.parent)
    found = run(environment / "python", "-m", *again, "--collect-only", "-q", at=empty)
    assert "test_experts[vl-2-devices]" in found
    assert (empty / "out" / "report.html").stat().st_size > 10_000
