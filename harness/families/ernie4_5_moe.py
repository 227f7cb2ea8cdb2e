"""ERNIE-4.5-MoE: dense layers first, shared experts, a router in float32 with a bias of its own.

Sizes: the ``config.json`` files of baidu/ERNIE-4.5-21B-A3B-PT and baidu/ERNIE-4.5-300B-A47B-PT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    DENSE_MLP,
    EXPERTS,
    FLOAT_ROUTER,
    LAYER_NORMS,
    SHARED_EXPERT,
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

#: The router's bias, stored beside it as [1, E] (vLLM ``ernie45_moe.py``, ``_preprocess``).
_BIAS = correction_bias(
    "gate.e_score_correction_bias", "moe_statics.e_score_correction_bias", squeezed=True
)
_UNPUBLISHED = ("num_experts", "num_experts_per_tok")


def _has_shared_experts(shape: ModelShape, layer: int) -> bool:
    return shape.shared_intermediate > 0 and shape.has_experts(layer)


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    common = text_config(shape, tied)
    return {key: common[key] for key in common if key not in _UNPUBLISHED} | {
        "architectures": [FAMILY.architecture],
        "model_type": "ernie4_5_moe",
        "intermediate_size": shape.dense_intermediate,
        "moe_k": shape.top_k,
        "moe_layer_end_index": shape.layers - 1,
        "moe_layer_interval": shape.sparse_step,
        "moe_layer_start_index": shape.dense_first,
        "moe_num_experts": shape.experts,
        "moe_num_shared_experts": shape.shared_intermediate // shape.intermediate,
        "rope_theta": 500000.0,
        "use_bias": False,
    }


FAMILY = Family(
    name="ernie4.5-moe",
    architecture="Ernie4_5_MoeForCausalLM",
    examples=("baidu/ERNIE-4.5-21B-A3B-PT", "baidu/ERNIE-4.5-300B-A47B-PT"),
    namings=(ExpertNaming(Part.DECODER, "model.layers.{layer}.mlp.experts", Storage.PER_EXPERT),),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=None)),
                Module("", LAYER_NORMS),
                Module("mlp", DENSE_MLP, lambda s, layer: not s.has_experts(layer)),
                Module("mlp.gate", FLOAT_ROUTER, ModelShape.has_experts),
                Module("mlp", _BIAS, ModelShape.has_experts),
                Module("mlp", EXPERTS, ModelShape.has_experts),
                Module("mlp.shared_experts", SHARED_EXPERT, _has_shared_experts),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("ernie4.5-moe", "ERNIE-4.5-MoE, per expert, its first layer dense"),),
    write_config=_config,
    tiny=replace(TINY, layers=3, dense_first=1, dense_intermediate=96, shared_intermediate=96),
    published={
        "ernie-4.5-21b-a3b": ModelShape(
            hidden=2560, layers=28, experts=64, intermediate=1536, top_k=6, heads=20, kv_heads=4,
            head_dim=128, vocabulary=103424, dense_first=1, dense_intermediate=12288,
            shared_intermediate=3072,
        ),
        "ernie-4.5-300b-a47b": ModelShape(
            hidden=8192, layers=54, experts=64, intermediate=3584, top_k=8, heads=64, kv_heads=8,
            head_dim=128, vocabulary=103424, dense_first=3, dense_intermediate=28672,
        ),
    },
    upstream_modules=("vllm.model_executor.models.ernie45_moe",),
    text_key="",
    tied_by_default=True,
    moe_layers=MoeLayers(
        dense_first="moe_layer_start_index", step="moe_layer_interval", last="moe_layer_end_index"
    ),
)  # fmt: skip
