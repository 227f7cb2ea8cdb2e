"""Upstream issues that make scenarios fail: one row each, with what it raises.

``--expect=known`` accepts these failures and no others. A row that no longer fails, fails
otherwise, or names a scenario or a target that does not exist, fails the run.
"""

from __future__ import annotations

from harness.causes import Cause
from harness.known import KnownIssue, Nature, Owner, table
from harness.synthetic.recipes import RECIPES
from scenarios.catalogue import SCENARIOS, rows
from scenarios.known_issues_torch_xla import ON_TORCH_XLA
from scenarios.known_refusals import REFUSALS

_POSITIONAL = (
    "load_fused_expert_weights passes shard_id and expert_id to weight_loader positionally; the "
    "hook reads them from the keyword arguments"
)

#: Scenarios that upstream refuses, on every stack.
_REFUSED = (
    "vl-3-devices",
    "vl-expert-axis-dropped",
    "vl-6-experts-whole",
    "vl-6-experts-kernel",
    "vl-uneven-width",
)

_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="positional-ids-qwen3-vl-moe",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42671", "vllm#42716"),
        stacks=("0.21",),
        scenarios=rows(
            "qwen3-vl-moe",
            but=(
                "vl-vision-first",
                "vl-s3",
                "vl-gcs",
                "vl-fp8",
                "vl-fp8-expert-2-model-2",
                "vl-3-devices",
                "vl-pcp-2-model-2",
                "vl-expert-axis-dropped",
            ),
        ),
        causes=(Cause.ARGUMENT_CONTRACT,),
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_vl_moe.py:151",
    ),
    KnownIssue(
        id="positional-ids-qwen3.5",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42521",),
        stacks=("0.21",),
        scenarios=rows(
            "qwen3.5-moe",
            "qwen3.5-mtp",
            "qwen3.6-mtp",
            but=(
                "mtp-fused-alone",
                "mtp-per-expert-alone",
                "decoder-s3",
                "mtp-s3",
                "decoder-gcs",
                "mtp-gcs",
                "mtp-fp8",
                "mtp-fp8-expert-2-model-2-whole",
            ),
        ),
        causes=(Cause.ARGUMENT_CONTRACT,),
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_5.py:261",
    ),
    KnownIssue(
        id="positional-ids-qwen3.5-mtp",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42716",),
        stacks=("0.21",),
        scenarios=("mtp-fused-alone",),
        causes=(Cause.ARGUMENT_CONTRACT,),
        error="AssertionError",
        message="Expecting expert_id argument",
        at="vllm/model_executor/models/qwen3_5_mtp.py:174",
    ),
    KnownIssue(
        id="fused-vision-qkv",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="the hook expects a shard_id for q, k and v; Qwen3-VL's vision tower stores them "
        "fused and is loaded without one",
        threads=("tpu-inference#2647",),
        stacks=("0.21",),
        scenarios=(
            "vl-vision-first",
            "vl-fp8",
            "mtp-fp8",
            "vl-fp8-expert-2-model-2",
            "mtp-fp8-expert-2-model-2-whole",
        ),
        causes=(Cause.FUSED_WITHOUT_SHARD,),
        error="AssertionError",
        message="Expecting shard_id as the only argument",
        at="QKVParallelLinear",
    ),
    KnownIssue(
        id="draft-model-from-a-store",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="the draft model's configuration is made from the folder config.json was pulled "
        "to, and its weights are looked for there, not under the URL",
        threads=("vllm#42060", "vllm#48023"),
        stacks=("0.26",),
        scenarios=("mtp-s3", "mtp-gcs"),
        causes=(Cause.UNEXPLAINED,),
        error="RuntimeError",
        message="Cannot find any safetensors model weights with",
        targets=("emulated", "tpu", "torch-xla"),
    ),
    KnownIssue(
        id="store-while-offline",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="with HF_HUB_OFFLINE=1 the URL of a store is taken for a hub id; HF_HUB_OFFLINE=0 "
        "avoids it",
        threads=("vllm#39155",),
        stacks=("0.21", "0.22"),
        scenarios=("vl-s3", "decoder-s3", "mtp-s3", "vl-gcs", "decoder-gcs", "mtp-gcs"),
        causes=(Cause.UNEXPLAINED,),
        error="huggingface_hub.errors.HFValidationError",
        message="Repo id must be in the form .*: '(s3|gs)://",
        targets=("emulated", "tpu", "torch-xla"),
    ),
    KnownIssue(
        id="untied-head-unwritten",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="_patch_tied_embedding_mapper maps lm_head to nothing, whatever config.json ties; "
        "the head of a model whose decoder sits under language_model is left as it was allocated",
        threads=(),
        stacks=("0.32",),
        scenarios=rows(
            *RECIPES,
            but=(
                *_REFUSED,
                "vl-pcp-2-model-2",
                "vl-axes-swapped",
                "vl-tied",
                "decoder-tied",
                "decoder-ties-contradict",
                "mtp-fused-alone",
                "mtp-per-expert-alone",
            ),
        ),
        causes=(Cause.TENSOR_UNREAD, Cause.PARAMETER_UNWRITTEN),
        at="language_model.lm_head.weight",
    ),
    KnownIssue(
        id="tied-head-written-over-embedding",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="what text_config ties is tied, whatever the files hold: a checkpoint's own lm_head "
        "is then loaded into the embedding it shares",
        threads=("vllm#51063", "vllm#51665"),
        stacks=("0.22", "0.26"),
        scenarios=("decoder-ties-contradict",),
        causes=(Cause.TIED,),
        at="embed_tokens.weight holds lm_head.weight",
    ),
    KnownIssue(
        id="tied-head-unread",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="vLLM now builds a head of its own for a checkpoint that has one, but "
        "_patch_tied_embedding_mapper maps it to nothing, and the embedding is what it gets",
        threads=(),
        stacks=("0.32",),
        scenarios=("decoder-ties-contradict",),
        causes=(Cause.TENSOR_UNREAD, Cause.TIED),
        at="lm_head.weight holds model.language_model.embed_tokens.weight",
    ),
    KnownIssue(
        id="orientation-guessed",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="routed_experts.load_weights tells a fused tensor's orientation from its shape; "
        "with 2F = D it takes the published layout for the other one",
        threads=(),
        stacks=("0.26",),
        scenarios=("vl-square",),
        causes=(Cause.TRANSPOSED,),
        targets=("emulated", "tpu", "torch-xla"),
    ),
    KnownIssue(
        id="narrowed-to-fit",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="_narrow_expert_data_for_padding cuts an expert of the wrong layout to the smaller "
        "of the two sizes and copies that corner, without a word",
        threads=(),
        stacks=("0.22",),
        scenarios=("vl-axes-swapped",),
        causes=(Cause.WRONG_CORNER,),
        targets=("emulated", "tpu", "torch-xla"),
    ),
    KnownIssue(
        id="expert-axis-dropped",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="without NEW_MODEL_DESIGN=1 the mesh has the axes data and model only: an expert "
        "axis of four is dropped without a word, one device is used of four",
        threads=(),
        stacks=("0.21", "0.22", "0.26", "0.32"),
        scenarios=("vl-expert-axis-dropped",),
        causes=(Cause.UNEXPLAINED,),
        error="RuntimeError",
        message=r"the worker's mesh is \[\('(cpu|tpu)', \d+\)\], not expert=4,2d",
    ),
    KnownIssue(
        id="fp8-experts-on-explicit-axes",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="with device_indexes the mesh of two axes is made by jax.make_mesh, whose axes are "
        "Explicit; the FP8 path then calls with_sharding_constraint, which takes Auto axes only. "
        "It loads with NEW_MODEL_DESIGN=1",
        threads=(),
        stacks=("0.26",),
        scenarios=("vl-fp8", "mtp-fp8"),
        causes=(Cause.UNEXPLAINED,),
        error="ValueError",
        message="with_sharding_constraint can only refer to Auto axes of the mesh",
    ),
)

KNOWN_ISSUES = table((*_ISSUES, *REFUSALS, *ON_TORCH_XLA), {scenario.id for scenario in SCENARIOS})
