"""Qwen3-MoE and Qwen3-Coder, text alone: one tensor per expert and projection.

Sizes: the ``config.json`` files of Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B.
"""

from __future__ import annotations

from typing import Any

from harness.families.blocks import DENSE_MLP, EXPERTS, LAYER_NORMS, ROUTER, attention
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


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    return text_config(shape, tied) | {
        "architectures": [FAMILY.architecture],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": shape.sparse_step,
        "intermediate_size": shape.dense_intermediate or 6144,
        "mlp_only_layers": list(range(shape.dense_first)),
        "norm_topk_prob": True,
        "rope_theta": 1000000,
    }


FAMILY = Family(
    name="qwen3-moe",
    architecture="Qwen3MoeForCausalLM",
    examples=("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention()),
                Module("", LAYER_NORMS),
                Module("mlp", DENSE_MLP, lambda s, layer: not s.has_experts(layer)),
                Module("mlp.gate", ROUTER, ModelShape.has_experts),
                Module("mlp", EXPERTS, ModelShape.has_experts),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("qwen3-moe", "Qwen3-MoE, per expert"),),
    write_config=_config,
    tiny=TINY,
    published={
        "qwen3-30b-a3b": ModelShape(
            hidden=2048, layers=48, experts=128, intermediate=768, top_k=8, heads=32, kv_heads=4,
            head_dim=128, vocabulary=151936,
        ),
        "qwen3-235b-a22b": ModelShape(
            hidden=4096, layers=94, experts=128, intermediate=1536, top_k=8, heads=64, kv_heads=4,
            head_dim=128, vocabulary=151936,
        ),
    },
    upstream_modules=("vllm.model_executor.models.qwen3_moe",),
    text_key="",
    moe_layers=MoeLayers(step="decoder_sparse_step", dense="mlp_only_layers"),
)  # fmt: skip
