"""gpt-oss in bf16: interleaved experts with biases, attention with biases and sinks.

The published checkpoints hold experts as MXFP4 (:mod:`harness.families.formats.mxfp4`); these are
the same weights as people convert them, and as transformers saves them. The columns of gate and up
alternate, and so do their biases. vLLM calls the attention ``attn`` and the embedding
``embedding``, and copies experts, their biases and the sinks into its parameters itself, past
every ``weight_loader`` (``models/gpt_oss.py``, ``_load_weights_other``, 0.21 to 0.32). Sizes: the
``config.json`` files of openai/gpt-oss-20b and openai/gpt-oss-120b.
"""

from __future__ import annotations

from typing import Any

from harness.families.blocks import (
    ALTERNATING_EXPERT_BIASES,
    BIASED_ROUTER,
    EXPERTS,
    FINAL_NORM,
    LAYER_NORMS,
    attention,
    called,
    vocabulary,
)
from harness.families.family import (
    EXPERTS_KEYS,
    ExpertNaming,
    Family,
    Module,
    Part,
    Recipe,
    Section,
    Storage,
    each_layer,
)
from harness.families.misread import Misread
from harness.families.sections import head, text_config
from harness.families.sizes import TINY, ModelShape

_EMBEDDING = called("embedding.weight", vocabulary("embedding", "embed_tokens.weight"))
#: The layers' windows: every other layer attends to all, the first does not.
_KINDS = ("sliding_attention", "full_attention")


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    unpublished = ("num_experts", "moe_intermediate_size")
    return text_config(shape, tied, unpublished) | {
        "architectures": [FAMILY.architecture],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "experts_per_token": shape.top_k,
        "initial_context_length": 4096,
        "intermediate_size": shape.intermediate,
        "layer_types": [_KINDS[layer % 2] for layer in range(shape.layers)],
        "num_local_experts": shape.experts,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
    }  # fmt: skip


FAMILY = Family(
    name="gpt-oss",
    architecture="GptOssForCausalLM",
    examples=("unsloth/gpt-oss-20b-BF16", "unsloth/gpt-oss-120b-BF16"),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.INTERLEAVED),),
    sections=(
        Section("embedding", "model", (Module("", _EMBEDDING),)),
        Section(
            "layers",
            "model.layers.{n}",
            (
                Module(
                    "self_attn",
                    attention(biased=True, norms=None, output_biased=True, sinks=True),
                    device="attn",
                ),
                Module("", LAYER_NORMS),
                Module("mlp.router", BIASED_ROUTER),
                Module("mlp", EXPERTS),
                Module("mlp.experts", ALTERNATING_EXPERT_BIASES),
            ),
            numbers=each_layer,
        ),
        Section("final norm", "model", (Module("", FINAL_NORM),)),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("gpt-oss", "gpt-oss in bf16, gate and up interleaved, with biases and sinks"),),
    write_config=_config,
    tiny=TINY,
    published={
        "gpt-oss-20b": ModelShape(
            hidden=2880, layers=24, experts=32, intermediate=2880, top_k=4, heads=64, kv_heads=8,
            head_dim=64, vocabulary=201088,
        ),
        "gpt-oss-120b": ModelShape(
            hidden=2880, layers=36, experts=128, intermediate=2880, top_k=4, heads=64, kv_heads=8,
            head_dim=64, vocabulary=201088,
        ),
    },
    upstream_modules=("vllm.model_executor.models.gpt_oss",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
    alternating=True,
    misread=tuple(
        Misread(
            storage, Storage.INTERLEAVED, ">=0.20",
            "vllm/model_executor/models/gpt_oss.py, _load_weights_other: gate_up_proj is "
            "[E, D, 2F], and swigluoai takes every other column for gate's",
        )
        for storage in (Storage.FUSED, Storage.FUSED_TRANSPOSED)
    ),
)  # fmt: skip
