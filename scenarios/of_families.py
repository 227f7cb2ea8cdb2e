"""Every further family, its experts cut over the devices and whole on each: two rows by rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.families.family import Part
from harness.load.target import Parallelism

from .scenario import Scenario

#: By recipe, what is special about how the family's experts are stored.
_FAMILIES = {
    "mixtral": "Experts called w1, w3 and w2 are loaded",
    "granite-moe": "Fused experts that the model itself cuts into single ones are loaded",
    "llama4": "Fused and transposed experts of every other layer are loaded",
    "olmoe": "Experts beside norms over all heads of q and k at once are loaded",
    "glm4-moe": "Experts behind a dense layer, beside shared ones and a router's bias, are loaded",
    "ernie4.5-moe": "Experts behind a router in float32, whose bias lies elsewhere, are loaded",
    "qwen3-next-mtp": "Experts beside linear attention, and those of a draft model, are loaded",
    "minimax-m2": "Experts called w1, w3 and w2 beside a bias that they share are loaded",
    "lfm2-moe": "Experts called w1, w3 and w2 beside short convolutions are loaded",
    "deepseek-v3": "Experts beside latent attention, which is stored as low ranks, are loaded",
}
#: Has vLLM hold latent attention as it is stored; tpu-inference refuses what it does otherwise.
_MLA_DISABLED = {"VLLM_MLA_DISABLE": "1"}
#: By recipe, what else its scenarios are made with.
_OPTIONS: dict[str, dict[str, Any]] = {
    "lfm2-moe": {"tied": True},  # as published
    "deepseek-v3": {"stream_options": _MLA_DISABLED},
}


def _rows() -> Iterator[Scenario]:
    for recipe, what in _FAMILIES.items():
        options = _OPTIONS.get(recipe, {})
        yield Scenario(recipe, f"{what}, each cut over the devices.", recipe, **options)
        yield Scenario(
            f"{recipe}-experts-whole", f"{what}, each whole on one device (GMM_EP).", recipe,
            parallelism=Parallelism.EXPERT, **options,
        )  # fmt: skip


OF_FAMILIES: tuple[Scenario, ...] = (
    *_rows(),
    Scenario(
        "lfm2-moe-untied", "The head of an LFM2-MoE checkpoint that has one is loaded.", "lfm2-moe"
    ),
    Scenario(
        "deepseek-v3-mtp",
        "A draft model whose layer is numbered after the decoder's is loaded, with an embedding "
        "and a head of its own.",
        "deepseek-v3-mtp",
        stream_options=_MLA_DISABLED,
    ),
    Scenario(
        "deepseek-v3-mtp-alone",
        "A draft model with an embedding of its own is loaded without its decoder.",
        "deepseek-v3-mtp",
        parts=(Part.MTP,),
        stream_options=_MLA_DISABLED,
    ),
    Scenario(
        "deepseek-v3-latent",
        "Latent attention is loaded as vLLM holds it by default.",
        "deepseek-v3",
    ),
)
