"""Manifests and workflows under ci/ and .github/, as documents."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from harness.load.targets.known_targets import targets
from tests.support.pipelines import ROOT, script

Document = dict[str, Any]

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBSET = ROOT / "ci" / "gke" / "jobset.yaml"
_nightly = script("nightly")
_setup = script("setup")


def load(path: Path) -> Document:
    """A YAML document; the key ``on``, which YAML 1.1 takes for true, is put right."""
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return {("on" if key is True else str(key)): value for key, value in document.items()}


def parsed(options: str) -> Any:
    """The options of a call of the nightly run; its stacks and its target have to exist."""
    words = shlex.split(options.rstrip("'"))
    if words[:1] == ["--image"]:
        assert (ROOT / "docker" / f"Dockerfile.{words[1]}").exists()
        words = words[2:]
    taken = _nightly.parse(words)
    stack = _setup.chosen("", taken.target)
    _nightly.named([given.replace("$STACK", stack) for given in taken.stacks], taken.target)
    assert taken.target in targets()
    return taken


def job(document: Document) -> Document:
    """The one job of the JobSet."""
    (replicated,) = document["spec"]["replicatedJobs"]
    template: Document = replicated["template"]
    return template


def pod(document: Document) -> Document:
    """The specification of its pods."""
    spec: Document = job(document)["spec"]["template"]["spec"]
    return spec
