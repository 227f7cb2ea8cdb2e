"""Faults planted in parameters besides experts, with the cause and the evidence that are right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.explain.causes import Cause
from tests.support.parameter_packing import LANGUAGE, Array, PackedParameters, side_by_side

VISUAL = "vllm_model.visual."
Change = Callable[[PackedParameters], None]
HEAD = "vllm_model.language_model.lm_head.weight"


def array_of(device: PackedParameters, name: str) -> Array:
    packed = device.packed[name]
    packed.array = packed.array.copy()
    return packed.array


ATTENTION = f"{LANGUAGE}layers.1.self_attn.qkv_proj.weight"


def _swap_q_heads(device: PackedParameters) -> None:
    array = array_of(device, ATTENTION)
    array[:, :32], array[:, 32:64] = array[:, 32:64].copy(), array[:, :32].copy()


def _swap_q_and_k_heads(device: PackedParameters) -> None:
    """Shard 0 holds q heads 0 and 1, then the first copy of k head 0."""
    array = array_of(device, ATTENTION)
    for start in (64, 64 + 128):  # both copies
        array[:, start : start + 32] = device.get(
            "model.language_model.layers.1.self_attn.q_proj.weight"
        )[:32].T
    array[:, :32] = device.get("model.language_model.layers.1.self_attn.k_proj.weight")[:32].T


def _tile_instead_of_repeat(device: PackedParameters) -> None:
    """k heads repeated as 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    here = "model.language_model.layers.1.self_attn."
    q, k, v = (device.get(f"{here}{p}_proj.weight") for p in "qkv")
    tiled = [q, np.concatenate([k, k]), np.repeat(v.reshape(2, 32, -1), 2, axis=0).reshape(128, -1)]
    device.packed[ATTENTION].array = side_by_side(tiled, 4).T


def _order_for_two_shards(device: PackedParameters) -> None:
    here = "model.language_model.layers.1.mlp.shared_expert."
    halves = [device.get(f"{here}{p}_proj.weight") for p in ("gate", "up")]
    name = f"{LANGUAGE}layers.1.mlp.shared_expert.gate_up_proj.weight"
    device.packed[name].array = side_by_side(halves, 2).T


def _swap_shared_gate_and_up(device: PackedParameters) -> None:
    here = "model.language_model.layers.1.mlp.shared_expert."
    halves = [device.get(f"{here}{p}_proj.weight") for p in ("up", "gate")]
    name = f"{LANGUAGE}layers.1.mlp.shared_expert.gate_up_proj.weight"
    device.packed[name].array = side_by_side(halves, 4).T


def _swap_router_rows(device: PackedParameters) -> None:
    array = array_of(device, f"{LANGUAGE}layers.0.mlp.gate.weight")
    rows = array if array.shape[0] == 8 else array.T
    rows[[3, 5]] = rows[[5, 3]]


