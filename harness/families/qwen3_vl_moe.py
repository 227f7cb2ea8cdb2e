"""Qwen3-VL-MoE: fused and transposed experts behind a vision tower.

Sizes: the ``config.json`` files of Qwen/Qwen3-VL-30B-A3B-Instruct and
Qwen/Qwen3-VL-235B-A22B-Instruct.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import EXPERTS, LAYER_NORMS, ROUTER, attention
from harness.families.family import ExpertNaming, Family, Module, Part, Recipe, Storage
from harness.families.misread import TRANSPOSED_ROAD
from harness.families.sections import (
    VISION_TOWER,
    head,
    language_model,
    mrope_section,
    text_config,
    with_vision,
)
from harness.families.sizes import QWEN_VISION, TINY, TINY_VISION, ModelShape

_ARCHITECTURE = "Qwen3VLMoeForConditionalGeneration"
_LANGUAGE = "model.language_model"
_VISION = replace(QWEN_VISION, deepstack=(8, 16, 24))


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    text = text_config(shape, tied) | {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000,
            "mrope_section": mrope_section(shape.head_dim // 2),
            "mrope_interleaved": True,
        },
    }
    return with_vision(_ARCHITECTURE, "qwen3_vl_moe", text, shape)


FAMILY = Family(
    name="qwen3-vl-moe",
    architecture=_ARCHITECTURE,
    examples=("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    namings=(
        ExpertNaming(
            Part.DECODER, f"{_LANGUAGE}.layers.{{layer}}.mlp.experts", Storage.FUSED_TRANSPOSED
        ),
    ),
    sections=(
        *language_model(
            _LANGUAGE,
            (
                Module("self_attn", attention()),
                Module("", LAYER_NORMS),
                Module("mlp.gate", ROUTER),
                Module("mlp", EXPERTS),
            ),
        ),
        *VISION_TOWER,
        head(),
    ),
    device_names={
        Part.DECODER: (
            ("language_model.model.", f"{_LANGUAGE}."),
            ("language_model.lm_head.", "lm_head."),
            ("visual.", "model.visual."),
        )
    },
    recipes=(Recipe("qwen3-vl-moe", "Qwen3-VL-MoE, fused and transposed"),),
    write_config=_config,
    tiny=replace(TINY, vision=replace(TINY_VISION, deepstack=(0, 1))),
    published={
        "qwen3-vl-30b-a3b": ModelShape(
            hidden=2048, layers=48, experts=128, intermediate=768, top_k=8, heads=32, kv_heads=4,
            head_dim=128, vocabulary=151936, vision=_VISION,
        ),
        "qwen3-vl-235b-a22b": ModelShape(
            hidden=4096, layers=94, experts=128, intermediate=1536, top_k=8, heads=64, kv_heads=4,
            head_dim=128, vocabulary=151936, vision=_VISION,
        ),
    },
    upstream_modules=("vllm.model_executor.models.qwen3_vl_moe",),
    misread=TRANSPOSED_ROAD,
    fixes={"qwen3_vl_moe.py": "vLLM #42671 and #42716"},
    embedding=f"{_LANGUAGE}.embed_tokens.weight",
)  # fmt: skip
