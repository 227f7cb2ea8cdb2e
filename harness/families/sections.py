"""Sections that families share: a language model, a vision tower, a draft model; their config.json.

Sources: the index files and safetensors headers of Qwen3-VL-30B-A3B, Qwen3.5-35B-A3B and
Qwen3.6-35B-A3B, and the names vLLM's ``qwen3_vl.py``, ``qwen3_5.py``, ``qwen3_5_mtp.py`` and
``qwen3_moe.py`` read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harness.families.blocks import (
    DEEPSTACK_MERGER,
    EMBEDDING,
    EXPERTS,
    FINAL_NORM,
    HEAD,
    LAYER_NORMS,
    MERGER,
    MTP_FC,
    MTP_NORMS,
    PLAIN_ROUTER,
    SHARED_EXPERT,
    SHARED_EXPERT_GATE,
    VISION_BLOCK,
    VISION_EMBEDDINGS,
)
from harness.families.family import Module, Part, Section, each_layer
from harness.families.sizes import ModelShape

_BOTH = (Part.DECODER, Part.MTP)

#: What a layer has besides attention where a gated expert is shared: Qwen3-Next's and Qwen3.5's.
WITH_SHARED_EXPERT = (
    Module("", LAYER_NORMS),
    Module("mlp.gate", PLAIN_ROUTER),
    Module("mlp", EXPERTS),
    Module("mlp.shared_expert", SHARED_EXPERT),
    Module("mlp.shared_expert_gate", SHARED_EXPERT_GATE),
)


def language_model(
    path: str, layer: tuple[Module, ...], shared: bool = False
) -> tuple[Section, ...]:
    """Embedding, layers and final norm below ``path``; ``shared``: a draft model embeds, too."""
    return (
        Section("embedding", path, (Module("", EMBEDDING),), _BOTH if shared else (Part.DECODER,)),
        Section("layers", f"{path}.layers.{{n}}", layer, numbers=each_layer),
        Section("final norm", path, (Module("", FINAL_NORM),)),
    )


def head(shared: bool = False) -> Section:
    """The head; ``shared``: a draft model has it, too."""
    return Section("head", "", (Module("", HEAD),), _BOTH if shared else (Part.DECODER,))


def draft_model(layer: tuple[Module, ...]) -> tuple[Section, ...]:
    """The one layer for multi-token prediction, and what joins it to the decoder."""
    parts = (Part.MTP,)
    return (
        Section("draft input", "mtp", (Module("", MTP_FC),), parts),
        Section("draft layer", "mtp.layers.{n}", layer, parts),
        Section("draft norms", "mtp", (Module("", MTP_NORMS),), parts),
    )


#: The name of the section that scenarios may have streamed first.
VISION = "vision"
VISION_TOWER: tuple[Section, ...] = (
    Section(VISION, "model.visual", (Module("", VISION_EMBEDDINGS),)),
    Section(
        VISION, "model.visual.blocks.{n}", (Module("", VISION_BLOCK),),
        numbers=lambda s: range(s.vision.depth),
    ),
    Section(VISION, "model.visual.merger", (Module("", MERGER),)),
    Section(
        VISION, "model.visual.deepstack_merger_list.{n}", (Module("", DEEPSTACK_MERGER),),
        numbers=lambda s: range(len(s.vision.deepstack)),
    ),
)  # fmt: skip


def text_config(shape: ModelShape, tied: bool, unpublished: Collection[str] = ()) -> dict[str, Any]:
    """What ``config.json`` says of every language model with experts, but for ``unpublished``."""
    common = {
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
        "tie_word_embeddings": tied,
    }
    return {key: common[key] for key in common if key not in unpublished}


def with_vision(
    architecture: str,
    model_type: str,
    text: dict[str, Any],
    shape: ModelShape,
    vision_type: str = "",
) -> dict[str, Any]:
    """The whole ``config.json`` of a language model behind a vision tower.

    Both ``tie_word_embeddings`` keys are written, to the same value; what becomes of a
    contradiction is for scenarios to show (:meth:`harness.families.family.Family.is_tied`).
    """
    vision, special = shape.vision, shape.vocabulary - 8
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": "bfloat16",
        "tie_word_embeddings": text["tie_word_embeddings"],
        "image_token_id": special,
        "video_token_id": special + 1,
        "vision_start_token_id": special + 2,
        "vision_end_token_id": special + 3,
        "text_config": text | {"model_type": f"{model_type}_text"},
        "vision_config": {
            "deepstack_visual_indexes": list(vision.deepstack),
            "depth": vision.depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.hidden,
            "in_channels": vision.channels,
            "intermediate_size": vision.intermediate,
            "model_type": vision_type or model_type,
            "num_heads": vision.heads,
            "num_position_embeddings": vision.positions,
            "out_hidden_size": shape.hidden,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal_patch,
        },
    }


def mrope_section(frequencies: int) -> list[int]:
    """Rotary frequencies given to time, height and width: as published, or near-equal thirds."""
    published = {64: [24, 20, 20], 32: [11, 11, 10]}
    third = frequencies // 3
    return published.get(frequencies, [frequencies - 2 * third, third, third])
