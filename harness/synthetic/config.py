"""The ``config.json`` of a synthetic checkpoint, with the keys vLLM and transformers read.

Both ``tie_word_embeddings`` keys are written, to the same value; what becomes of a contradiction is
for scenarios to show (:mod:`harness.families.ties`).
"""

from __future__ import annotations

from typing import Any

from harness.families.family import QWEN3_VL_MOE
from harness.synthetic.recipes import Recipe
from harness.synthetic.shapes import ModelShape


def model_config(recipe: Recipe, shape: ModelShape, tied: bool = False) -> dict[str, Any]:
    """The configuration of ``recipe`` at ``shape``, as a JSON object; ``tied``: head, embedding."""
    vl = recipe.family is QWEN3_VL_MOE
    model_type = "qwen3_vl_moe" if vl else "qwen3_5_moe"
    text = _text(shape) | {"model_type": f"{model_type}_text", "tie_word_embeddings": tied}
    text |= _qwen3_vl_text(shape) if vl else _qwen3_5_text(recipe, shape)
    vision = _vision(shape) | {"model_type": model_type if vl else f"{model_type}_vision"}
    special = shape.vocabulary - 8
    return {
        "architectures": [recipe.family.architecture],
        "model_type": model_type,
        "dtype": "bfloat16",
        "tie_word_embeddings": tied,
        "image_token_id": special,
        "video_token_id": special + 1,
        "vision_start_token_id": special + 2,
        "vision_end_token_id": special + 3,
        "text_config": text,
        "vision_config": vision,
    }


def _text(shape: ModelShape) -> dict[str, Any]:
    return {
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": shape.vocabulary,
    }


def _qwen3_vl_text(shape: ModelShape) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000,
            "mrope_section": _mrope_section(shape.head_dim // 2),
            "mrope_interleaved": True,
        },
    }


def _qwen3_5_text(recipe: Recipe, shape: ModelShape) -> dict[str, Any]:
    assert shape.linear is not None
    return {
        "attn_output_gate": True,
        "full_attention_interval": shape.full_attention_interval,
        "layer_types": [
            "full_attention" if shape.is_full_attention(layer) else "linear_attention"
            for layer in range(shape.layers)
        ],
        "linear_conv_kernel_dim": shape.linear.conv_kernel,
        "linear_key_head_dim": shape.linear.key_dim,
        "linear_num_key_heads": shape.linear.key_heads,
        "linear_num_value_heads": shape.linear.value_heads,
        "linear_value_head_dim": shape.linear.value_dim,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 0 if recipe.mtp is None else 1,
        "shared_expert_intermediate_size": shape.shared_intermediate,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": _mrope_section(shape.head_dim // 8),
            "mrope_interleaved": True,
        },
    }


def _mrope_section(frequencies: int) -> list[int]:
    """Rotary frequencies given to time, height and width: as published, or near-equal thirds."""
    published = {64: [24, 20, 20], 32: [11, 11, 10]}
    third = frequencies // 3
    return published.get(frequencies, [frequencies - 2 * third, third, third])


def _vision(shape: ModelShape) -> dict[str, Any]:
    vision = shape.vision
    return {
        "deepstack_visual_indexes": list(vision.deepstack),
        "depth": vision.depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vision.hidden,
        "in_channels": vision.channels,
        "intermediate_size": vision.intermediate,
        "num_heads": vision.heads,
        "num_position_embeddings": vision.positions,
        "out_hidden_size": shape.hidden,
        "patch_size": vision.patch,
        "spatial_merge_size": vision.merge,
        "temporal_patch_size": vision.temporal_patch,
    }
