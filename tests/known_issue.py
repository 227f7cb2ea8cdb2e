"""A known issue of no upstream."""

from __future__ import annotations

from harness.causes import Cause
from harness.known import KnownIssue, Nature, Owner

ISSUE = KnownIssue(
    id="an-issue",
    owner=Owner.VLLM,
    nature=Nature.BUG,
    reason="it crashes",
    threads=("vllm#1",),
    stacks=("0.21",),
    scenarios=("vl-fused",),
    causes=(Cause.ARGUMENT_CONTRACT,),
    error="AssertionError",
    message="Expecting .*id",
    at="qwen.py:7",
)
