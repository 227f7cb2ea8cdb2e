"""Gemma-4 with experts, beside its vision tower: experts next to a dense MLP, in every layer.

Every n-th layer attends to all, with heads of another width, fewer of k, and no v: k is both
(``attention_k_eq_v``). vLLM puts k in the place of v, too. The router has scales of its own, and a
layer a scale. vLLM takes the vision tower from transformers, and leaves it as it is stored.

tpu-inference's own JAX model (``models/jax/{gemma4,gemma4_mm}.py``, 0.32) serves it under
``MODEL_IMPL_TYPE=auto``, in its vision tower with a fixed number of positions, 10240, and with
widths of heads that are 64 or a multiple of 128. Sizes: the ``config.json`` of
google/gemma-4-26B-A4B-it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.families.blocks import (
    EXPERTS,
    Block,
    Cut,
    Pieces,
    Row,
    ShapeOf,
    attention,
    mlp,
    norm,
    whole,
)
from harness.families.family import (
    TIE,
    ExpertNaming,
    Family,
    Module,
    Part,
    Recipe,
    Section,
    Storage,
)
from harness.families.sections import VISION, head, language_model, text_config
from harness.families.sizes import ModelShape, VisionShape

_LANGUAGE = "model.language_model"
_VISION, _TOWER = "model.vision_tower", "model.vision_tower.encoder.layers.{n}"
#: Positions in the vision tower's two tables; the JAX model is made for so many and no others.
_POSITIONS = 10240
_FULL = "full_attention"

_SLIDING_ATTENTION = attention()
_FULL_ATTENTION = attention(
    width=lambda s: s.full_head_dim,
    kv_heads=lambda s: s.full_kv_heads,
    norms=(lambda s: (s.full_head_dim,), lambda s: (s.full_head_dim,)),
    keys_are_values=True,
)
_NORMS = Block(tuple(
    norm("layer norms", name) for name in (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
        "post_feedforward_layernorm", "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
    )
))  # fmt: skip
_LAYER_SCALE = Block((whole("layer's scale", "layer_scalar", lambda s: (1,)),))
_ROUTER_WEIGHT = ("proj.weight", lambda s: (s.experts, s.hidden))
_ROUTER = Block((
    Row(
        "router", "proj.weight", (_ROUTER_WEIGHT,), casts=False,
        own=(Row("router", "proj.weight", (_ROUTER_WEIGHT,), "own", transposed=True),),
    ),
    whole("router's scales", "scale", lambda s: (s.hidden,)),
    whole("router's scales", "per_expert_scale", lambda s: (s.experts,)),
))  # fmt: skip


def _linear(name: str, shape: ShapeOf, cut: Cut, *, of_heads: bool = False) -> Row:
    """A linear layer of the vision tower: whole in transformers' module, cut in the JAX model."""
    kind, stored = "vision linear layers", ((f"{name}.linear.weight", shape),)
    pieces = Pieces.HEADS if of_heads and cut is Cut.OUTPUTS else Pieces.WHOLE
    own = Row(
        kind, f"{name}.weight", stored, "own", cut=cut, transposed=True, pieces=pieces,
        axes=("model",), of_heads=of_heads,
    )  # fmt: skip
    return Row(kind, f"{name}.linear.weight", stored, casts=False, own=(own,))


def _plain(name: str, shape: ShapeOf) -> Row:
    """One with the name of its tensor, cut by its outputs in the JAX model."""
    stored = ((name, shape),)
    own = Row(
        "vision linear layers", name, stored, "own", cut=Cut.OUTPUTS, transposed=True,
        axes=("model",),
    )  # fmt: skip
    return Row("vision linear layers", name, stored, casts=False, own=(own,))


_TABLE = (("position_embedding_table", lambda s: (2, s.vision.positions, s.vision.hidden)),)


def _square(s: ModelShape) -> tuple[int, int]:
    return s.vision.hidden, s.vision.hidden


def _wide(s: ModelShape) -> tuple[int, int]:
    return s.vision.intermediate, s.vision.hidden


