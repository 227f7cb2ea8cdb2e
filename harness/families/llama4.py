"""Llama-4, text alone: fused and transposed experts, a shared expert, every n-th layer sparse.

Between them lie layers with a dense MLP. vLLM sorts the rows of each head of q and k, even ones
first, for its rotary embedding (``models/llama4.py``, ``permute_qk_weight_for_rotary``). Its norms
of q and k have no weights. Sizes: ``text_config`` of meta-llama/Llama-4-Scout-17B-16E and
Llama-4-Maverick-17B-128E.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import EXPERTS, LAYER_NORMS, PLAIN_ROUTER, attention, mlp
from harness.families.family import (
    EXPERTS_KEYS,
    ExpertNaming,
    Family,
    Module,
    MoeLayers,
    Part,
    Recipe,
    Storage,
)
from harness.families.misread import Misread
from harness.families.sections import head, language_model, text_config
from harness.families.sizes import TINY, ModelShape

_MOE = "feed_forward"
#: The shared expert is as wide as the others; a dense MLP lies where a sparse one does.
_SHARED = mlp("shared expert", lambda s: s.intermediate)
_DENSE = mlp("dense MLP", lambda s: s.dense_intermediate)


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    unpublished = ("num_experts", "moe_intermediate_size")
    return text_config(shape, tied, unpublished) | {
        "architectures": [FAMILY.architecture],
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "interleave_moe_layer_step": shape.sparse_step,
        "intermediate_size": shape.intermediate,
        "intermediate_size_mlp": shape.dense_intermediate,
        "moe_layers": [layer for layer in range(shape.layers) if shape.has_experts(layer)],
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(shape.layers)],
        "num_local_experts": shape.experts,
        "rope_theta": 500000.0,
        "use_qk_norm": True,
    }


FAMILY = Family(
    name="llama4",
    architecture="Llama4ForCausalLM",
    examples=("meta-llama/Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Maverick-17B-128E"),
    namings=(
        ExpertNaming(
            Part.DECODER, f"model.layers.{{layer}}.{_MOE}.experts", Storage.FUSED_TRANSPOSED
        ),
    ),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=None, rotary=True)),
                Module("", LAYER_NORMS),
                Module(_MOE, _DENSE, lambda s, layer: not s.has_experts(layer)),
                Module(f"{_MOE}.router", PLAIN_ROUTER, ModelShape.has_experts),
                Module(_MOE, EXPERTS, ModelShape.has_experts),
                Module(f"{_MOE}.shared_expert", _SHARED, ModelShape.has_experts),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("llama4", "Llama-4, text alone, fused and transposed, every other layer"),),
    write_config=_config,
    tiny=replace(TINY, top_k=1, sparse_step=2, dense_intermediate=80),
    published={
        "llama-4-scout": ModelShape(
            hidden=5120, layers=48, experts=16, intermediate=8192, top_k=1, heads=40, kv_heads=8,
            head_dim=128, vocabulary=202048, dense_intermediate=16384,
        ),
        "llama-4-maverick": ModelShape(
            hidden=5120, layers=48, experts=128, intermediate=8192, top_k=1, heads=40, kv_heads=8,
            head_dim=128, vocabulary=202048, dense_intermediate=16384, sparse_step=2,
        ),
    },
    upstream_modules=("vllm.model_executor.models.llama4",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
    moe_layers=MoeLayers(sparse="moe_layers", step="interleave_moe_layer_step"),
    experts_module=f"{_MOE}.experts",
    misread=(
        Misread(
            Storage.FUSED, Storage.FUSED_TRANSPOSED, ">=0.20",
            "vllm/model_executor/models/llama4.py, load_moe_expert_weights: the halves of "
            "gate_up_proj are those of its last axis",
        ),
    ),
)  # fmt: skip
