"""The page "In your own CI": its workflow, pipeline and manifest hold to the project's rules."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.repository.test_pipelines import buildkite_faults, calls
from tests.repository.test_workflows import faults
from tests.support.manifests import WORKFLOWS, load, parsed
from tests.support.pipelines import ROOT, linted, tool

PAGE = (ROOT / "docs" / "own-ci.md").read_text()
USED = re.compile(r"uses: (\S+ # \S+)")
PLACEHOLDER = re.compile(r"REGISTRY|BUCKET|SERVICE_ACCOUNT")


def documents(folder: Path) -> tuple[Path, Path]:
    """The page's workflow and its pipeline, as files."""
    found = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    paths = folder / "workflow.yml", folder / "pipeline.yml"
    for path, text in zip(paths, found, strict=True):
        path.write_text(text)
    return paths


def test_the_workflow(tmp_path: Path) -> None:
    """It fits GitHub's schema, and keeps the promises and the pins of the project's own."""
    workflow, _ = documents(tmp_path)
    linted(tool("check-jsonschema"), "--builtin-schema=vendor.github-workflows", str(workflow))
    linted(tool("zizmor"), "--offline", "--pedantic", str(workflow))
    assert faults(workflow) == []
    pins = {pin for path in WORKFLOWS for pin in USED.findall(path.read_text())}
    assert set(USED.findall(workflow.read_text())) <= pins


def test_the_pipeline(tmp_path: Path) -> None:
    _, pipeline = documents(tmp_path)
    linted(tool("check-jsonschema"), "--builtin-schema=vendor.buildkite", str(pipeline))
    assert buildkite_faults(load(pipeline)) == []


def test_every_call_is_one_that_the_nightly_takes(tmp_path: Path) -> None:
    found = [options for path in documents(tmp_path) for options in calls(load(path))]
    found += re.findall(r"^(?:\$ )?ci/run_nightly\.sh(.*)$", PAGE, re.M)
    assert [parsed(options).target for options in found] == [
        "emulated", "emulated", "tpu", "emulated", "tpu"
    ]  # fmt: skip


@pytest.mark.parametrize("manifest", ["nightly.yaml", "jobset.yaml"])
def test_the_manifest_is_filled_in(tmp_path: Path, manifest: str) -> None:
    (command,) = re.findall(r"^sed .*$", PAGE, re.M)
    typed = command.replace("nightly.yaml", manifest).replace(">moe", f">{tmp_path}/moe")
    subprocess.run(["sh", "-c", typed], cwd=ROOT, check=True)
    filled = (tmp_path / "moe-load.yaml").read_text()
    bare = "\n".join(line for line in filled.splitlines() if not line.startswith("#"))
    assert "my-registry" in bare
    assert "my-bucket" in bare
    assert not PLACEHOLDER.search(bare)