def _rotate_vocabulary(device: PackedParameters) -> None:
    packed = device.packed[f"{LANGUAGE}embed_tokens.weight"]
    packed.array = np.roll(packed.array, len(packed.array) // 4, axis=0)


def _zero_the_head(device: PackedParameters) -> None:
    array_of(device, HEAD)[:] = 0


def poison_the_head(device: PackedParameters) -> None:
    array_of(device, HEAD)[:] = 0xDEAD


def _head_is_the_embedding(device: PackedParameters) -> None:
    device.packed[HEAD].array = device.packed[f"{LANGUAGE}embed_tokens.weight"].array


def _embedding_is_the_head(device: PackedParameters) -> None:
    device.packed[f"{LANGUAGE}embed_tokens.weight"].array = device.packed[HEAD].array


def _exchange_head_and_embedding(device: PackedParameters) -> None:
    head, embedding = device.packed[HEAD], device.packed[f"{LANGUAGE}embed_tokens.weight"]
    head.array, embedding.array = embedding.array, head.array


def _transpose_the_vision_projection(device: PackedParameters) -> None:
    packed = device.packed[f"{VISUAL}blocks.0.attn.proj.weight"]
    packed.array = np.ascontiguousarray(packed.array.T)


def _exchange_input_shards(device: PackedParameters) -> None:
    array = array_of(device, f"{LANGUAGE}layers.1.self_attn.o_proj.weight")
    array[:64], array[64:128] = array[64:128].copy(), array[:64].copy()


def _swap_vision_heads(device: PackedParameters) -> None:
    array = array_of(device, f"{VISUAL}blocks.1.attn.qkv.weight")
    array[:, :8], array[:, 8:16] = array[:, 8:16].copy(), array[:, :8].copy()


def _one_replica_of_a_norm(device: PackedParameters) -> None:
    def change(bits: Array) -> Array:
        bits = bits.copy()
        bits[7] ^= 0x40
        return bits

    device.reading[f"{LANGUAGE}norm.weight", "cpu:3"] = change


def _norm_off_by_a_bit(device: PackedParameters) -> None:
    array_of(device, f"{LANGUAGE}layers.1.input_layernorm.weight")[5] ^= 1


def _deepstack_of_the_other(device: PackedParameters) -> None:
    device.packed[f"{VISUAL}deepstack_merger_list.0.linear_fc1.weight"].array = device.packed[
        f"{VISUAL}deepstack_merger_list.1.linear_fc1.weight"
    ].array


def _z_before_v(device: PackedParameters) -> None:
    here = "model.language_model.layers.0.linear_attn."
    mixed, z = device.get(f"{here}in_proj_qkv.weight"), device.get(f"{here}in_proj_z.weight")
    parts = [mixed[:128], mixed[128:256], z, mixed[256:]]
    name = f"{LANGUAGE}layers.0.linear_attn.in_proj_qkvz.weight"
    device.packed[name].array = side_by_side(parts, 4).T


def _a_before_b(device: PackedParameters) -> None:
    here = "model.language_model.layers.0.linear_attn."
    parts = [device.get(f"{here}in_proj_{p}.weight") for p in "ab"]
    name = f"{LANGUAGE}layers.0.linear_attn.in_proj_ba.weight"
    device.packed[name].array = side_by_side(parts, 4).T


def _scale_not_one(device: PackedParameters) -> None:
    array_of(device, f"{LANGUAGE}layers.1.self_attn.attn._k_scale")[...] = 0x40000000


VL, Q = "qwen3-vl-moe", "qwen3.5-moe"
FAULTS: list[tuple[str, Change, Cause, str]] = [
    (VL, _swap_q_heads, Cause.HEADS_EXCHANGED, "head 0 of .*q_proj.weight holds head 1 of"),
    (VL, _swap_q_and_k_heads, Cause.HEADS_EXCHANGED, "head 0 of .*q_proj.* holds head 0 .*k_proj"),
    (
        VL,
        _tile_instead_of_repeat,
        Cause.HEADS_REPEATED_WRONGLY,
        "head 0 of .*copy 1.* holds head 1 of",
    ),
    (Q, _order_for_two_shards, Cause.SHARDS_EXCHANGED, "holds shard"),
    (
        Q,
        _swap_shared_gate_and_up,
        Cause.PROJECTIONS_EXCHANGED,
        "gate_.* holds the bytes of .*up_proj",
    ),
    (Q, _swap_router_rows, Cause.ROWS_EXCHANGED, "row 3 of .*mlp.gate.weight holds row 5"),
    (VL, _swap_router_rows, Cause.ROWS_EXCHANGED, "row 3 of .*mlp.gate.weight holds row 5"),
    (VL, _rotate_vocabulary, Cause.ROLLED, "rolled by 128, which is 1 of 4 shards"),
    (VL, _zero_the_head, Cause.ZEROS, "lm_head.weight holds zeros, not the poison"),
    (VL, poison_the_head, Cause.UNWRITTEN, "still holds the poison 0xdead"),
    (
        VL,
        _head_is_the_embedding,
        Cause.TIED_EMBEDDINGS,
        "lm_head.weight holds model.language.*embed_tokens.weight; .*false",
    ),
    (
        Q,
        _embedding_is_the_head,
        Cause.TIED_EMBEDDINGS,
        "embed_tokens.weight holds lm_head.weight; .*false",
    ),
    (VL, _exchange_head_and_embedding, Cause.OTHER_BYTES, "holds the bytes of lm_head.weight"),
    (VL, _transpose_the_vision_projection, Cause.TRANSPOSED, "in the order of its transpose"),
    (VL, _exchange_input_shards, Cause.SHARDS_EXCHANGED, "shard 0 of .*o_proj.* holds shard 1"),
    (VL, _swap_vision_heads, Cause.HEADS_EXCHANGED, "head 0 of .*qkv.weight holds head 1"),
    (VL, _one_replica_of_a_norm, Cause.REPLICAS_DIFFER, "cpu:1, cpu:2, cpu:4 hold the same"),
    (VL, _norm_off_by_a_bit, Cause.BIT_FLIP, "bit 0 of one element differs, the other 127"),
    (VL, _deepstack_of_the_other, Cause.OTHER_LAYER, "list.0.* holds the bytes of .*list.1"),
    (Q, _z_before_v, Cause.SHARDS_EXCHANGED, "holds shard"),
    (Q, _a_before_b, Cause.PROJECTIONS_EXCHANGED, "in_proj_b.* holds the bytes of .*in_proj_a"),
    (VL, _scale_not_one, Cause.STRUCTURE, "expected 0x3f800000, found 0x40000000"),
]
