"""MiniMax-M2: experts called w1, w3, w2, and a bias of the router's scores beside the router.

Norms are over all heads of q and k at once. Its ``intermediate_size`` is the experts' own. Sizes:
the ``config.json`` of MiniMaxAI/MiniMax-M2.
"""

from __future__ import annotations

from typing import Any

from harness.families.blocks import (
    EXPERTS,
    FLOAT_ROUTER,
    LAYER_NORMS,
    OVER_HEADS,
    attention,
    correction_bias,
)
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
from harness.families.storage import W1_W3_W2

_UNPUBLISHED = ("moe_intermediate_size", "num_experts")


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    common = text_config(shape, tied)
    return {key: common[key] for key in common if key not in _UNPUBLISHED} | {
        "architectures": [FAMILY.architecture],
        "model_type": "minimax_m2",
        "attn_type_list": [1] * shape.layers,
        "intermediate_size": shape.intermediate,
        "num_local_experts": shape.experts,
        "rope_theta": 5000000,
        "rotary_dim": shape.head_dim // 2,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "use_routing_bias": True,
    }


FAMILY = Family(
    name="minimax-m2",
    architecture="MiniMaxM2ForCausalLM",
    examples=("MiniMaxAI/MiniMax-M2",),
    namings=(
        ExpertNaming(
            Part.DECODER, "model.layers.{layer}.block_sparse_moe.experts", Storage.PER_EXPERT,
            W1_W3_W2,
        ),
    ),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=OVER_HEADS)),
                Module("", LAYER_NORMS),
                Module("block_sparse_moe.gate", FLOAT_ROUTER),
                Module("block_sparse_moe", correction_bias("e_score_correction_bias")),
                Module("block_sparse_moe", EXPERTS),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("minimax-m2", "MiniMax-M2, per expert"),),
    write_config=_config,
    tiny=TINY,
    published={
        "minimax-m2": ModelShape(
            hidden=3072, layers=62, experts=256, intermediate=1536, top_k=8, heads=48, kv_heads=8,
            head_dim=128, vocabulary=200064,
        ),
    },
    upstream_modules=("vllm.model_executor.models.minimax_m2",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
    experts_module="block_sparse_moe.experts",
)  # fmt: skip
