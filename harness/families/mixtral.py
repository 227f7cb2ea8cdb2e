"""Mixtral: one tensor per expert and projection, called w1, w3 and w2, under ``block_sparse_moe``.

Sizes: the ``config.json`` files of mistralai/Mixtral-8x7B-v0.1 and Mixtral-8x22B-v0.1.
"""

from __future__ import annotations

from typing import Any

from harness.families.blocks import EXPERTS, LAYER_NORMS, PLAIN_ROUTER, attention
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

_MOE = "block_sparse_moe"


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    unpublished = ("num_experts", "moe_intermediate_size")
    return text_config(shape, tied, unpublished) | {
        "architectures": [FAMILY.architecture],
        "model_type": "mixtral",
        "intermediate_size": shape.intermediate,
        "num_local_experts": shape.experts,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    }


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    examples=("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x22B-Instruct-v0.1"),
    namings=(
        ExpertNaming(
            Part.DECODER, f"model.layers.{{layer}}.{_MOE}.experts", Storage.PER_EXPERT, W1_W3_W2
        ),
    ),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=None)),
                Module("", LAYER_NORMS),
                Module(f"{_MOE}.gate", PLAIN_ROUTER),
                Module(_MOE, EXPERTS),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("mixtral", "Mixtral, per expert, as w1, w3 and w2"),),
    write_config=_config,
    tiny=TINY,
    published={
        "mixtral-8x7b": ModelShape(
            hidden=4096, layers=32, experts=8, intermediate=14336, top_k=2, heads=32, kv_heads=8,
            head_dim=128, vocabulary=32000,
        ),
        "mixtral-8x22b": ModelShape(
            hidden=6144, layers=56, experts=8, intermediate=16384, top_k=2, heads=48, kv_heads=8,
            head_dim=128, vocabulary=32768,
        ),
    },
    upstream_modules=("vllm.model_executor.models.mixtral",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
    experts_module=f"{_MOE}.experts",
)  # fmt: skip
