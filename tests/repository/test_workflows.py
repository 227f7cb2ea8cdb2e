"""The GitHub workflows: permissions, pins, secrets, caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.support.manifests import WORKFLOWS, load
from tests.support.pipelines import ROOT, script

Document = dict[str, Any]
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
NIGHTLY = ROOT / ".github" / "workflows" / "nightly.yml"
PRESUBMIT = ROOT / ".github" / "workflows" / "presubmit.yml"
MAY_WRITE = {"code-scanning": {"contents": "read", "security-events": "write"}}


def faults(path: Path) -> list[str]:
    """What breaks a workflow's promises."""
    document = load(path)
    found = [*text_faults(path.read_text())]
    if document["permissions"] != {}:
        found.append("permissions for all jobs")
    for name, job in document["jobs"].items():
        found += [f"{name}: {fault}" for fault in job_faults(name, job, document)]
    return found


def text_faults(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if "uses:" in line and not PINNED.search(line):
            yield f"not pinned: {line.strip()}"


def job_faults(name: str, job: Document, document: Document) -> Iterator[str]:
    if job["permissions"] != MAY_WRITE.get(name, {"contents": "read"}):
        yield "permissions"
    if "timeout-minutes" not in job:
        yield "no time-out"
    if "self-hosted" in job["runs-on"]:
        if "pull_request" in document["on"]:
            yield "a pull request on a machine of ours"
        if not job.get("if", "").startswith("vars."):
            yield "waits for a machine that need not be there"
    if "secrets." in repr({key: value for key, value in job.items() if key != "steps"}):
        yield "secrets for every step"
    for step in job["steps"]:
        yield from step_faults(step, job)


def step_faults(step: Document, job: Document) -> Iterator[str]:
    if "secrets." in repr(step) and ("environment" not in job or "run_nightly" not in step["run"]):
        yield "secrets where they are not used"
    checkout = step.get("uses", "").startswith("actions/checkout@")
    if checkout and step["with"].get("persist-credentials") is not False:
        yield "credentials are left in the checkout"
    if "${{" in step.get("run", ""):
        yield "an expression in a script"
    if step.get("continue-on-error"):
        yield "goes on after an error"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_promises(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7", "not pinned"),
        ("permissions: {}", "permissions: read-all", "permissions for all jobs"),
        ("      contents: read", "      contents: write", "emulated: permissions"),
        ("persist-credentials: false", "fetch-depth: 0", "credentials are left"),
        ("    timeout-minutes: 90\n", "", "emulated: no time-out"),
        ("    if: vars.HARNESS_GPU != ''\n", "", "gpu: waits for a machine"),
        ("    if: vars.HARNESS_BUCKET != ''\n", "", "tpu: waits for a machine"),
        ('--stacks "$STACK"', "--stacks ${{ matrix.stack }}", "an expression in a script"),
        ("          STACK: ${{ matrix.stack }}", "          STACK: ${{ secrets.X }}", "secrets"),
        ("      - name: run\n", "      - name: run\n        continue-on-error: true\n", "goes on"),
    ],
)
def test_a_broken_workflow_is_seen(tmp_path: Path, old: str, new: str, fault: str) -> None:
    text = NIGHTLY.read_text()
    assert old in text
    (tmp_path / "nightly.yml").write_text(text.replace(old, new, 1))
    found = faults(tmp_path / "nightly.yml")
    assert len(found) == 1
    assert fault in found[0]


def test_a_pull_request_on_our_machines_is_seen(tmp_path: Path) -> None:
    text = NIGHTLY.read_text().replace("  schedule:", "  pull_request:\n  schedule:", 1)
    (tmp_path / "nightly.yml").write_text(text)
    ours = [f"{name}: a pull request on a machine of ours" for name in ("gpu", "tpu")]
    assert faults(tmp_path / "nightly.yml") == ours


