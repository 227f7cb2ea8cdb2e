"""Every tensor of a checkpoint, by published name and shape, in published order.

Sources: the index files and safetensors headers of Qwen3-VL-30B-A3B, Qwen3.5-35B-A3B and
Qwen3.6-35B-A3B; the names vLLM's ``qwen3_vl.py``, ``qwen3_5.py`` and ``qwen3_5_mtp.py`` read.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from harness.families.family import ExpertNaming, Part, Projection, Storage
from harness.synthetic.recipes import Recipe
from harness.synthetic.shapes import LinearAttentionShape, ModelShape, VisionShape


class TensorSpec(NamedTuple):
    """One tensor to write; ``experts`` is E for a fused one, ``transposed`` how it lies."""

    name: str
    shape: tuple[int, ...]
    experts: int | None = None
    transposed: bool = False
    dtype: str = "BF16"


class Order(StrEnum):
    """The order tensors are written in: as published, or with the vision tower first."""

    PUBLISHED = "published"
    VISION_FIRST = "vision-first"


def checkpoint_tensors(
    recipe: Recipe, shape: ModelShape, order: Order = Order.PUBLISHED
) -> Iterator[TensorSpec]:
    """Yield every tensor of ``recipe`` at ``shape``."""
    if order is Order.VISION_FIRST:
        yield from _vision("model.visual", shape.vision, shape.hidden)
    language = "model.language_model"
    yield TensorSpec(f"{language}.embed_tokens.weight", (shape.vocabulary, shape.hidden))
    decoder = recipe.family.namings[0]
    for layer in range(shape.layers):
        prefix = f"{language}.layers.{layer}"
        if shape.linear is None or shape.is_full_attention(layer):
            yield from _attention(f"{prefix}.self_attn", shape)
        else:
            yield from _linear_attention(f"{prefix}.linear_attn", shape.hidden, shape.linear)
        yield from _layer_rest(prefix, layer, decoder, shape)
    yield TensorSpec(f"{language}.norm.weight", (shape.hidden,))
    if order is Order.PUBLISHED:
        yield from _vision("model.visual", shape.vision, shape.hidden)
    yield TensorSpec("lm_head.weight", (shape.vocabulary, shape.hidden))
    if recipe.mtp is not None:
        yield from _mtp(recipe, recipe.mtp, shape)


def _mtp(recipe: Recipe, storage: Storage, shape: ModelShape) -> Iterator[TensorSpec]:
    naming = next(n for n in recipe.family.namings if n.part is Part.MTP and n.storage is storage)
    yield TensorSpec("mtp.fc.weight", (shape.hidden, 2 * shape.hidden))
    yield from _attention("mtp.layers.0.self_attn", shape)
    yield from _layer_rest("mtp.layers.0", 0, naming, shape)
    for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        yield TensorSpec(f"mtp.{norm}.weight", (shape.hidden,))


def _attention(prefix: str, shape: ModelShape) -> Iterator[TensorSpec]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    gated = 2 if shape.linear is not None else 1  # Qwen3.5's q_proj carries the output gate too
    yield TensorSpec(f"{prefix}.q_proj.weight", (gated * queries, shape.hidden))
    yield TensorSpec(f"{prefix}.k_proj.weight", (keys, shape.hidden))
    yield TensorSpec(f"{prefix}.v_proj.weight", (keys, shape.hidden))
    yield TensorSpec(f"{prefix}.o_proj.weight", (shape.hidden, queries))
    yield TensorSpec(f"{prefix}.q_norm.weight", (shape.head_dim,))
    yield TensorSpec(f"{prefix}.k_norm.weight", (shape.head_dim,))


def _linear_attention(
    prefix: str, hidden: int, linear: LinearAttentionShape
) -> Iterator[TensorSpec]:
    mixed = 2 * linear.keys + linear.values
    yield TensorSpec(f"{prefix}.A_log", (linear.value_heads,))
    yield TensorSpec(f"{prefix}.conv1d.weight", (mixed, 1, linear.conv_kernel))
    yield TensorSpec(f"{prefix}.dt_bias", (linear.value_heads,))
    yield TensorSpec(f"{prefix}.in_proj_a.weight", (linear.value_heads, hidden))
    yield TensorSpec(f"{prefix}.in_proj_b.weight", (linear.value_heads, hidden))
    yield TensorSpec(f"{prefix}.in_proj_qkv.weight", (mixed, hidden))
    yield TensorSpec(f"{prefix}.in_proj_z.weight", (linear.values, hidden))
    yield TensorSpec(f"{prefix}.norm.weight", (linear.value_dim,))
    yield TensorSpec(f"{prefix}.out_proj.weight", (hidden, linear.values))


def _layer_rest(
    prefix: str, layer: int, naming: ExpertNaming, shape: ModelShape
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.input_layernorm.weight", (shape.hidden,))
    yield TensorSpec(f"{prefix}.post_attention_layernorm.weight", (shape.hidden,))
    yield TensorSpec(f"{prefix}.mlp.gate.weight", (shape.experts, shape.hidden))
    yield from _experts(layer, naming, shape)
    if width := shape.shared_intermediate:
        shared = f"{prefix}.mlp.shared_expert"
        yield TensorSpec(f"{shared}.gate_proj.weight", (width, shape.hidden))
        yield TensorSpec(f"{shared}.up_proj.weight", (width, shape.hidden))
        yield TensorSpec(f"{shared}.down_proj.weight", (shape.hidden, width))
        yield TensorSpec(f"{prefix}.mlp.shared_expert_gate.weight", (1, shape.hidden))


def _experts(layer: int, naming: ExpertNaming, shape: ModelShape) -> Iterator[TensorSpec]:
    count, hidden, width = shape.experts, shape.hidden, shape.intermediate
    if naming.storage is Storage.PER_EXPERT:
        for expert in range(count):
            for projection in Projection:
                down = projection is Projection.DOWN
                yield TensorSpec(
                    naming.expert_name(layer, expert, projection),
                    (hidden, width) if down else (width, hidden),
                )
        return
    gate_up, down_proj = (count, 2 * width, hidden), (count, hidden, width)
    if naming.storage is Storage.FUSED_TRANSPOSED:
        gate_up, down_proj = (count, hidden, 2 * width), (count, width, hidden)
    transposed = naming.storage is Storage.FUSED_TRANSPOSED
    yield TensorSpec(naming.fused_name(layer, "gate_up_proj"), gate_up, count, transposed)
    yield TensorSpec(naming.fused_name(layer, "down_proj"), down_proj, count, transposed)


def _vision(prefix: str, vision: VisionShape, out_hidden: int) -> Iterator[TensorSpec]:
    hidden, patch = vision.hidden, vision.patch
    yield from _with_bias(
        f"{prefix}.patch_embed.proj",
        (hidden, vision.channels, vision.temporal_patch, patch, patch),
    )
    yield TensorSpec(f"{prefix}.pos_embed.weight", (vision.positions, hidden))
    for block in range(vision.depth):
        at = f"{prefix}.blocks.{block}"
        yield from _with_bias(f"{at}.norm1", (hidden,))
        yield from _with_bias(f"{at}.norm2", (hidden,))
        yield from _with_bias(f"{at}.attn.qkv", (3 * hidden, hidden))
        yield from _with_bias(f"{at}.attn.proj", (hidden, hidden))
        yield from _with_bias(f"{at}.mlp.linear_fc1", (vision.intermediate, hidden))
        yield from _with_bias(f"{at}.mlp.linear_fc2", (hidden, vision.intermediate))
    merged = hidden * vision.merge**2
    yield from _merger(f"{prefix}.merger", hidden, merged, out_hidden)
    for index in range(len(vision.deepstack)):
        yield from _merger(f"{prefix}.deepstack_merger_list.{index}", merged, merged, out_hidden)


def _merger(prefix: str, norm: int, merged: int, out_hidden: int) -> Iterator[TensorSpec]:
    yield from _with_bias(f"{prefix}.norm", (norm,))
    yield from _with_bias(f"{prefix}.linear_fc1", (merged, merged))
    yield from _with_bias(f"{prefix}.linear_fc2", (out_hidden, merged))


def _with_bias(name: str, weight: tuple[int, ...]) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", weight)
    yield TensorSpec(f"{name}.bias", weight[:1])
