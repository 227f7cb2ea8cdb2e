"""GLM-4.5 and GLM-4-MoE: dense layers first, shared experts, and a bias of the router's scores.

The published checkpoints hold a draft model, too, which is not described here: ``--only decoder``.
Sizes: the ``config.json`` files of zai-org/GLM-4.5 and zai-org/GLM-4.5-Air.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    DENSE_MLP,
    EXPERTS,
    LAYER_NORMS,
    QK_NORMS,
    SHARED_EXPERT,
    WIDENED_ROUTER,
    attention,
    correction_bias,
)
from harness.families.family import (
    ExpertNaming,
    Family,
    Module,
    MoeLayers,
    Part,
    Recipe,
    Storage,
)
from harness.families.sections import head, language_model, text_config
from harness.families.sizes import TINY, ModelShape

_BIAS = correction_bias("gate.e_score_correction_bias")


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    common = text_config(shape, tied)
    return {key: common[key] for key in common if key != "num_experts"} | {
        "architectures": [FAMILY.architecture],
        "model_type": "glm4_moe",
        "attention_bias": True,
        "first_k_dense_replace": shape.dense_first,
        "intermediate_size": shape.dense_intermediate,
        "n_group": 1,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared_intermediate // shape.intermediate,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": mtp_layers,
        "partial_rotary_factor": 0.5,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_qk_norm": shape.qk_norms,
    }


FAMILY = Family(
    name="glm4-moe",
    architecture="Glm4MoeForCausalLM",
    examples=("zai-org/GLM-4.5-Air", "zai-org/GLM-4.5", "zai-org/GLM-4.6"),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(biased=True, norms=None)),
                Module("self_attn", QK_NORMS, lambda s, layer: s.qk_norms),
                Module("", LAYER_NORMS),
                Module("mlp", DENSE_MLP, lambda s, layer: not s.has_experts(layer)),
                Module("mlp.gate", WIDENED_ROUTER, ModelShape.has_experts),
                Module("mlp", _BIAS, ModelShape.has_experts),
                Module("mlp", EXPERTS, ModelShape.has_experts),
                Module("mlp.shared_experts", SHARED_EXPERT, ModelShape.has_experts),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("glm4-moe", "GLM-4-MoE decoder, per expert, its first layer dense"),),
    write_config=_config,
    tiny=replace(
        TINY, layers=3, dense_first=1, dense_intermediate=96, shared_intermediate=48, qk_norms=True
    ),
    published={
        "glm-4.5-air": ModelShape(
            hidden=4096, layers=46, experts=128, intermediate=1408, top_k=8, heads=96, kv_heads=8,
            head_dim=128, vocabulary=151552, dense_first=1, dense_intermediate=10944,
            shared_intermediate=1408,
        ),
        "glm-4.5": ModelShape(
            hidden=5120, layers=92, experts=160, intermediate=1536, top_k=8, heads=96, kv_heads=8,
            head_dim=128, vocabulary=151552, dense_first=3, dense_intermediate=12288,
            shared_intermediate=1536, qk_norms=True,
        ),
    },
    upstream_modules=("vllm.model_executor.models.glm4_moe",),
    text_key="",
    moe_layers=MoeLayers(dense_first="first_k_dense_replace"),
    layer_counts={Part.DECODER: "num_hidden_layers", Part.MTP: "num_nextn_predict_layers"},
    draft_prefix="model.layers.{layer}.",
)  # fmt: skip
