"""The pipelines, workflows and the manifest: their schemas, and what they promise."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from harness.load.targets.known_targets import targets as known_targets
from tests.support.manifests import JOBSET, WORKFLOWS, Document, job, load, parsed, pod
from tests.support.pipelines import ROOT, linted, script, tool

nightly = script("nightly")
Outcome = script("nightly_summary").Outcome

BUILDKITE = sorted((ROOT / "ci" / "buildkite").glob("*.yml"))
FEATURE = ROOT / "ci" / "buildkite" / "moe_load_verification.yml"
NIGHTLY = ROOT / "ci" / "gke" / "nightly.yaml"
SHELL = sorted([*ROOT.glob("ci/**/*.sh"), *ROOT.glob("docker/*.sh"), ROOT / ".ci" / "run"])

#: Lost agents (-1, 255) and a missing environment or target. A verdict is none of them.
RETRIED = {75, -1, 255}
#: What tpu-inference's pipeline calls its queues, and ours of agents with GPUs.
QUEUES = {"cpu", "gpu", "tpu_v6e_queue", "tpu_v6e_8_queue", "tpu_v7x_2_queue", "tpu_v7x_8_queue"}


@pytest.mark.parametrize("path", BUILDKITE, ids=lambda path: path.name)
def test_buildkite_schema(path: Path) -> None:
    linted(tool("check-jsonschema"), "--builtin-schema=vendor.buildkite", str(path))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_schema(path: Path) -> None:
    linted(tool("check-jsonschema"), "--builtin-schema=vendor.github-workflows", str(path))


def test_zizmor() -> None:
    linted(tool("zizmor"), "--offline", "--pedantic", *map(str, WORKFLOWS))


def test_shellcheck() -> None:
    linted(tool("shellcheck"), *map(str, SHELL))


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_scripts_can_be_run(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()


# Every call of the nightly has options it takes, stacks and targets that exist.

CALL = re.compile(r"ci/(?:run_nightly|buildkite/step)\.sh(.*)")


def calls(document: Any) -> Iterator[str]:
    """The options of every call of the nightly in a document, with its matrices filled in."""
    if isinstance(document, list):
        for item in document:
            yield from calls(item)
    elif isinstance(document, dict):
        matrix = document.get("matrix") or document.get("strategy", {}).get("matrix", {})
        commands = [document[key] for key in ("command", "commands", "run") if key in document]
        for command in commands:
            yield from (found[1] for found in CALL.finditer(filled(command, matrix)))
        yield from calls(list(document.values()))


def filled(command: str | list[str], matrix: Any) -> str:
    """The text of a command, once for each cell of a Buildkite matrix of one dimension."""
    text = "\n".join(command) if isinstance(command, list) else command
    values = matrix if isinstance(matrix, list) else [""]
    return "\n".join(text.replace("{{matrix}}", str(value)) for value in values)


def jobset_call(document: Document) -> str:
    (container,) = pod(document)["containers"]
    assert container["command"] == ["ci/gke/host.sh"]
    return shlex.join(["--stacks=installed", "--target=tpu", *container["args"], "--", "--hosts=4"])


def test_every_call_is_valid() -> None:
    documents = [*map(load, BUILDKITE), *map(load, WORKFLOWS)]
    found = [options for document in documents for options in calls(document)]
    targets = [parsed(options).target for options in [*found, jobset_call(load(JOBSET))]]
    assert len(targets) >= 12
    assert set(targets) == set(known_targets())


@pytest.mark.parametrize(
    "options",
    [" --stack 0.26", " --target cuda", " --stacks newest", " --stacks 0.26 --target gpu"],
)
def test_an_invalid_call_is_seen(options: str) -> None:
    with pytest.raises((SystemExit, AssertionError, script("setup").SetupError)):
        parsed(options)


def test_every_stack_runs_every_night() -> None:
    stacks = set(script("setup").stacks())
    assert set(load(ROOT / "ci/buildkite/nightly.yml")["steps"][0]["matrix"]) == stacks
    jobs = load(ROOT / ".github/workflows/nightly.yml")["jobs"]
    assert set(jobs["emulated"]["strategy"]["matrix"]["stack"]) == stacks
    assert set(jobs["code-scanning"]["strategy"]["matrix"]["stack"]) == stacks


def test_tonights_releases_run_in_all_three_systems() -> None:
    """The newest ones, and the newest build; each compares with the nights before."""
    steps = load(ROOT / "ci/buildkite/nightly.yml")["steps"]
    (step,) = (step for step in steps if "--nights" in step["command"])
    assert step["matrix"] == ["latest", "nightly"]
    assert step["soft_fail"] == [{"exit_status": Outcome.PAIR_FAILS}]
    workflow = load(ROOT / ".github/workflows/nightly.yml")["jobs"]["tonight"]
    assert workflow["strategy"]["matrix"]["stack"] == ["latest", "nightly"]
    (run,) = (step["run"] for step in workflow["steps"] if step.get("name") == "run")
    assert "--nights .nights" in run
    spec = load(NIGHTLY)["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    taken = parsed(shlex.join(container["args"]))
    assert taken.stacks == ["installed", "latest", "nightly"]
    assert taken.nights
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert set(rule["onExitCodes"]["values"]) == set(Outcome) - {0, Outcome.PROVISIONING}
    for job_of_tonight in (step["timeout_in_minutes"], workflow["timeout-minutes"]):
        assert job_of_tonight <= 30


def test_every_stack_that_can_runs_on_gpus() -> None:
    setup = script("setup")
    stacks = {path.stem for path in setup.CUDA.glob("*.txt")}
    steps = load(ROOT / "ci/buildkite/nightly.yml")["steps"]
    (step,) = (step for step in steps if "--target gpu" in step["command"])
    assert set(step["matrix"]) == stacks
    (workflow,) = (path for path in WORKFLOWS if path.stem == "nightly")
    assert set(load(workflow)["jobs"]["gpu"]["strategy"]["matrix"]["stack"]) == stacks


# Buildkite.


def buildkite_faults(document: Document) -> list[str]:
    """What breaks the promises of a pipeline: retries, queues, artifacts, time."""
    return [
        f"{step['label']}: {fault}"
        for step in document["steps"]
        for fault in step_faults(step, standalone="HARNESS_STACK" in document.get("env", {}))
    ]


def step_faults(step: Document, standalone: bool) -> Iterator[str]:
    for rule in step.get("retry", {}).get("automatic", []):
        if rule.get("exit_status") not in RETRIED:
            yield f"retries {rule.get('exit_status')}"
    for queue in queues(step):
        if queue not in QUEUES:
            yield f"no queue {queue}"
    if standalone and not {"artifact_paths", "timeout_in_minutes", "retry"} <= set(step):
        yield "without artifacts, time-out or retry"


def queues(step: Document) -> list[str]:
    queue = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", step["agents"]["queue"])
    if not queue.startswith("{{"):
        return [queue]
    matrix = step["matrix"]
    return list(matrix if isinstance(matrix, list) else matrix["setup"]["queue"])


@pytest.mark.parametrize("path", BUILDKITE, ids=lambda path: path.name)
def test_buildkite_promises(path: Path) -> None:
    assert buildkite_faults(load(path)) == []


def retry_everything(step: Document) -> None:
    step["retry"] = {"automatic": [{"exit_status": "*", "limit": 2}]}


def retry_a_difference(step: Document) -> None:
    step["retry"]["automatic"].append({"exit_status": 1, "limit": 1})


def without_artifacts(step: Document) -> None:
    del step["artifact_paths"]


def unknown_queue(step: Document) -> None:
    step["agents"]["queue"] = "tpu_v6_queue"


@pytest.mark.parametrize(
    "fault", [retry_everything, retry_a_difference, without_artifacts, unknown_queue]
)
def test_a_broken_pipeline_is_seen(fault: Callable[[Document], None]) -> None:
    document = load(ROOT / "ci" / "buildkite" / "nightly.yml")
    fault(document["steps"][0])
    assert buildkite_faults(document)


def test_the_feature_has_upstreams_shape() -> None:
    steps = load(FEATURE)["steps"]
    for step, record in zip(steps[::2], steps[1::2], strict=True):
        assert step["key"].startswith("${TPU_VERSION:-tpu6e}_${MODEL_IMPL_TYPE:-vllm}_")
        assert step["soft_fail"] is True
        assert step["commands"][0].startswith(".buildkite/scripts/run_in_docker.sh ")
        assert record["depends_on"] == step["key"]
        assert record["commands"] == [f".buildkite/scripts/record_step_result.sh {step['key']}"]
        assert record["agents"] == {"queue": "cpu"}
        assert step["key"].endswith(record["env"]["CI_TARGET"])
        assert record["env"]["CI_STAGE"] == "CorrectnessTest"
        assert {"CI_TPU_VERSION", "MODEL_IMPL_TYPE", "CI_CATEGORY"} <= set(record["env"])
    queued = [step["agents"]["queue"] for step in steps[::2]]
    assert queued == ["${TPU_QUEUE_SINGLE:-tpu_v6e_queue}", "${TPU_QUEUE_MULTI:-tpu_v6e_8_queue}"]


# GKE.


def jobset_faults(document: Document) -> list[str]:
    """What breaks the promises of the manifest: the slice's size, and what is started again."""
    spec, faults = job(document)["spec"], []
    topology = pod(document)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    resources = pod(document)["containers"][0]["resources"]
    chips = int(resources["limits"]["google.com/tpu"])
    if prod(map(int, topology.split("x"))) != chips * spec["completions"]:
        faults.append("chips")
    (named,) = (e["value"] for e in pod(document)["containers"][0]["env"] if e["name"] == "HOSTS")
    if not spec["parallelism"] == spec["completions"] == int(named) > 1:
        faults.append("hosts")
    if resources["limits"] != resources["requests"]:
        faults.append("resources")
    (rule,) = spec["podFailurePolicy"]["rules"]
    if set(rule["onExitCodes"]["values"]) != set(Outcome) - {0, Outcome.PROVISIONING}:
        faults.append("exit codes")
    (verdict,) = document["spec"]["failurePolicy"]["rules"]
    if (verdict["action"], verdict["onJobFailureReasons"]) != ("FailJobSet", ["PodFailurePolicy"]):
        faults.append("verdict")
    return faults


def test_the_manifest_keeps_its_promises() -> None:
    assert jobset_faults(load(JOBSET)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("4x4", "2x4", "chips"),
        ("completions: 4", "completions: 2", "hosts"),
        ('value: "4"', 'value: "2"', "hosts"),
        ("[1, 2, 3, 4]", "[2, 3, 4]", "exit codes"),
        ("[1, 2, 3, 4]", "[1, 2, 3, 4, 75]", "exit codes"),
        ("action: FailJobSet", "action: RestartJobSet", "verdict"),
    ],
)
def test_a_broken_manifest_is_seen(tmp_path: Path, old: str, new: str, fault: str) -> None:
    (tmp_path / "jobset.yaml").write_text(JOBSET.read_text().replace(old, new))
    assert fault in jobset_faults(load(tmp_path / "jobset.yaml"))


def test_the_jobs_of_the_manifest_have_kubernetes_shape() -> None:
    """JobSet's own fields are no part of it: its resource definition is in no package index."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    content = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    kubernetes_validate.validate(content | job(load(JOBSET)), "1.33", strict=True)
    kubernetes_validate.validate(load(NIGHTLY), "1.33", strict=True)