def runs(job: Document) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def makefile_verbs() -> dict[str, list[str]]:
    """The verbs of the Makefile, with the verbs that each consists of."""
    rules = re.findall(r"^([a-z]+):([a-z ]*)##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {verb: parts.split() for verb, parts in rules}


def called(text: str, values: list[str]) -> set[str]:
    """The verbs that scripts give make, with those they consist of instead of them."""
    verbs = makefile_verbs()
    found = []
    for words in re.findall(r"^make (.+)$", text, re.MULTILINE):
        named = takewhile(lambda word: word.isalpha() or word == '"$VERB"', words.split())
        found += [verb for word in named for verb in (values if word == '"$VERB"' else [word])]
    assert set(found) <= set(verbs)
    return {part for verb in found for part in verbs[verb] or [verb]}


#: The verbs that another one runs with all it does, by that.
PART_OF = {"full": "quick"}


def presubmit_faults(path: Path) -> set[str]:
    """The verbs of which either the presubmit or .ci/run has none."""
    jobs = load(path)["jobs"].values()
    values = {id(job): job.get("strategy", {}).get("matrix", {}).get("verb", []) for job in jobs}
    presubmit = {verb for job in jobs for verb in called(runs(job), values[id(job)])}
    ci = called((ROOT / ".ci" / "run").read_text(), [])
    run_anyway = {part for whole, part in PART_OF.items() if whole in presubmit & ci}
    return (presubmit ^ ci) - run_anyway


def test_the_presubmit_calls_what_ci_runs() -> None:
    assert called("make test", []) == {"canary", "fixed", "full"}
    assert presubmit_faults(PRESUBMIT) == set()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("check docs wheel P", "check wheel P", {"docs"}),
        ("check docs wheel P", "docs wheel P", {"lint", "types"}),
        ("[canary, fixed, full]", "[canary, full]", {"fixed"}),
        ("check docs wheel P", "check docs wheel bench P", {"bench"}),
        ("check docs wheel P", "check docs P", {"wheel"}),
    ],
)
def test_a_verb_less_or_more_is_seen(tmp_path: Path, old: str, new: str, fault: set[str]) -> None:
    assert old in PRESUBMIT.read_text()
    (tmp_path / "presubmit.yml").write_text(PRESUBMIT.read_text().replace(old, new))
    assert presubmit_faults(tmp_path / "presubmit.yml") == fault


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_caches(path: Path) -> None:
    """uv's by the locked requirements; XLA's programs by stack, or verb, and CPU model as well.

    The nights that a summary compares with are by stack, and each night adds its own.
    """
    for job in load(path)["jobs"].values():
        for step in job["steps"]:
            options = step.get("with", {})
            if "setup-uv@" in step.get("uses", ""):
                assert options["enable-cache"] is True
                assert "ci/stacks/*.txt" in path.read_text()
            if options.get("path") == ".nights":
                assert "matrix.stack" in options["key"]
                assert options["key"].startswith(options["restore-keys"])
                assert "github.run_id" in options["key"].removeprefix(options["restore-keys"])
            elif "actions/cache@" in step.get("uses", ""):
                for part in ("cpu.outputs.model", "hashFiles('ci/stacks/*.txt')"):
                    assert part in options["key"]
                assert re.search(r"matrix\.(stack|verb)", options["key"])
                assert "~/.cache/jax" in options["path"]


def test_what_runs_is_kept() -> None:
    """Files are uploaded and the summary is shown, however the run ended."""
    for path in WORKFLOWS:
        for job in load(path)["jobs"].values():
            last = [step for step in job["steps"] if step.get("if") == "always()"]
            if "$VERB" in runs(job):  # pytest itself writes the summary
                assert any("upload-artifact@" in step.get("uses", "") for step in last)
            if "run_nightly.sh" in runs(job):
                assert any("GITHUB_STEP_SUMMARY" in step.get("run", "") for step in last)
                assert any("upload-artifact@" in step.get("uses", "") for step in last)


def test_uv_is_the_one_of_the_setup() -> None:
    number = script("setup").UV.partition("==")[2]
    for path in WORKFLOWS:
        versions = re.findall(r'^ +version: "([^"]+)"$', path.read_text(), re.MULTILINE)
        assert set(versions) == {number}
