"""Granite-MoE: fused experts that the checkpoint calls ``input_linear`` and ``output_linear``.

vLLM 0.26 cuts them into single ones by itself, 0.32 calls them ``gate_up_proj`` and ``down_proj``
(``models/granitemoe.py``). Both call the router ``gate``, and let heads share the hidden size
whatever ``head_dim`` says. Sizes: the ``config.json`` files of the base models
ibm-granite/granite-3.0-1b-a400m-base and granite-3.0-3b-a800m-base, whose heads are the embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.families.blocks import EXPERTS, LAYER_NORMS, Block, Row, attention
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

_MOE = "block_sparse_moe"
_ROUTER = Block((
    Row(
        "router", "gate.weight", (("router.layer.weight", lambda s: (s.experts, s.hidden)),),
        casts=False,
    ),
))  # fmt: skip


def _config(shape: ModelShape, mtp_layers: int, tied: bool) -> dict[str, Any]:
    unpublished = ("num_experts", "moe_intermediate_size", "head_dim")
    return text_config(shape, tied, unpublished) | {
        "architectures": [FAMILY.architecture],
        "model_type": "granitemoe",
        "attention_bias": False,
        "attention_multiplier": shape.head_dim**-0.5,
        "embedding_multiplier": 12.0,
        "intermediate_size": shape.intermediate,
        "logits_scaling": 6.0,
        "num_local_experts": shape.experts,
        "residual_multiplier": 0.22,
        "rope_theta": 10000.0,
    }


FAMILY = Family(
    name="granite-moe",
    architecture="GraniteMoeForCausalLM",
    examples=("ibm-granite/granite-3.0-1b-a400m-base", "ibm-granite/granite-3.0-3b-a800m-base"),
    namings=(
        ExpertNaming(
            Part.DECODER, f"model.layers.{{layer}}.{_MOE}", Storage.FUSED,
            ("input_linear.weight", "output_linear.weight"),
        ),
    ),
    sections=(
        *language_model(
            "model",
            (
                Module("self_attn", attention(norms=None)),
                Module("", LAYER_NORMS),
                Module(_MOE, _ROUTER),
                Module(_MOE, EXPERTS),
            ),
        ),
        head(),
    ),
    device_names={Part.DECODER: ()},
    recipes=(Recipe("granite-moe", "Granite-MoE, fused, as input_linear and output_linear"),),
    write_config=_config,
    tiny=replace(TINY, head_dim=16),
    published={
        "granite-3.0-1b-a400m": ModelShape(
            hidden=1024, layers=24, experts=32, intermediate=512, top_k=8, heads=16, kv_heads=8,
            head_dim=64, vocabulary=49155,
        ),
        "granite-3.0-3b-a800m": ModelShape(
            hidden=1536, layers=32, experts=40, intermediate=512, top_k=8, heads=24, kv_heads=8,
            head_dim=64, vocabulary=49155,
        ),
    },
    upstream_modules=("vllm.model_executor.models.granitemoe",),
    text_key="",
    sizes=(EXPERTS_KEYS, ("hidden_size",), ("intermediate_size",)),
    experts_module=f"{_MOE}.experts",
)  # fmt: skip
