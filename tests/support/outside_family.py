"""Qwen2-MoE (Qwen1.5-MoE): per expert, a shared expert with a gate, biases of q, k and v.

Names: the index of Qwen/Qwen1.5-MoE-A2.7B; sizes: its config.json. Learnt from the first load: the
router is left as it is stored (vLLM makes it with ``quant_config=None``).
"""

from __future__ import annotations

from typing import Any

from harness.families.blocks import (
    EXPERTS,
    LAYER_NORMS,
    PLAIN_ROUTER,
    SHARED_EXPERT,
    SHARED_EXPERT_GATE,
    attention,
)
from harness.families.family import ExpertNaming, Family, Module, Part, Recipe, Storage
from harness.families.layers import MoeLayers
from harness.families.sections import head, language_model, text_config
from harness.families.sizes import ModelShape


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    return text_config(shape, tied) | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "decoder_sparse_step": 1,
        "intermediate_size": shape.shared_intermediate,
        "mlp_only_layers": [],
        "norm_topk_prob": False,
        "rope_theta": 1000000.0,
        "shared_expert_intermediate_size": shape.shared_intermediate,
    }


FAMILY = Family(
    name="qwen2-moe",
    architecture="Qwen2MoeForCausalLM",
    examples=("Qwen/Qwen1.5-MoE-A2.7B",),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(biased=True, norms=None)),
                Module("", LAYER_NORMS),
                Module("mlp.gate", PLAIN_ROUTER),
                Module("mlp", EXPERTS),
                Module("mlp.shared_expert", SHARED_EXPERT),
                Module("mlp.shared_expert_gate", SHARED_EXPERT_GATE),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("qwen2-moe", "Qwen2-MoE, per expert"),),
    write_config=_config,
    tiny=ModelShape(
        hidden=128, layers=2, experts=8, intermediate=48, top_k=2, heads=8, kv_heads=4,
        head_dim=16, vocabulary=512, shared_intermediate=64,
    ),
    published={
        "qwen1.5-moe-a2.7b": ModelShape(
            hidden=2048, layers=24, experts=60, intermediate=1408, top_k=4, heads=16, kv_heads=16,
            head_dim=128, vocabulary=151936, shared_intermediate=5632,
        ),
    },
    upstream_modules=("vllm.model_executor.models.qwen2_moe",),
    moe_layers=MoeLayers(step="decoder_sparse_step", dense="mlp_only_layers"),
    text_key="",
)  # fmt: skip
