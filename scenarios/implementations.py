"""Which of upstream's implementations of a model serves it: the one that tpu-inference chooses.

These rows are apart from the catalogue: what they come to is known on 0.26 and 0.32 alone, where
Gemma-4 and the choice for draft models are described.
"""

from __future__ import annotations

from harness.load.target import Implementation

from .by_rule import APART, MLA_DISABLED, of_recipes
from .scenario import Scenario

#: Has tpu-inference choose for the draft model, too.
DRAFT_CHOSEN = {"DRAFT_MODEL_IMPL_TYPE": "auto"}

_WRITTEN: tuple[Scenario, ...] = (
    Scenario(
        "mtp-auto",
        "A draft model is loaded beside its decoder as users have it, with an implementation of "
        "each that tpu-inference chooses.",
        "qwen3.6-mtp",
        every_run=False,
        impl=Implementation.AUTO,
        stream_options=DRAFT_CHOSEN,
    ),
    Scenario(
        "deepseek-v3-mtp-auto",
        "A draft model is loaded beside its decoder where tpu-inference has a JAX model of the "
        "decoder that cannot be streamed.",
        "deepseek-v3-mtp",
        every_run=False,
        impl=Implementation.AUTO,
        stream_options=MLA_DISABLED | DRAFT_CHOSEN,
    ),
    Scenario(
        "qwen3-next-mtp-auto",
        "A draft model is loaded beside its decoder where tpu-inference has a model of neither.",
        "qwen3-next-mtp",
        every_run=False,
        impl=Implementation.AUTO,
        stream_options=DRAFT_CHOSEN,
    ),
    Scenario(
        "llama4-auto",
        "Llama-4's text model is loaded by the implementation that tpu-inference chooses, its own.",
        "llama4",
        every_run=False,
        impl=Implementation.AUTO,
    ),
    Scenario(
        "gemma4-vllm",
        "Gemma-4 is loaded by vLLM's implementation, not the one that tpu-inference chooses.",
        "gemma4",
        tied=True,
        every_run=False,
        impl=Implementation.VLLM,
    ),
)
IMPLEMENTATION_ROWS = (*_WRITTEN, *of_recipes(APART))
