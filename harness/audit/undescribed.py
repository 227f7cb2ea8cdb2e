"""The architectures that upstream has and no family describes: one row each, for the audit.

The others stand in ``harness/families``, and nowhere else: whoever adds a family deletes its row
here, which a test holds. :func:`harness.audit.run.sources` makes one table of both.

Names and layouts are those of the published checkpoints; the model classes' ``load_weights`` in
vLLM take no others. Only routers and routed experts are fed: how experts are called does not depend
on the rest.

Hidden size 64, experts 40 wide, 4 of them, 2 layers, unless a model asks for more. 2 · 40 is not
64: vLLM 0.26 guesses a fused tensor's orientation from its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from harness.audit.feeding import ModelSource

D, F, E, LAYERS, TOP_K, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 40, 4, 2, 2, 4, 2, 16, 128

Shape = tuple[int, ...]

GATE, UP, DOWN = (F, D), (F, D), (D, F)


@dataclass(frozen=True)
class Undescribed:
    """An architecture that no family describes: how to build a tiny one, and what to feed it.

    Attributes:
        architecture: as ``config.json`` and vLLM's registry call it.
        model_type: as transformers calls it.
        config: what is not common to all.
        tensors: name and shape; ``{layer}`` and ``{expert}`` run.
        first_layer: the first layer with experts.
        layers: how many layers there are.
        environment: what the stack needs to build it here.
    """

    architecture: str
    model_type: str
    tensors: dict[str, Shape]
    config: dict[str, Any] = field(default_factory=dict)
    first_layer: int = 0
    layers: int = LAYERS
    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name the row goes by: the architecture, with a word where it has several rows."""
        return " ".join(filter(None, [self.architecture, self.name]))

    def source(self) -> ModelSource:
        """What the recorder builds and feeds."""
        return ModelSource(
            config=self._config(), tensors=tuple(self._expanded()), environment=self.environment
        )

    def _config(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "bfloat16",
            "hidden_size": D,
            "intermediate_size": 2 * F,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
        } | self.config

    def _expanded(self) -> list[tuple[str, Shape]]:
        out = []
        for name, shape in self.tensors.items():
            experts = range(E) if "{expert}" in name else range(1)
            for layer, expert in product(range(self.first_layer, self.layers), experts):
                out.append((name.format(layer=layer, expert=expert), shape))
        return list(dict.fromkeys(out))


def per_expert(
    prefix: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, Shape]:
    """Three matrices an expert: gate, up, down."""
    return {
        f"{prefix}.{{expert}}.{name}.weight": shape
        for name, shape in zip(names, (GATE, UP, DOWN), strict=True)
    }


_MLP = "model.layers.{layer}.mlp"
_SPARSE = "model.layers.{layer}.block_sparse_moe"
_ROUTED = {"num_experts": E, "num_experts_per_tok": TOP_K, "moe_intermediate_size": F}
_LOCAL = {"num_local_experts": E, "num_experts_per_tok": TOP_K, "intermediate_size": F}
_DEEPSEEK = {
    "n_routed_experts": E,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": F,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": HEADS,
}
#: tpu-inference takes MLA only with NEW_MODEL_DESIGN and data-parallel attention
#: (``platforms/tpu_platform.py``); experts are called alike without it.
_NO_MLA = {"VLLM_MLA_DISABLE": "1"}
_EXPERTS = per_expert(f"{_MLP}.experts") | {f"{_MLP}.gate.weight": (E, D)}
_BIASED = _EXPERTS | {f"{_MLP}.gate.e_score_correction_bias": (E,)}
_W123 = per_expert(f"{_SPARSE}.experts", ("w1", "w3", "w2")) | {f"{_SPARSE}.gate.weight": (E, D)}
_GRANITE = {
    f"{_SPARSE}.input_linear.weight": (E, 2 * F, D),
    f"{_SPARSE}.output_linear.weight": (E, D, F),
    f"{_SPARSE}.router.layer.weight": (E, D),
}

