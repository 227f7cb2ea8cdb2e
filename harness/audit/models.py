"""The models whose calls are recorded: one row each.

Names and layouts are those of the published checkpoints; the model classes' ``load_weights`` in
vLLM take no others. Only routers and routed experts are fed: how experts are called does not
depend on the rest.
"""

from __future__ import annotations

from harness.audit.model import (
    HEADS,
    KV_HEADS,
    LAYERS,
    TOP_K,
    D,
    E,
    F,
    Model,
    per_expert,
)

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

MODELS: tuple[Model, ...] = (
    Model("Qwen3MoeForCausalLM", "qwen3_moe", _EXPERTS, _ROUTED | {"norm_topk_prob": True}),
    Model(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _EXPERTS,
        _ROUTED | {"shared_expert_intermediate_size": F},
    ),
    Model(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        _EXPERTS,
        _ROUTED
        | {
            "norm_topk_prob": True,
            "shared_expert_intermediate_size": F,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
        },
    ),
    Model("MixtralForCausalLM", "mixtral", _W123, _LOCAL),
    Model(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        _EXPERTS,
        _DEEPSEEK | _LATENT,
        first_layer=1,
        environment=_NO_MLA,
    ),
    Model(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        _BIASED,
        _DEEPSEEK | _LATENT | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        first_layer=1,
        environment=_NO_MLA,
    ),
    Model("Glm4MoeForCausalLM", "glm4_moe", _BIASED, _DEEPSEEK, first_layer=1),
    Model(
        "Glm4MoeLiteForCausalLM",
        "glm4_moe_lite",
        _BIASED,
        _DEEPSEEK | _LATENT,
        first_layer=1,
        environment=_NO_MLA,
    ),
    Model(
        "GptOssForCausalLM",
        "gpt_oss",
        {
            f"{_MLP}.experts.gate_up_proj": (E, D, 2 * F),
            f"{_MLP}.experts.gate_up_proj_bias": (E, 2 * F),
            f"{_MLP}.experts.down_proj": (E, F, D),
            f"{_MLP}.experts.down_proj_bias": (E, D),
            f"{_MLP}.router.weight": (E, D),
            f"{_MLP}.router.bias": (E,),
        },
        _LOCAL,
        name="bf16",
    ),
    Model(
        "Llama4ForCausalLM",
        "llama4_text",
        {
            "model.layers.{layer}.feed_forward.experts.gate_up_proj": (E, D, 2 * F),
            "model.layers.{layer}.feed_forward.experts.down_proj": (E, F, D),
            "model.layers.{layer}.feed_forward.router.weight": (E, D),
        },
        {
            "num_local_experts": E,
            "num_experts_per_tok": 1,
            "intermediate_size": F,
            "intermediate_size_mlp": 2 * F,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 512,
        },
    ),
    Model(
        "OlmoeForCausalLM",
        "olmoe",
        _EXPERTS,
        _ROUTED | {"intermediate_size": F},
    ),
    Model("PhiMoEForCausalLM", "phimoe", _W123, _LOCAL),
    Model("GraniteMoeForCausalLM", "granitemoe", _GRANITE, _LOCAL),
    Model(
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
    Model(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        _EXPERTS,
        {
            "moe_num_experts": E,
            "moe_k": TOP_K,
            "moe_intermediate_size": F,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 0,
            "moe_layer_end_index": LAYERS - 1,
            "moe_layer_interval": 1,
        },
    ),
    Model(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        _W123 | {f"{_SPARSE}.e_score_correction_bias": (E,)},
        {
            "num_local_experts": E,
            "num_experts_per_tok": TOP_K,
            "intermediate_size": F,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "rotary_dim": 8,
        },
    ),
    Model(
        "Dots1ForCausalLM",
        "dots1",
        _BIASED,
        _DEEPSEEK | {"topk_method": "noaux_tc", "scoring_func": "noaux_tc"},
        first_layer=1,
    ),
    Model(
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
    Model(
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        per_expert("model.layers.{layer}.feed_forward.experts", ("w1", "w3", "w2"))
        | {"model.layers.{layer}.feed_forward.gate.weight": (E, D)},
        _ROUTED
        | {"num_dense_layers": 0, "layer_types": ["full_attention"] * LAYERS, "norm_eps": 1e-6},
    ),
    Model(
        "FlexOlmoForCausalLM",
        "flex_olmo",
        _EXPERTS,
        _ROUTED | {"intermediate_size": F},
    ),
    Model(
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
    Model(
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
    Model(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        _GRANITE,
        _LOCAL | {"shared_intermediate_size": F},
    ),
    Model(
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
    Model(
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
