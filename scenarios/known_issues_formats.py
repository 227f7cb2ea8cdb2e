"""Known issues of quantised releases: what upstream refuses of them, besides the common table."""

from __future__ import annotations

from harness.report.known_issue import KnownIssue, Nature, Owner, Raised, Stage, table

from .known_issues import KNOWN_ISSUES

_MOE = (
    r"tpu_inference/layers/vllm/quantization/compressed_tensors/compressed_tensors_moe/"
    r"compressed_tensors_moe"
)

_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="no-int8-experts",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="experts of a compressed-tensors release in INT8 are refused: of such releases FP8 "
        "and four bits are implemented for experts",
        releases=("tpu-inference>=0.26",),
        when=lambda load: load.quantised == "ct-int8",
        raised=Raised(
            error="RuntimeError",
            message=r"Unsupported FusedMoe scheme: .*",
            at=rf"{_MOE}\.py in get_moe_method: raise RuntimeError\(",
            stage=Stage.MODEL,
        ),
    ),
    KnownIssue(
        id="no-zero-points-of-int4",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="experts of a compressed-tensors release in INT4 with zero points are refused: "
        "symmetric ones are implemented",
        releases=("tpu-inference>=0.26",),
        when=lambda load: load.quantised == "ct-int4-zeros",
        raised=Raised(
            error="AssertionError",
            message=r"Only symmetric quantization is supported for W4A8 MoE",
            at=rf"{_MOE}_w4a8\.py in __init__: assert self\.weight_quant\.symmetric, \(",
            stage=Stage.MODEL,
        ),
    ),
    KnownIssue(
        id="no-gptq",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="GPTQ is refused when the configuration is made: the platform does not list it",
        releases=("tpu-inference>=0.26",),
        when=lambda load: load.quantised == "gptq",
        raised=Raised(
            error="pydantic_core._pydantic_core.ValidationError",
            message=r"1 validation error for ModelConfig\n  Value error, (auto_)?gptq quantization "
            r"is currently not supported in tpu\. \[type=\w+, input_value=.*\]\n"
            r"    For further information visit \S+",
            at=r"vllm/engine/arg_utils\.py in create_model_config: return ModelConfig\(",
            stage=Stage.CONFIGURATION,
        ),
    ),
)

#: What the rows of formats are judged by.
FORMAT_ISSUES = table((*KNOWN_ISSUES, *_ISSUES))