UNDESCRIBED: tuple[Undescribed, ...] = (
    Undescribed(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _EXPERTS,
        _ROUTED | {"shared_expert_intermediate_size": F},
    ),
    Undescribed(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        _EXPERTS,
        _DEEPSEEK | _LATENT,
        first_layer=1,
        environment=_NO_MLA,
    ),
    Undescribed(
        "Glm4MoeLiteForCausalLM",
        "glm4_moe_lite",
        _BIASED,
        _DEEPSEEK | _LATENT,
        first_layer=1,
        environment=_NO_MLA,
    ),
    Undescribed("PhiMoEForCausalLM", "phimoe", _W123, _LOCAL),
    Undescribed(
        "DbrxForCausalLM",
        "dbrx",
        {
            "transformer.blocks.{layer}.ffn.experts.mlp.w1": (E * F, D),
            "transformer.blocks.{layer}.ffn.experts.mlp.v1": (E * F, D),
            "transformer.blocks.{layer}.ffn.experts.mlp.w2": (E * F, D),
            "transformer.blocks.{layer}.ffn.router.layer.weight": (E, D),
        },
        {
            "d_model": D,
            "n_heads": HEADS,
            "n_layers": LAYERS,
            "max_seq_len": 1024,
            "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": F, "moe_num_experts": E, "moe_top_k": TOP_K},
        },
    ),
    Undescribed(
        "Dots1ForCausalLM",
        "dots1",
        _BIASED,
        _DEEPSEEK | {"topk_method": "noaux_tc", "scoring_func": "noaux_tc"},
        first_layer=1,
    ),
    Undescribed(
        "JambaForCausalLM",
        "jamba",
        per_expert("model.layers.{layer}.feed_forward.experts")
        | {"model.layers.{layer}.feed_forward.router.weight": (E, D)},
        {
            "num_experts": E,
            "num_experts_per_tok": TOP_K,
            "intermediate_size": F,
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "attn_layer_period": 1,
            "attn_layer_offset": 0,
            "use_mamba_kernels": False,
        },
    ),
    Undescribed(
        "FlexOlmoForCausalLM",
        "flex_olmo",
        _EXPERTS,
        _ROUTED | {"intermediate_size": F},
    ),
    Undescribed(
        "HunYuanMoEV1ForCausalLM",
        "hunyuan_v1_moe",
        per_expert(f"{_MLP}.experts") | {f"{_MLP}.gate.wg.weight": (E, D)},
        {
            "num_experts": E,
            "moe_topk": TOP_K,
            "moe_intermediate_size": F,
            "intermediate_size": F,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
        },
    ),
    Undescribed(
        "AfmoeForCausalLM",
        "afmoe",
        per_expert(f"{_MLP}.experts") | {f"{_MLP}.router.gate.weight": (E, D)},
        _ROUTED
        | {
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "sliding_window": 128,
            "layer_types": ["full_attention"] * LAYERS,
        },
        first_layer=1,
    ),
    Undescribed(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        _GRANITE,
        _LOCAL | {"shared_intermediate_size": F},
    ),
    Undescribed(
        "HYV3ForCausalLM",
        "hy_v3",
        per_expert(f"{_MLP}.experts") | {f"{_MLP}.router.gate.weight": (E, D)},
        _ROUTED
        | {
            "expert_hidden_dim": F,
            "num_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse"],
            "first_k_dense_replace": 1,
            "route_norm": True,
            "qk_norm": True,
        },
        first_layer=1,
    ),
    Undescribed(
        "HYV4ForCausalLM",
        "hy_v4",
        {
            f"{_MLP}.experts.gate_up_proj": (E, 2 * F, D),
            f"{_MLP}.experts.down_proj": (E, D, F),
            f"{_MLP}.router.gate.weight": (E, D),
        },
        _DEEPSEEK
        | _LATENT
        | {
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["full_attention"] * LAYERS,
            "index_topk": 64,
            "index_head_dim": 32,
            "index_n_heads": 2,
            "enable_ihc": False,
        },
        first_layer=1,
        environment=_NO_MLA,
    ),
)
