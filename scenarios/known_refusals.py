"""Known issues that are refusals: upstream does not do what a scenario asks, and says so."""

from __future__ import annotations

from harness.explain.causes import Cause
from harness.load.target import Parallelism
from harness.report.known_issue import KnownIssue, Load, Nature, Owner, Raised, Stage

_CONFIG = r"vllm/engine/arg_utils\.py in create_engine_config: config = VllmConfig\("
_CONFIG_ERROR = "pydantic_core._pydantic_core.ValidationError"
#: What pydantic adds: the arguments, cut short, and a page that explains.
_ADDED = r"\[type=\w+, input_value=.*\]\n    For further information visit \S+"
#: The call that completes a layer of experts, in which it is then processed.
_LAST_CALL = r"vllm/model_executor/\S+\.py:\d+ called weight_loader\(.*\) of a \w+"


def _whole_experts(load: Load) -> bool:
    """Whether each device is to hold some experts whole."""
    return load.parallelism is not Parallelism.TENSOR


REFUSALS: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="other-layout-refused",
        owner=Owner.VLLM,
        nature=Nature.BY_DESIGN,
        reason="an expert of the wrong layout is refused, by an error of sizes that names no "
        "tensor",
        releases=("vllm>=0.32",),
        when=lambda load: load.axes_swapped,
        raised=Raised(
            error="RuntimeError",
            message=lambda load: (
                rf"The size of tensor a \({load.intermediate}\) must match the size of tensor b "
                rf"\({load.hidden // 2}\) at non-singleton dimension 0"
            ),
            at=r"vllm/model_executor/layers/fused_moe/routed_experts\.py in _load_w13: "
            r"expert_data\.copy_\(loaded_weight\)",
            stage=Stage.STREAM,
            cause=Cause.STORAGE_MISREAD,
            evidence=r"\S+\.mlp\.experts\.gate_up_proj ended the load; vllm/\S+, "
            r"_orient_fused_weight: the model's class sets is_fused_checkpoint_transposed; "
            + _LAST_CALL,
        ),
    ),
    KnownIssue(
        id="heads-over-three-devices",
        owner=Owner.VLLM,
        nature=Nature.BY_DESIGN,
        reason="a tensor parallel size that does not divide the attention heads is refused, as "
        "documented",
        releases=("vllm",),
        when=lambda load: not load.mesh and load.heads % load.devices != 0,
        raised=Raised(
            error=_CONFIG_ERROR,
            message=lambda load: (
                r"1 validation error for VllmConfig\n  Value error, Total number of attention "
                rf"heads \({load.heads}\) must be divisible by tensor parallel size "
                rf"\({load.devices}\)\. {_ADDED}"
            ),
            at=_CONFIG,
            stage=Stage.CONFIGURATION,
        ),
    ),
    KnownIssue(
        id="latent-attention-without-dp-attention",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="multi-head latent attention is refused on a mesh without data parallel attention; "
        "it loads with VLLM_MLA_DISABLE=1",
        releases=("tpu-inference",),
        when=lambda load: load.latent and not load.mesh,
        raised=Raised(
            error=_CONFIG_ERROR,
            message=r"1 validation error for VllmConfig\n  Value error, MLA models require both "
            r"the NEW_MODEL_DESIGN=1 environment variable to be set and DP attention set via: .*"
            rf"enable_dp_attention.* {_ADDED}",
            at=_CONFIG,
            stage=Stage.CONFIGURATION,
        ),
    ),
    KnownIssue(
        id="prefill-context-parallelism-asserts",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="prefill context parallelism is refused by an assertion without words; "
        "tpu-inference has an axis for it from 0.26 on",
        releases=("vllm<0.26",),
        when=lambda load: "pcp" in load.axes,
        raised=Raised(
            error=_CONFIG_ERROR,
            message=rf"1 validation error for VllmConfig\n  Assertion failed,  {_ADDED}",
            at=_CONFIG,
            stage=Stage.CONFIGURATION,
        ),
    ),
    KnownIssue(
        id="prefill-context-parallelism-refused",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="prefill context parallelism needs vLLM's second model runner from 0.32 on, and "
        "tpu-inference has an axis for it but no such runner",
        releases=("vllm>=0.32",),
        when=lambda load: "pcp" in load.axes,
        raised=Raised(
            error=_CONFIG_ERROR,
            message=r"1 validation error for VllmConfig\n.*Model Runner V1 does not support: "
            rf"prefill context parallel.*{_ADDED}",
            at=_CONFIG,
            stage=Stage.CONFIGURATION,
        ),
    ),
    KnownIssue(
        id="experts-not-divisible",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="experts that the devices do not divide are refused by JAX; nothing pads them",
        releases=("tpu-inference",),
        when=lambda load: _whole_experts(load) and load.experts % load.devices != 0,
        raised=Raised(
            error="jax._src.sharding.IndivisibleError",
            message=lambda load: (
                r"(Sharding|One of pjit outputs with pytree key path \w+ was given the sharding) "
                r"NamedSharding\(.*\) implies that array axis 0 is partitioned "
                rf"{load.devices} times, but the dimension size is {load.experts} \(full shape: .* "
                r"should evenly divide the shape\)(\. This error occurs at source: .*)?"
            ),
            at=r"jax/_src/(sharding\.py in _common_shard_shape: raise IndivisibleError\("
            r"|dispatch\.py in _device_put_impl: return api\.jit\()",
            stage=Stage.PROCESSING,
            evidence=_LAST_CALL,
        ),
    ),
    KnownIssue(
        id="width-not-divisible",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="an intermediate size of the experts that the devices do not divide is refused by "
        "an assertion without words in process_moe_weights",
        releases=("tpu-inference",),
        when=lambda load: not _whole_experts(load) and load.intermediate % load.devices != 0,
        raised=Raised(
            error="AssertionError",
            message="",
            at=r"tpu_inference/layers/common/process_weights/moe_weights\.py in "
            r"process_moe_weights: assert intermediate_size % w13_reorder_size == 0",
            stage=Stage.PROCESSING,
            evidence=_LAST_CALL,
        ),
    ),
)
