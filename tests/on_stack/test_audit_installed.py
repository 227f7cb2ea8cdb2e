"""The audit on the real sources of every stack that is installed here.

The files and functions were checked by hand, and by loads that fail at exactly these calls.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.audit.audit_report import AuditReport
from harness.audit.call import CallVerdict
from harness.audit.contract import audit
from harness.load.stack import installed_versions, stack_name
from tests.support.other_stacks import ROOT, environment_of

MODELS = "vllm/model_executor/models"
HERE = stack_name(installed_versions())


@dataclass(frozen=True)
class Release:
    """A stack and the calls that pass ids by position in it: file and line."""

    stack: str
    findings: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


RELEASES = (
    Release(
        "0.21",
        (
            f"{MODELS}/qwen3_5.py:261",
            f"{MODELS}/qwen3_5_mtp.py:174",
            f"{MODELS}/qwen3_vl_moe.py:151",
        ),
        (
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen3_5MoeMTP",
            "Qwen3VLMoeForConditionalGeneration",
        ),
    ),
    Release("0.22"),
    Release("0.26"),
    Release(
        "0.32",
        (
            "vllm/models/hy_v4/amd/model.py:410",
            "vllm/models/hy_v4/nvidia/model.py:408",
            "vllm/models/hy_v4/nvidia/mtp.py:640",
        ),
        ("HYV4ForCausalLM", "HYV4MTPModel"),
    ),
)


def packages_of(stack: str) -> Path:
    """The site-packages of a stack's environment beside this project, or of this one."""
    if stack == HERE:
        spec = importlib.util.find_spec("vllm")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent.parent
    return next(environment_of(stack).glob("lib/python3.*/site-packages"))


@pytest.fixture(scope="module", params=RELEASES, ids=lambda release: release.stack)
def audited(request: pytest.FixtureRequest) -> tuple[Release, AuditReport]:
    """Each release and its audit."""
    release: Release = request.param
    packages = packages_of(release.stack)
    return release, audit(packages / "vllm", packages / "tpu_inference")


def test_the_findings(audited: tuple[Release, AuditReport]) -> None:
    release, report = audited
    assert report.packages[0].version.startswith(f"{release.stack}.")
    assert [f"{call.file}:{call.line}" for call in report.findings] == list(release.findings)
    assert CallVerdict.UNDECIDED not in report.tally
    concerned = {name for call in report.findings for name in call.architectures}
    assert concerned >= set(release.architectures)
    for call in report.findings:
        assert call.hook_args == ("name", "shard_id", "expert_id")
        assert "shard_id=shard_id, expert_id=expert_id, return_success=True" in call.corrected


def test_the_hooks_read_both_ids_by_keyword(audited: tuple[Release, AuditReport]) -> None:
    """What makes a positional call a fault, as this release of tpu-inference has it."""
    _, report = audited
    experts = [hook for hook in report.hooks if any("expert_id" in r.name for r in hook.reads)]
    assert experts
    for hook in experts:
        assert {r.source for r in hook.reads} == {
            "kwargs.get('expert_id')",
            "kwargs.get('shard_id')",
        }
    assert [h.hands_to for h in report.hooks if h.function.endswith("weight_loader_wrapper")] == [
        "maybe_process_weights"
    ]


def test_nothing_audited_is_imported() -> None:
    """find_spec of a top-level package locates it; the stack stays out of this process."""
    code = (
        "import sys; from harness.audit.contract import audit; audit();"
        "print([m for m in ('vllm', 'tpu_inference', 'torch', 'jax') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.strip() == "[]"
