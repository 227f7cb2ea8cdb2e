"""Bytes of a tiny checkpoint flipped, and which elements of what these are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from harness.checkpoint.checkpoint import Checkpoint
from harness.families.experts import ExpertKey
from harness.families.family import Part, Projection

D, F = 128, 48
DECODER = "model.language_model.layers.1.mlp.experts"

#: Recipe, the element whose low byte is flipped as (tensor, element in it), and what it is.
FLIPS = {
    "qwen3-vl-moe": (
        f"{DECODER}.gate_up_proj",
        (5 * D + 100) * 2 * F + F + 17,
        ExpertKey(Part.DECODER, 1, 5, Projection.UP),
        (17, 100),
    ),
    "qwen3-moe": (
        "model.layers.1.mlp.experts.3.up_proj.weight",
        11 * D + 90,
        ExpertKey(Part.DECODER, 1, 3, Projection.UP),
        (11, 90),
    ),
    "mixtral": (
        "model.layers.1.block_sparse_moe.experts.6.w2.weight",
        77 * F + 31,
        ExpertKey(Part.DECODER, 1, 6, Projection.DOWN),
        (77, 31),
    ),
    "granite-moe": (
        "model.layers.0.block_sparse_moe.input_linear.weight",
        (4 * 2 * F + 21) * D + 55,
        ExpertKey(Part.DECODER, 0, 4, Projection.GATE),
        (21, 55),
    ),
    "llama4": (
        "model.layers.1.feed_forward.experts.gate_up_proj",
        (2 * D + 64) * 2 * F + F + 9,
        ExpertKey(Part.DECODER, 1, 2, Projection.UP),
        (9, 64),
    ),
    "gpt-oss": (
        "model.layers.1.mlp.experts.gate_up_proj",
        (5 * D + 100) * 2 * F + 2 * 17 + 1,
        ExpertKey(Part.DECODER, 1, 5, Projection.UP),
        (17, 100),
    ),
    "qwen3.5-moe": (
        f"{DECODER}.down_proj",
        (6 * D + 3) * F + 40,
        ExpertKey(Part.DECODER, 1, 6, Projection.DOWN),
        (3, 40),
    ),
    "qwen3.5-mtp": (
        "mtp.layers.0.mlp.experts.7.gate_proj.weight",
        47 * D + 127,
        ExpertKey(Part.MTP, 0, 7, Projection.GATE),
        (47, 127),
    ),
    "qwen3.6-mtp": (
        "mtp.layers.0.mlp.experts.gate_up_proj",
        (2 * 2 * F + F) * D,
        ExpertKey(Part.MTP, 0, 2, Projection.UP),
        (0, 0),
    ),
}


_LAYER, _EXPERT = "model.layers.2", "mlp.experts.5.up_proj.weight"
_PLAIN_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_NORMS = ("input_layernorm.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight")


def _of_layer(*names: str, layer: str = _LAYER) -> tuple[str, ...]:
    return tuple(f"{layer}.{name}" for name in names)


#: By scenario, tensors of every kind that its family has besides the attention of all others. An
#: element of each is flipped.
KINDS: dict[str, tuple[str, ...]] = {
    "olmoe": (
        *_of_layer(_EXPERT, "mlp.gate.weight", *_NORMS, layer="model.layers.1"),
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
    ),
    "glm4-moe": (
        *_of_layer(_EXPERT, "mlp.gate.weight", "mlp.gate.e_score_correction_bias",
                   "mlp.shared_experts.up_proj.weight", "mlp.shared_experts.down_proj.weight",
                   *_NORMS),
        "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
    ),
    "mixtral": (
        *_of_layer("block_sparse_moe.experts.5.w3.weight", "block_sparse_moe.gate.weight",
                   *_PLAIN_NORMS, layer="model.layers.1"),
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
    ),
    "granite-moe": (
        *_of_layer("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight",
                   "block_sparse_moe.router.layer.weight", *_PLAIN_NORMS, layer="model.layers.1"),
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
    ),
    "llama4": (
        *_of_layer("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj",
                   "feed_forward.router.weight", "feed_forward.shared_expert.up_proj.weight",
                   "self_attn.q_proj.weight", "self_attn.k_proj.weight", *_PLAIN_NORMS,
                   layer="model.layers.1"),
        "model.layers.0.feed_forward.down_proj.weight", "model.norm.weight", "lm_head.weight",
    ),
    "gpt-oss": (
        *_of_layer("mlp.experts.gate_up_proj", "mlp.experts.down_proj",
                   "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias",
                   "mlp.router.weight", "mlp.router.bias", "self_attn.sinks",
                   "self_attn.q_proj.weight", "self_attn.k_proj.bias", "self_attn.o_proj.bias",
                   *_PLAIN_NORMS, layer="model.layers.1"),
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
    ),
    "ernie4.5-moe": (
        *_of_layer(_EXPERT, "mlp.gate.weight", "mlp.moe_statics.e_score_correction_bias",
                   "mlp.shared_experts.gate_proj.weight", "post_attention_layernorm.weight"),
        "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight",
    ),
    "qwen3-next-mtp": (
        *_of_layer(_EXPERT, "mlp.gate.weight", "mlp.shared_expert.down_proj.weight",
                   "mlp.shared_expert_gate.weight", "linear_attn.in_proj_qkvz.weight",
                   "linear_attn.in_proj_ba.weight", "linear_attn.A_log",
                   "linear_attn.conv1d.weight", layer="model.layers.0"),
        *_of_layer(_EXPERT, "mlp.gate.weight", *_NORMS, layer="mtp.layers.0"),
        "mtp.fc.weight", "mtp.pre_fc_norm_hidden.weight", "model.norm.weight", "lm_head.weight",
    ),
    "lfm2-moe": (
        *_of_layer("feed_forward.experts.5.w3.weight", "feed_forward.gate.weight",
                   "feed_forward.expert_bias", "operator_norm.weight",
                   "self_attn.k_layernorm.weight", "self_attn.out_proj.weight"),
        *_of_layer("conv.in_proj.weight", "conv.conv.weight", "conv.out_proj.weight",
                   "feed_forward.w1.weight", layer="model.layers.0"),
        "model.embedding_norm.weight",
    ),
    "deepseek-v3": (
        *_of_layer(_EXPERT, "mlp.gate.weight", "mlp.gate.e_score_correction_bias",
                   "mlp.shared_experts.gate_proj.weight", "input_layernorm.weight",
                   "self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight",
                   "self_attn.kv_b_proj.weight", "self_attn.kv_a_layernorm.weight"),
        "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight",
    ),
}  # fmt: skip


def element_to_flip(checkpoint: Path, tensor: str) -> int:
    """From the fourth on the first element, of two bytes, that a flip makes no subnormal of.

    Zero and the least subnormal differ by one bit as they would if subnormals were flushed.
    """
    bits = Checkpoint(checkpoint).entries[tensor].bits().reshape(-1)
    if bits.itemsize != 2:
        return 3
    return next(n for n in range(3, bits.size) if bits[n] & 0x7F80)


def with_one_byte_flipped(checkpoint: Path, copy: Path, tensor: str, element: int) -> Path:
    return with_bytes_flipped(checkpoint, copy, {tensor: element})


def with_bytes_flipped(checkpoint: Path, copy: Path, elements: Mapping[str, int]) -> Path:
    """A copy of which the low bit of one byte a tensor is flipped, at twice the given number."""
    shutil.copytree(checkpoint, copy)
    entries = Checkpoint(copy).entries
    for tensor, element in elements.items():
        entry = entries[tensor]
        with (copy / entry.file.name).open("r+b") as file:
            file.seek(entry.offset + 2 * element)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return copy
