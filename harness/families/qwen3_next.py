"""Qwen3-Next: linear attention by key heads, a shared expert, and a draft model (MTP).

``config.json`` does not say that there is a draft model; the files do. Sizes: the ``config.json``
of Qwen/Qwen3-Next-80B-A3B-Instruct.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    INTERLEAVED_LINEAR_ATTENTION,
    attention,
)
from harness.families.family import ExpertNaming, Family, Module, Part, Recipe, Storage
from harness.families.sections import (
    WITH_SHARED_EXPERT,
    draft_model,
    head,
    language_model,
    text_config,
)
from harness.families.sizes import TINY, LinearAttentionShape, ModelShape

_ATTENTION = attention(gated=True)


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    return text_config(shape, tied) | {
        "architectures": [FAMILY.architecture],
        "model_type": "qwen3_next",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "full_attention_interval": shape.full_attention_interval,
        "intermediate_size": 5120,
        "layer_types": [
            "full_attention" if shape.is_full_attention(layer) else "linear_attention"
            for layer in range(shape.layers)
        ],
        "linear_conv_kernel_dim": shape.delta.conv_kernel,
        "linear_key_head_dim": shape.delta.key_dim,
        "linear_num_key_heads": shape.delta.key_heads,
        "linear_num_value_heads": shape.delta.value_heads,
        "linear_value_head_dim": shape.delta.value_dim,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": shape.shared_intermediate,
    }


FAMILY = Family(
    name="qwen3-next",
    architecture="Qwen3NextForCausalLM",
    examples=("Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3-Coder-Next"),
    namings=(
        ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),
        ExpertNaming(Part.MTP, "mtp.layers.{layer}.mlp.experts", Storage.PER_EXPERT),
    ),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", _ATTENTION, ModelShape.is_full_attention),
                Module(
                    "linear_attn", INTERLEAVED_LINEAR_ATTENTION,
                    lambda s, layer: not s.is_full_attention(layer),
                ),
                *WITH_SHARED_EXPERT,
            ),
            shared=True,
        ),
        head(shared=True),
        *draft_model((Module("self_attn", _ATTENTION), *WITH_SHARED_EXPERT)),
    ),
    device_names={
        Part.DECODER: (),
        Part.MTP: (("model.embed_tokens.", "model.embed_tokens."), ("model.", "mtp.")),
    },
    recipes=(
        Recipe("qwen3-next", "Qwen3-Next decoder, per expert, no MTP layer"),
        Recipe("qwen3-next-mtp", "Qwen3-Next with its MTP, per expert", Storage.PER_EXPERT),
    ),
    write_config=_config,
    tiny=replace(
        TINY, shared_intermediate=80, full_attention_interval=2,
        linear=LinearAttentionShape(key_heads=8, value_heads=16, key_dim=16, value_dim=16),
    ),
    published={
        "qwen3-next-80b-a3b": ModelShape(
            hidden=2048, layers=48, experts=512, intermediate=512, top_k=10, heads=16, kv_heads=2,
            head_dim=256, vocabulary=151936, shared_intermediate=512,
            linear=LinearAttentionShape(key_heads=16, value_heads=32, key_dim=128, value_dim=128),
        ),
    },
    upstream_modules=(
        "vllm.model_executor.models.qwen3_next", "vllm.model_executor.models.qwen3_next_mtp",
    ),
    text_key="",
    layer_counts={Part.DECODER: "num_hidden_layers", Part.MTP: "num_nextn_predict_layers"},
    unannounced_drafts=1,
)  # fmt: skip
