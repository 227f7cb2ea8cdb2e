"""LFM2-MoE: short convolutions beside attention, dense layers first, experts called w1, w3, w2.

Its norms have names of their own, the final one with them. Sizes: the ``config.json`` of
LiquidAI/LFM2-8B-A1B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    EMBEDDING,
    EXPERTS,
    ROUTER,
    SHORT_CONVOLUTION,
    Block,
    attention,
    correction_bias,
    mlp,
    norm,
)
from harness.families.family import (
    TIE,
    ExpertNaming,
    Family,
    Module,
    MoeLayers,
    Part,
    Recipe,
    Section,
    Storage,
    each_layer,
)
from harness.families.sections import head, text_config
from harness.families.sizes import TINY, ModelShape
from harness.families.storage import W1_W3_W2

_NORMS = Block((norm("layer norms", "operator_norm"), norm("layer norms", "ffn_norm")))
_FINAL_NORM = Block((norm("final norm", "embedding_norm"),))
_DENSE_MLP = mlp("dense MLP", lambda s: s.dense_intermediate, W1_W3_W2, ("w13", "w2"))
_ATTENTION = attention(output="out_proj", norm="layernorm")
_UNPUBLISHED = ("head_dim", "hidden_act", "rms_norm_eps")


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    common = text_config(shape, tied)
    return {key: common[key] for key in common if key not in _UNPUBLISHED} | {
        "architectures": [FAMILY.architecture],
        "model_type": "lfm2_moe",
        "conv_L_cache": shape.short_kernel,
        "conv_bias": False,
        "intermediate_size": shape.dense_intermediate,
        "layer_types": [
            "full_attention" if shape.is_full_attention(layer) else "conv"
            for layer in range(shape.layers)
        ],
        "norm_eps": 1e-5,
        "norm_topk_prob": True,
        "num_dense_layers": shape.dense_first,
        "rope_theta": 1000000.0,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
    }


FAMILY = Family(
    name="lfm2-moe",
    architecture="Lfm2MoeForCausalLM",
    examples=("LiquidAI/LFM2-8B-A1B",),
    namings=(
        ExpertNaming(
            Part.DECODER, "model.layers.{layer}.feed_forward.experts", Storage.PER_EXPERT, W1_W3_W2
        ),
    ),
    sections=(
        Section("embedding", "model", (Module("", EMBEDDING),)),
        Section(
            "layers", "model.layers.{n}",
            (
                Module("self_attn", _ATTENTION, ModelShape.is_full_attention),
                Module("", SHORT_CONVOLUTION, lambda s, layer: not s.is_full_attention(layer)),
                Module("", _NORMS),
                Module("feed_forward", _DENSE_MLP, lambda s, layer: not s.has_experts(layer)),
                Module("feed_forward.gate", ROUTER, ModelShape.has_experts),
                Module(
                    "feed_forward",
                    correction_bias("gate.e_score_correction_bias", "expert_bias"),
                    ModelShape.has_experts,
                ),
                Module("feed_forward", EXPERTS, ModelShape.has_experts),
            ),
            numbers=each_layer,
        ),
        Section("final norm", "model", (Module("", _FINAL_NORM),)),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("lfm2-moe", "LFM2-MoE, per expert, short convolutions, first layer dense"),),
    write_config=_config,
    tiny=replace(
        TINY, layers=3, head_dim=16, dense_first=1, dense_intermediate=96, short_kernel=3,
        attention_layers=(2,),
    ),
    published={
        "lfm2-8b-a1b": ModelShape(
            hidden=2048, layers=24, experts=32, intermediate=1792, top_k=4, heads=32, kv_heads=8,
            head_dim=64, vocabulary=65536, dense_first=2, dense_intermediate=7168, short_kernel=3,
            attention_layers=(2, 6, 10, 14, 18, 21),
        ),
    },
    upstream_modules=("vllm.model_executor.models.lfm2_moe",),
    text_key="",
    experts_module="feed_forward.experts",
    tie_keys=("tie_embedding", TIE),
    tied_by_default=True,
    moe_layers=MoeLayers(dense_first="num_dense_layers"),
)  # fmt: skip
