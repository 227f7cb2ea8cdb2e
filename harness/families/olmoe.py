"""OLMoE: one tensor per expert and projection, and norms over all heads of q and k at once.

Its ``intermediate_size`` is the experts' own, and no ``head_dim`` is published: heads share the
hidden size. Sizes: the ``config.json`` of allenai/OLMoE-1B-7B-0924.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import EXPERTS, LAYER_NORMS, OVER_HEADS, PLAIN_ROUTER, attention
from harness.families.family import (
    EXPERTS_KEYS,
    ExpertNaming,
    Family,
    Module,
    Part,
    Recipe,
    Storage,
)
from harness.families.sections import head, language_model, text_config
from harness.families.sizes import TINY, ModelShape


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    unpublished = ("head_dim", "moe_intermediate_size")
    return text_config(shape, tied, unpublished) | {
        "architectures": [FAMILY.architecture],
        "model_type": "olmoe",
        "attention_bias": False,
        "clip_qkv": None,
        "intermediate_size": shape.intermediate,
        "norm_topk_prob": False,
        "rope_theta": 10000.0,
    }


FAMILY = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    examples=("allenai/OLMoE-1B-7B-0924", "allenai/OLMoE-1B-7B-0924-Instruct"),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=OVER_HEADS)),
                Module("", LAYER_NORMS),
                Module("mlp.gate", PLAIN_ROUTER),
                Module("mlp", EXPERTS),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("olmoe", "OLMoE, per expert"),),
    write_config=_config,
    tiny=replace(TINY, head_dim=16),
    published={
        "olmoe-1b-7b": ModelShape(
            hidden=2048, layers=16, experts=64, intermediate=1024, top_k=8, heads=16, kv_heads=16,
            head_dim=128, vocabulary=50304,
        ),
    },
    upstream_modules=("vllm.model_executor.models.olmoe",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
)  # fmt: skip
