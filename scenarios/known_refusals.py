"""Known issues that are refusals: upstream does not do what a scenario asks, and says so."""

from __future__ import annotations

from harness.causes import Cause
from harness.known import KnownIssue, Nature, Owner

REFUSALS: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="other-layout-refused",
        owner=Owner.VLLM,
        nature=Nature.BY_DESIGN,
        reason="an expert of the wrong layout is refused, by an error of sizes that names no "
        "tensor",
        threads=(),
        stacks=("0.32",),
        scenarios=("vl-axes-swapped",),
        causes=(Cause.UNEXPLAINED,),
        error="RuntimeError",
        message="must match the size of tensor",
    ),
    KnownIssue(
        id="heads-over-three-devices",
        owner=Owner.VLLM,
        nature=Nature.BY_DESIGN,
        reason="a tensor parallel size that does not divide the attention heads is refused, as "
        "documented",
        threads=(),
        stacks=("0.21", "0.22", "0.26", "0.32"),
        scenarios=("vl-3-devices",),
        causes=(Cause.UNEXPLAINED,),
        error="pydantic_core._pydantic_core.ValidationError",
        message=r"attention heads \(8\) must be divisible by tensor parallel size \(3\)",
    ),
    KnownIssue(
        id="prefill-context-parallelism-asserts",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="prefill context parallelism is refused by an assertion without words; "
        "tpu-inference has an axis for it from 0.26 on",
        threads=(),
        stacks=("0.21", "0.22"),
        scenarios=("vl-pcp-2-model-2",),
        causes=(Cause.UNEXPLAINED,),
        error="pydantic_core._pydantic_core.ValidationError",
        message=r"^1 validation error for VllmConfig\n  Assertion failed,  \[type=assertion_error",
        at="in create_engine_config: config = VllmConfig(",
    ),
    KnownIssue(
        id="prefill-context-parallelism-refused",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="prefill context parallelism needs vLLM's second model runner from 0.32 on, and "
        "tpu-inference has an axis for it but no such runner",
        threads=(),
        stacks=("0.32",),
        scenarios=("vl-pcp-2-model-2",),
        causes=(Cause.UNEXPLAINED,),
        error="pydantic_core._pydantic_core.ValidationError",
        message="Model Runner V1 does not support: prefill context parallel",
    ),
    KnownIssue(
        id="experts-not-divisible",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="experts that the devices do not divide are refused by JAX; nothing pads them",
        threads=(),
        stacks=("0.22", "0.26", "0.32"),
        scenarios=("vl-6-experts-whole", "vl-6-experts-kernel"),
        causes=(Cause.UNEXPLAINED,),
        error="jax._src.sharding.IndivisibleError",
        message="partitioned 4 times, but the dimension size is 6",
    ),
    KnownIssue(
        id="width-not-divisible",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="an intermediate size of the experts that the devices do not divide is refused by "
        "an assertion without words in process_moe_weights",
        threads=(),
        stacks=("0.22", "0.26", "0.32"),
        scenarios=("vl-uneven-width",),
        causes=(Cause.UNEXPLAINED,),
        error="AssertionError",
        message="^$",
        at="in process_moe_weights: assert intermediate_size % w13_reorder_size == 0",
    ),
)
