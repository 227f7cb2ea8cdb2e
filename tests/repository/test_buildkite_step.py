"""ci/buildkite/step.sh with a fake docker and a fake agent: its exit code and its annotation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pipelines import ROOT, program

DOCKER = """#!/bin/sh
echo "docker $*" >> "$PLAN/calls"
case "$*" in
  build*) exit "$(cat "$PLAN/build" 2>/dev/null || echo 0)";;
  *chown*) exit 0;;
esac
echo "the summary" > reports/nightly/summary.md
exit "$(cat "$PLAN/run" 2>/dev/null || echo 0)"
"""
AGENT = """#!/bin/sh
echo "agent $* $(cat)" >> "$PLAN/calls"
exit "$(cat "$PLAN/agent" 2>/dev/null || echo 0)"
"""
NIGHTLY = """#!/bin/sh
echo "nightly $*" >> "$PLAN/calls"
echo "the summary" > reports/nightly/summary.md
exit "$(cat "$PLAN/run" 2>/dev/null || echo 0)"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what a step needs, with fakes in ``bin`` and what they should do in ``plan``."""
    for name in ("ci/buildkite", "ci/stacks", "docker"):
        kept = shutil.ignore_patterns("__pycache__")  # other workers write there
        shutil.copytree(ROOT / name, tmp_path / name, ignore=kept)
    for folder in ("bin", "plan"):
        (tmp_path / folder).mkdir()
    program(tmp_path / "bin" / "docker", DOCKER)
    program(tmp_path / "bin" / "buildkite-agent", AGENT)
    program(tmp_path / "ci" / "run_nightly.sh", NIGHTLY)
    return tmp_path


def step(repository: Path, *options: str, **endings: int) -> tuple[int, list[str]]:
    """How a step ends, and what it called; ``endings`` are those of the fakes."""
    for name, ending in endings.items():
        (repository / "plan" / name).write_text(str(ending))
    environment = {
        "PATH": f"{repository / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PLAN": str(repository / "plan"),
        "BUILDKITE_JOB_ID": "job-7",
    }
    command = [str(repository / "ci" / "buildkite" / "step.sh"), *options]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode
    return ended, (repository / "plan" / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("ending", "style"), [(0, "success"), (1, "error"), (2, "error"), (3, "error"), (75, "warning")]
)
@pytest.mark.parametrize("image", [(), ("--image", "tpu")])
def test_a_step_ends_as_its_run(
    repository: Path, image: tuple[str, ...], ending: int, style: str
) -> None:
    ended, calls = step(repository, *image, "--target", "tpu", run=ending)
    assert ended == ending
    assert calls[-1] == f"agent annotate --style {style} --context job-7 the summary"


def test_on_the_agent(repository: Path) -> None:
    _, calls = step(repository, "--stacks", "0.26")
    assert calls[0] == "nightly --out reports/nightly --stacks 0.26"


def test_in_the_image(repository: Path) -> None:
    _, calls = step(repository, "--image", "tpu", "--target", "tpu", "--", "-k", "vl-fused")
    build, run, owner, _ = calls
    assert "--file docker/Dockerfile.tpu" in build
    assert "run --privileged --net host --shm-size=16G --rm" in run
    assert f"{repository}/reports/nightly:/reports" in run
    assert run.endswith("moe-load-harness:tpu-0.32 --target tpu -- -k vl-fused")
    assert f"-R {os.getuid()}:{os.getgid()} /reports" in owner


@pytest.mark.parametrize("endings", [{"build": 1}, {"run": 125}])
def test_what_docker_cannot_do_is_provisioning(repository: Path, endings: dict[str, int]) -> None:
    ended, calls = step(repository, "--image", "tpu", **endings)
    assert ended == 75
    assert ("build" in endings) == (len(calls) == 1)


def test_an_annotation_that_fails_changes_nothing(repository: Path) -> None:
    assert step(repository, run=1, agent=1)[0] == 1
    assert step(repository, run=0, agent=1)[0] == 0


def test_an_earlier_builds_files_are_gone(repository: Path) -> None:
    old = repository / "reports" / "nightly" / "0.21"
    old.mkdir(parents=True)
    step(repository)
    assert not old.exists()
