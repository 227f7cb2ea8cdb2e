"""DeepSeek-V3: multi-head latent attention, dense layers first, shared experts, and a draft model.

The draft's layers are numbered on after the decoder's, and each brings an embedding and a head of
its own. What the device holds of attention is as stored with ``VLLM_MLA_DISABLE=1``; without,
upstream makes other matrices of ``kv_b_proj``. Sizes: the ``config.json`` of
deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    DENSE_MLP,
    EMBEDDING,
    EXPERTS,
    LATENT_ATTENTION,
    LAYER_NORMS,
    PLAIN_ROUTER,
    SHARED_EXPERT,
    Block,
    correction_bias,
    norm,
    vocabulary,
    whole,
)
from harness.families.family import (
    ExpertNaming,
    Family,
    Module,
    MoeLayers,
    Part,
    Recipe,
    Section,
    Storage,
)
from harness.families.sections import head, language_model, text_config
from harness.families.sizes import TINY, LatentAttentionShape, ModelShape

_LAYERS = "model.layers.{layer}"
_BIAS = correction_bias("gate.e_score_correction_bias")
#: What joins a draft's layer to the decoder, and what it ends in.
_DRAFT = Block((
    norm("MTP's norms", "enorm"), norm("MTP's norms", "hnorm"),
    whole("MTP's projection", "eh_proj.weight", lambda s: (s.hidden, 2 * s.hidden)),
    norm("final norm", "shared_head.norm"),
    vocabulary("head", "shared_head.head.weight"),
))  # fmt: skip
_ATTENTION = (Module("self_attn", LATENT_ATTENTION), Module("", LAYER_NORMS))


def _of_experts(when: Any) -> tuple[Module, ...]:
    return (
        Module("mlp.gate", PLAIN_ROUTER, when),
        Module("mlp", _BIAS, when),
        Module("mlp", EXPERTS, when),
        Module("mlp.shared_experts", SHARED_EXPERT, when),
    )


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    common, groups = text_config(shape, tied), max(shape.experts // 32, 1)
    return {key: common[key] for key in common if key not in ("head_dim", "num_experts")} | {
        "architectures": [FAMILY.architecture],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "first_k_dense_replace": shape.dense_first,
        "intermediate_size": shape.dense_intermediate,
        "kv_lora_rank": shape.mla.kv_rank,
        "moe_layer_freq": 1,
        "n_group": groups,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared_intermediate // shape.intermediate,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": mtp_layers,
        "q_lora_rank": shape.mla.q_rank,
        "qk_nope_head_dim": shape.mla.unrotated,
        "qk_rope_head_dim": shape.mla.rotated,
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": max(groups // 2, 1),
        "topk_method": "noaux_tc",
        "v_head_dim": shape.mla.value,
    }


FAMILY = Family(
    name="deepseek-v3",
    architecture="DeepseekV3ForCausalLM",
    examples=("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"),
    namings=(
        ExpertNaming(Part.DECODER, f"{_LAYERS}.mlp.experts", Storage.PER_EXPERT),
        ExpertNaming(Part.MTP, f"{_LAYERS}.mlp.experts", Storage.PER_EXPERT),
    ),
    sections=(
        *language_model(
            "model",
            (
                *_ATTENTION,
                Module("mlp", DENSE_MLP, lambda s, layer: not s.has_experts(layer)),
                *_of_experts(ModelShape.has_experts),
            ),
        ),
        head(),
        Section(
            "draft layer", "model.layers.{n}",
            (Module("", EMBEDDING), Module("", _DRAFT), *_ATTENTION,
             *_of_experts(lambda s, layer: True)),
            (Part.MTP,), numbers=lambda s: (s.layers,),
        ),
    ),
    device_names={
        Part.DECODER: (),
        Part.MTP: (
            (f"{_LAYERS}.mtp_block.", f"{_LAYERS}."),
            ("model.embed_tokens.", f"{_LAYERS}.embed_tokens."),
        ),
    },
    recipes=(
        Recipe("deepseek-v3", "DeepSeek-V3 decoder, per expert, its first layer dense"),
        Recipe("deepseek-v3-mtp", "DeepSeek-V3 with its MTP, per expert", Storage.PER_EXPERT),
    ),
    write_config=_config,
    tiny=replace(
        TINY, layers=3, kv_heads=8, dense_first=1, dense_intermediate=96, shared_intermediate=48,
        latent=LatentAttentionShape(q_rank=64, kv_rank=32, unrotated=16, rotated=16, value=16),
    ),
    published={
        "deepseek-v3": ModelShape(
            hidden=7168, layers=61, experts=256, intermediate=2048, top_k=8, heads=128,
            kv_heads=128, head_dim=192, vocabulary=129280, dense_first=3, dense_intermediate=18432,
            shared_intermediate=2048,
            latent=LatentAttentionShape(
                q_rank=1536, kv_rank=512, unrotated=128, rotated=64, value=128
            ),
        ),
    },
    built_by={"e_score_correction_bias": "topk_method"},  # deepseek_v2.py, DeepseekV2MoE, 0.26
    upstream_modules=(
        "vllm.model_executor.models.deepseek_v2", "vllm.model_executor.models.deepseek_mtp",
    ),
    text_key="",
    moe_layers=MoeLayers(dense_first="first_k_dense_replace", step_from_zero="moe_layer_freq"),
    layer_counts={Part.DECODER: "num_hidden_layers", Part.MTP: "num_nextn_predict_layers"},
    draft_prefix=f"{_LAYERS}.",
)  # fmt: skip