_VISION_LAYER = (
    Module("", Block(tuple(
        whole("vision norms", f"{name}.weight", lambda s: (s.vision.hidden,)) for name in (
            "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
    ))),
    Module("self_attn", Block((
        *(_linear(f"{letter}_proj", _square, Cut.OUTPUTS, of_heads=True) for letter in "qkv"),
        _linear("o_proj", _square, Cut.INPUTS, of_heads=True),
        *(
            whole("vision norms", f"{letter}_norm.weight",
                  lambda s: (s.vision.hidden // s.vision.heads,))
            for letter in "qk"
        ),
    ))),
    Module("mlp", Block((
        _linear("gate_proj", _wide, Cut.OUTPUTS),
        _linear("up_proj", _wide, Cut.OUTPUTS),
        _linear("down_proj", lambda s: _wide(s)[::-1], Cut.INPUTS),
    ))),
)  # fmt: skip
_PATCHES = Block((
    _plain(
        "input_proj.weight", lambda s: (s.vision.hidden, s.vision.channels * s.vision.patch**2)
    ),
    Row(
        "vision position embedding", "position_embedding_table", _TABLE, casts=False,
        own=(Row("vision position embedding", _TABLE[0][0], _TABLE, "own", exchanged=True),),
    ),
))  # fmt: skip
_EMBED_VISION = Block((
    _plain("embedding_projection.weight", lambda s: (s.hidden, s.vision.hidden)),
))  # fmt: skip


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    vision = shape.vision
    text = text_config(shape, tied, ("hidden_act", "num_experts_per_tok")) | {
        "attention_bias": False,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": 30.0,
        "global_head_dim": shape.full_head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "intermediate_size": shape.dense_intermediate,
        "layer_types": [
            _FULL if shape.is_full_attention(layer) else "sliding_attention"
            for layer in range(shape.layers)
        ],
        "model_type": "gemma4_text",
        "num_global_key_value_heads": shape.full_kv_heads,
        "num_kv_shared_layers": 0,
        "rope_parameters": {
            _FULL: {
                "partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "top_k_experts": shape.top_k,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": shape.vocabulary,
    }  # fmt: skip
    return {
        "architectures": [FAMILY.architecture],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "audio_config": None,
        "image_token_id": shape.vocabulary - 8,
        TIE: tied,
        "text_config": text,
        "vision_config": {
            "attention_bias": False,
            "default_output_length": 280,
            "head_dim": vision.hidden // vision.heads,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "model_type": "gemma4_vision",
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.depth,
            "num_key_value_heads": vision.heads,
            "patch_size": vision.patch,
            "pooling_kernel_size": 3,
            "position_embedding_size": vision.positions,
            "rms_norm_eps": 1e-6,
            "standardize": False,
            "use_clipped_linears": False,
        },
    }


def _of_layer(text: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """A full attention layer's own heads, as published, or as transformers 5 saves them."""
    kinds, saved = text.get("layer_types"), text.get("per_layer_config")
    if not isinstance(kinds, list) or layer >= len(kinds) or kinds[layer] != _FULL:
        return text
    own: dict[str, Any] = {}
    for key, published in (
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ):
        if text.get(published) is not None:
            own[key] = text[published]
    if isinstance(saved, dict) and isinstance(saved.get(str(layer)), dict):
        own |= saved[str(layer)]
    return {**text, **own}


FAMILY = Family(
    name="gemma4",
    architecture="Gemma4ForConditionalGeneration",
    examples=("google/gemma-4-26B-A4B-it",),
    namings=(
        ExpertNaming(Part.DECODER, f"{_LANGUAGE}.layers.{{layer}}.experts", Storage.FUSED),
    ),
    sections=(
        *language_model(
            _LANGUAGE,
            (
                Module(
                    "self_attn", _SLIDING_ATTENTION, lambda s, layer: not s.is_full_attention(layer)
                ),
                Module("self_attn", _FULL_ATTENTION, ModelShape.is_full_attention),
                Module("", _NORMS),
                Module("", _LAYER_SCALE),
                Module("mlp", mlp("dense MLP", lambda s: s.dense_intermediate)),
                Module("router", _ROUTER),
                Module("", EXPERTS),
            ),
        ),
        Section(VISION, f"{_VISION}.patch_embedder", (Module("", _PATCHES),)),
        Section(VISION, _TOWER, _VISION_LAYER, numbers=lambda s: range(s.vision.depth)),
        Section(VISION, "model.embed_vision", (Module("", _EMBED_VISION),)),
        head(),
    ),
    device_names={
        Part.DECODER: (
            ("language_model.model.", f"{_LANGUAGE}."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.", f"{_VISION}."),
            ("embed_vision.", "model.embed_vision."),
        )
    },
    own_names={Part.DECODER: ((f"{_VISION}.layers.", f"{_VISION}.encoder.layers."),)},
    recipes=(Recipe("gemma4", "Gemma-4 with experts, fused, full attention in the last layer"),),
    write_config=_config,
    tiny=ModelShape(
        hidden=128, layers=2, experts=8, intermediate=48, top_k=2, heads=8, kv_heads=4, head_dim=64,
        vocabulary=512, dense_intermediate=96, attention_layers=(1,), full_head_dim=128,
        full_kv_heads=2,
        vision=VisionShape(depth=2, hidden=64, intermediate=96, heads=4, positions=_POSITIONS),
    ),
    published={
        "gemma-4-26b-a4b": ModelShape(
            hidden=2816, layers=30, experts=128, intermediate=704, top_k=8, heads=16, kv_heads=8,
            head_dim=256, vocabulary=262144, dense_intermediate=2112,
            attention_layers=(5, 11, 17, 23, 29), full_head_dim=512, full_kv_heads=2,
            vision=VisionShape(
                depth=27, hidden=1152, intermediate=4304, heads=16, positions=_POSITIONS
            ),
        ),
    },
    upstream_modules=("vllm.model_executor.models.gemma4_mm",),
    experts_module="experts",
    embedding=f"{_LANGUAGE}.embed_tokens.weight",
    tied_by_default=True,
    of_layer=_of_layer,
    misread=(),
)  # fmt: skip
