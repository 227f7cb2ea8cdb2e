"""Qwen3.5-MoE and Qwen3.6: linear attention, a shared expert, and a draft model (MTP).

Layouts of MTP experts: NeMo Automodel #2778 (per expert, Qwen3.5) and vLLM #42716 (fused, Qwen3.6).
Sizes: the ``config.json`` files of Qwen/Qwen3.5-35B-A3B and Qwen/Qwen3.5-397B-A17B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import (
    LINEAR_ATTENTION,
    attention,
)
from harness.families.family import ExpertNaming, Family, Module, Part, Recipe, Storage
from harness.families.sections import (
    VISION_TOWER,
    WITH_SHARED_EXPERT,
    draft_model,
    head,
    language_model,
    mrope_section,
    text_config,
    with_vision,
)
from harness.families.sizes import (
    QWEN_VISION,
    TINY,
    TINY_VISION,
    LinearAttentionShape,
    ModelShape,
)

_ARCHITECTURE = "Qwen3_5MoeForConditionalGeneration"
_LANGUAGE = "model.language_model"
_DECODER = f"{_LANGUAGE}.layers.{{layer}}.mlp.experts"
_MTP = "mtp.layers.{layer}.mlp.experts"
_LINEAR = LinearAttentionShape(key_heads=16, value_heads=32, key_dim=128, value_dim=128)

_ATTENTION = attention(gated=True)


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    text = text_config(shape, tied) | {
        "attn_output_gate": True,
        "full_attention_interval": shape.full_attention_interval,
        "layer_types": [
            "full_attention" if shape.is_full_attention(layer) else "linear_attention"
            for layer in range(shape.layers)
        ],
        "linear_conv_kernel_dim": shape.delta.conv_kernel,
        "linear_key_head_dim": shape.delta.key_dim,
        "linear_num_key_heads": shape.delta.key_heads,
        "linear_num_value_heads": shape.delta.value_heads,
        "linear_value_head_dim": shape.delta.value_dim,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": mtp_layers,
        "shared_expert_intermediate_size": shape.shared_intermediate,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": mrope_section(shape.head_dim // 8),
            "mrope_interleaved": True,
        },
    }
    return with_vision(_ARCHITECTURE, "qwen3_5_moe", text, shape, "qwen3_5_moe_vision")


FAMILY = Family(
    name="qwen3.5-moe",
    architecture=_ARCHITECTURE,
    examples=("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B"),
    namings=(
        ExpertNaming(Part.DECODER, _DECODER, Storage.FUSED),
        ExpertNaming(Part.MTP, _MTP, Storage.PER_EXPERT),
        ExpertNaming(Part.MTP, _MTP, Storage.FUSED),
    ),
    sections=(
        *language_model(
            _LANGUAGE,
            (
                Module("self_attn", _ATTENTION, ModelShape.is_full_attention),
                Module(
                    "linear_attn", LINEAR_ATTENTION, lambda s, layer: not s.is_full_attention(layer)
                ),
                *WITH_SHARED_EXPERT,
            ),
            shared=True,
        ),
        *VISION_TOWER,
        head(shared=True),
        *draft_model((Module("self_attn", _ATTENTION), *WITH_SHARED_EXPERT)),
    ),
    device_names={
        Part.DECODER: (
            ("language_model.model.", f"{_LANGUAGE}."),
            ("language_model.lm_head.", "lm_head."),
            ("visual.", "model.visual."),
        ),
        Part.MTP: (
            ("model.embed_tokens.", f"{_LANGUAGE}.embed_tokens."),
            ("model.", "mtp."),
            ("lm_head.", "lm_head."),
        ),
    },
    recipes=(
        Recipe("qwen3.5-moe", "Qwen3.5-MoE decoder, fused, no MTP layer"),
        Recipe("qwen3.5-mtp", "Qwen3.5, MTP per expert", Storage.PER_EXPERT),
        Recipe("qwen3.6-mtp", "Qwen3.6-style, MTP fused", Storage.FUSED),
    ),
    write_config=_config,
    tiny=replace(
        TINY, vision=TINY_VISION, shared_intermediate=80, full_attention_interval=2,
        linear=LinearAttentionShape(key_heads=8, value_heads=16, key_dim=16, value_dim=16),
    ),
    published={
        "qwen3.5-35b-a3b": ModelShape(
            hidden=2048, layers=40, experts=256, intermediate=512, top_k=8, heads=16, kv_heads=2,
            head_dim=256, vocabulary=248320, vision=QWEN_VISION, shared_intermediate=512,
            linear=_LINEAR,
        ),
        "qwen3.5-397b-a17b": ModelShape(
            hidden=4096, layers=60, experts=512, intermediate=1024, top_k=10, heads=32,
            kv_heads=2, head_dim=256, vocabulary=248320, vision=QWEN_VISION,
            shared_intermediate=1024, linear=replace(_LINEAR, value_heads=64),
        ),
    },
    upstream_modules=(
        "vllm.model_executor.models.qwen3_5", "vllm.model_executor.models.qwen3_5_mtp",
    ),
    fixes={"qwen3_5.py": "vLLM #42521", "qwen3_5_mtp.py": "vLLM #42716"},
    embedding=f"{_LANGUAGE}.embed_tokens.weight",
)  # fmt: skip
