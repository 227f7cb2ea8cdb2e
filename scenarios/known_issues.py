"""Upstream issues that make scenarios fail: one row each, with what it raises.

``--expect=known`` accepts these failures and no others. A row that no longer fails, fails
otherwise, or names a stack or scenario that does not exist, fails the run.
"""

from __future__ import annotations

from harness.causes import Cause
from harness.known import KnownIssue, Owner

_POSITIONAL = (
    "load_fused_expert_weights passes shard_id and expert_id to weight_loader positionally; the "
    "hook reads them from the keyword arguments"
)

KNOWN_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="positional-ids-qwen3-vl-moe",
        owner=Owner.VLLM,
        reason=_POSITIONAL,
        threads=("vllm#42671", "vllm#42716"),
        stacks=("0.21",),
        scenarios=(
            "vl-fused",
            "vl-nan-payloads",
            "vl-experts-whole",
            "vl-fused-kernel",
            "vl-1-device",
            "vl-2-devices",
        ),
        cause=Cause.ARGUMENT_CONTRACT,
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_vl_moe.py:151",
    ),
    KnownIssue(
        id="positional-ids-qwen3.5",
        owner=Owner.VLLM,
        reason=_POSITIONAL,
        threads=("vllm#42521",),
        stacks=("0.21",),
        scenarios=(
            "decoder-fused",
            "mtp-fused",
            "mtp-per-expert",
            "mtp-smallest-buffer",
            "mtp-experts-whole",
            "mtp-fused-kernel",
            "mtp-8-devices",
            "mtp-numbered-files",
        ),
        cause=Cause.ARGUMENT_CONTRACT,
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_5.py:261",
    ),
    KnownIssue(
        id="positional-ids-qwen3.5-mtp",
        owner=Owner.VLLM,
        reason=_POSITIONAL,
        threads=("vllm#42716",),
        stacks=("0.21",),
        scenarios=("mtp-fused-alone",),
        cause=Cause.ARGUMENT_CONTRACT,
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_5_mtp.py:174",
    ),
    KnownIssue(
        id="fused-vision-qkv",
        owner=Owner.TPU_INFERENCE,
        reason="the hook expects a shard_id for q, k and v; Qwen3-VL's vision tower stores them "
        "fused and is loaded without one",
        threads=("tpu-inference#2647",),
        stacks=("0.21",),
        scenarios=("vl-vision-first",),
        cause=Cause.FUSED_WITHOUT_SHARD,
        error="AssertionError",
        message="Expecting shard_id as the only argument",
        at="QKVParallelLinear",
    ),
    KnownIssue(
        id="draft-model-from-a-store",
        owner=Owner.VLLM,
        reason="the draft model's configuration is made from the folder config.json was pulled "
        "to, and its weights are looked for there, not under the URL",
        threads=("vllm#42060", "vllm#48023"),
        stacks=("0.26",),
        scenarios=("mtp-s3", "mtp-gcs"),
        cause=Cause.UNEXPLAINED,
        error="RuntimeError",
        message="Cannot find any safetensors model weights with",
        targets=("emulated", "tpu", "torch-xla"),
    ),
    KnownIssue(
        id="store-while-offline",
        owner=Owner.VLLM,
        reason="with HF_HUB_OFFLINE=1 the URL of a store is taken for a hub id; HF_HUB_OFFLINE=0 "
        "avoids it",
        threads=("vllm#39155",),
        stacks=("0.21", "0.22"),
        scenarios=("vl-s3", "decoder-s3", "mtp-s3", "vl-gcs", "decoder-gcs", "mtp-gcs"),
        cause=Cause.UNEXPLAINED,
        error="huggingface_hub.errors.HFValidationError",
        message="Repo id must be in the form .*: '(s3|gs)://",
    ),
)
