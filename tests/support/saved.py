"""Tiny models that transformers makes and saves: checkpoints of a writer that is not ours.

A row names transformers' classes of a family and the sizes of a tiny model, in the words of its
configuration; values are random. Run as a program it writes the rows it is asked for: transformers
and torch stay out of the process that tests the oracle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Saved:
    """A family as transformers has it.

    Attributes:
        model: the class of the model.
        config: the class of its configuration.
        sizes: what the configuration is made with.
        tied: the head is the embedding.
        dtype: what the tensors are saved as.
    """

    model: str
    config: str
    sizes: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    dtype: str = "bfloat16"


_TEXT: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "num_experts_per_tok": 2,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 8,
    "num_position_embeddings": 16, "out_hidden_size": 128,
}  # fmt: skip


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    return more | {
        "rope_type": "default", "rope_theta": 5000000.0, "mrope_section": list(section),
        "mrope_interleaved": True,
    }  # fmt: skip


_QWEN3: dict[str, Any] = {
    "moe_intermediate_size": 48, "intermediate_size": 64, "num_experts": 8, "norm_topk_prob": True,
}  # fmt: skip
_VL: dict[str, Any] = {
    "text_config": _TEXT | _QWEN3 | {"rope_parameters": _rope(6, 5, 5)},
    "vision_config": _VISION | {"deepstack_visual_indexes": [0, 1]},
}
_QWEN3_5: dict[str, Any] = {
    "text_config": _TEXT | {
        "moe_intermediate_size": 48, "num_experts": 8, "shared_expert_intermediate_size": 80,
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 8,
        "linear_num_value_heads": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.25),
    },
    "vision_config": _VISION,
}  # fmt: skip

_SHARED_HIDDEN = {key: size for key, size in _TEXT.items() if key != "head_dim"}
#: Three layers, of which the first is dense.
_DENSE_FIRST: dict[str, Any] = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 48,
    "intermediate_size": 96,
}
_QWEN3_NEXT: dict[str, Any] = {
    key: value for key, value in _QWEN3_5["text_config"].items() if key != "rope_parameters"
}

_VL_MODEL = ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig")
_QWEN3_MODEL = ("Qwen3MoeForCausalLM", "Qwen3MoeConfig")

#: By the name of a family, or of one and what is special. transformers announces a draft model for
#: GLM-4 and DeepSeek-V3 unless it is told otherwise, and saves none.
SAVED = {
    "qwen3-vl-moe": Saved(*_VL_MODEL, _VL),
    "qwen3-vl-moe, tied": Saved(*_VL_MODEL, _VL, tied=True),
    "qwen3-vl-moe, 2F = D": Saved(
        *_VL_MODEL, _VL | {"text_config": _VL["text_config"] | {"moe_intermediate_size": 64}}
    ),
    "qwen3-vl-moe, F = D": Saved(
        *_VL_MODEL, _VL | {"text_config": _VL["text_config"] | {"moe_intermediate_size": 128}}
    ),
    "qwen3.5-moe": Saved(
        "Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", _QWEN3_5
    ),
    "qwen3-moe": Saved(*_QWEN3_MODEL, _TEXT | _QWEN3),
    "qwen3-moe, f32": Saved(*_QWEN3_MODEL, _TEXT | _QWEN3, dtype="float32"),
    "qwen3-moe, f16": Saved(*_QWEN3_MODEL, _TEXT | _QWEN3, dtype="float16"),
    "qwen3-moe, dense layers": Saved(
        *_QWEN3_MODEL,
        _TEXT | _QWEN3 | {"num_hidden_layers": 4, "mlp_only_layers": [1],
                          "decoder_sparse_step": 2},
    ),
    "mixtral": Saved(
        "MixtralForCausalLM", "MixtralConfig",
        _TEXT | {"intermediate_size": 48, "num_local_experts": 8},
    ),
    "granite-moe": Saved(
        "GraniteMoeForCausalLM", "GraniteMoeConfig",
        _TEXT | {"intermediate_size": 48, "num_local_experts": 8, "head_dim": 16},
    ),
    "llama4": Saved(
        "Llama4ForCausalLM", "Llama4TextConfig",
        _TEXT | {"intermediate_size": 48, "intermediate_size_mlp": 80, "num_local_experts": 8,
                 "interleave_moe_layer_step": 1, "num_experts_per_tok": 1},
    ),
    "gpt-oss": Saved(
        "GptOssForCausalLM", "GptOssConfig",
        _TEXT | {"intermediate_size": 48, "num_local_experts": 8},
    ),
    "olmoe": Saved(
        "OlmoeForCausalLM", "OlmoeConfig",
        _SHARED_HIDDEN | {"intermediate_size": 48, "num_experts": 8},
    ),
    "glm4-moe": Saved(
        "Glm4MoeForCausalLM", "Glm4MoeConfig",
        _TEXT | _DENSE_FIRST | {
            "n_routed_experts": 8, "first_k_dense_replace": 1, "n_shared_experts": 1,
            "attention_bias": True, "use_qk_norm": True,
        },
    ),
    "ernie4.5-moe": Saved(
        "Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeConfig",
        _TEXT | _DENSE_FIRST | {
            "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "ernie4.5-moe, tied": Saved(
        "Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeConfig",
        _TEXT | _DENSE_FIRST | {"moe_num_experts": 8, "moe_layer_start_index": 1}, tied=True,
    ),
    "lfm2-moe": Saved(
        "Lfm2MoeForCausalLM", "Lfm2MoeConfig",
        _SHARED_HIDDEN | _DENSE_FIRST | {
            "num_experts": 8, "num_dense_layers": 1,
            "layer_types": ["conv", "conv", "full_attention"],
        },
        tied=True,  # as published, and what vLLM takes it for
    ),
    "qwen3-next": Saved("Qwen3NextForCausalLM", "Qwen3NextConfig", _QWEN3_NEXT),
    "deepseek-v3": Saved(
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        _SHARED_HIDDEN | _DENSE_FIRST | {
            "num_key_value_heads": 8, "n_routed_experts": 8, "first_k_dense_replace": 1,
            "n_group": 1, "topk_group": 1, "q_lora_rank": 64, "kv_lora_rank": 32,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        },
    ),
    "minimax-m2": Saved(
        "MiniMaxM2ForCausalLM", "MiniMaxM2Config",
        _TEXT | {"intermediate_size": 48, "num_local_experts": 8},
    ),
}  # fmt: skip


def save_all(names: Iterable[str], out: Path) -> dict[str, Path]:
    """Have transformers save these rows below ``out``, in a process of its own.

    Returns:
        By name, where each is.
    """
    places = {name: out / f"saved-{number}" for number, name in enumerate(names)}
    told = json.dumps({name: str(path) for name, path in places.items()})
    command = [sys.executable, "-m", "tests.support.saved", told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return places


def tensors_of_class(config: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes that transformers' own class of a ``config.json`` saves; none is made.

    Args:
        config: the directory that holds it.
    """
    command = [sys.executable, "-m", "tests.support.saved", "--class", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return {name: tuple(shape) for name, shape in json.loads(done.stdout).items()}


def _save(row: Saved, out: str) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, row.config)(**row.sizes, tie_word_embeddings=row.tied)
    model = getattr(transformers, row.model)(config).to(getattr(torch, row.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(out)


def _shapes(config: str) -> dict[str, list[int]]:
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    read = transformers.AutoConfig.from_pretrained(config)
    with torch.device("meta"):
        model = getattr(transformers, read.architectures[0])(read)
    state = revert_weight_conversion(model, model.state_dict())
    return {name: list(tensor.shape) for name, tensor in state.items()}


if __name__ == "__main__":
    if sys.argv[1] == "--class":
        print(json.dumps(_shapes(sys.argv[2])))
    else:
        for asked, place in json.loads(sys.argv[1]).items():
            _save(SAVED[asked], place)
