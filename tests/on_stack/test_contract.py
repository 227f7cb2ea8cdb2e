"""Both faces of the positional call: the crash and the silent loss, on a stack of any age.

Stack 0.21 has the bug as released. On the others a copy of vLLM with the fix taken back has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.explain.causes import Cause
from harness.load.process import LoadProcesses
from harness.load.stack import installed_versions, stack_name
from harness.load.target import Target
from harness.report.message import failure_text
from harness.report.report import Status
from harness.verification.verify import verify
from tests.support.hooks import Hook, job_of
from tests.support.reverting import call_sites, installed_vllm, revert_fix

STACK = stack_name(installed_versions())
BROKEN_AS_RELEASED = STACK == "0.21"

#: The models whose fused experts a positional call loses, and the file of the call up to 0.25.
FUSED = {"qwen3-vl-moe": "qwen3_vl_moe.py", "qwen3.6-mtp": "qwen3_5.py"}


@pytest.fixture(scope="module")
def broken(
    tmp_path_factory: pytest.TempPathFactory, load_processes: LoadProcesses
) -> Iterator[LoadProcesses]:
    """Loading processes whose vLLM passes the ids positionally."""
    if BROKEN_AS_RELEASED:
        yield load_processes
        return
    with LoadProcesses(revert_fix(tmp_path_factory.mktemp("reverted"))) as processes:
        yield processes


@pytest.mark.parametrize("recipe", FUSED)
def test_upstreams_hook_crashes(
    broken: LoadProcesses, target: Target, tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    report = verify(tiny_checkpoints[recipe], target, processes=broken)
    assert report.status is Status.LOAD_FAILED
    assert report.failure is not None
    assert report.failure.message == "Expecting expert_id argument"
    (diagnosis,) = report.diagnoses
    assert diagnosis.cause is Cause.ARGUMENT_CONTRACT
    routed = len(call_sites(installed_vllm())) == 1
    file = "routed_experts.py" if routed else FUSED[recipe]
    assert f"/{file}:" in diagnosis.evidence
    text = failure_text(report)
    assert "the hook received shard_id and expert_id positionally" in text
    assert "never arrived: layer 0: experts 0-7; layer 1: experts 0-7" in text
    assert routed or "fixed by vLLM #42" in text


def test_the_lenient_hook_loses_every_fused_expert_silently(
    broken: LoadProcesses, target: Target, tiny_checkpoints: dict[str, Path]
) -> None:
    """Nothing raises; the tensors tell which experts are lost, and the ledger tells how."""
    lenient = broken.doing(job_of(Hook.LENIENT))
    report = verify(tiny_checkpoints["qwen3-vl-moe"], target, processes=lenient)
    assert (report.status, report.failure) == (Status.DIFFERENT, None)
    assert len(report.differences) == 2 * 8 * 3
    assert [(d.cause, d.summary) for d in report.diagnoses] == [
        (
            Cause.ARGUMENT_CONTRACT,
            "weight_loader got shard_id and expert_id positionally, where the hook does not look "
            f"for them; experts 0-7 of decoder layer {layer} were never written",
        )
        for layer in (0, 1)
    ]


def test_the_strict_hook_names_the_call(
    broken: LoadProcesses, target: Target, tiny_checkpoints: dict[str, Path]
) -> None:
    strict = broken.doing(job_of(Hook.STRICT))
    report = verify(tiny_checkpoints["qwen3-vl-moe"], target, processes=strict)
    assert report.failure is not None
    assert report.failure.error == "tests.support.hooks.MissingIds"
    assert "expert_id and shard_id are not among these" in report.failure.message


@pytest.mark.skipif(BROKEN_AS_RELEASED, reason="this release has no call site that is right")
@pytest.mark.parametrize("hook", Hook)
def test_our_hooks_lose_nothing_when_ids_come_by_keyword(
    load_processes: LoadProcesses, target: Target, tiny_checkpoints: dict[str, Path], hook: Hook
) -> None:
    ours = load_processes.doing(job_of(hook))
    report = verify(tiny_checkpoints["qwen3.6-mtp"], target, processes=ours)
    assert (report.status, report.experts_compared) == (Status.EQUAL, 24)
