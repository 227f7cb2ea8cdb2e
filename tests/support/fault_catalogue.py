"""The rows of the fault table: each class of the catalogue that can reach an expert's weights."""

from __future__ import annotations

from harness.explain.causes import Cause
from tests.support.fault_changes import (
    after_the_first,
    backwards,
    backwards_over_the_mesh,
    broken_bytes,
    flushed,
    gate_as_up,
    groups_in_turn,
    half_is_enough,
    ids_as_strings,
    interleaved,
    is_bias,
    never_loaded,
    next_ranks_piece,
    none,
    one_bit,
    one_layer_before,
    padded_stride,
    positionally,
    replicated,
    returns_unwritten,
    same_numel,
    stale,
    taken_for_dense,
    through_float16,
    twice,
    twice_at_once,
    two_exchanged,
    upper_half_never,
    with_sharding,
    without_a_file,
    without_last_rows,
    wrong_offset,
    zeros,
)
from tests.support.faults import (
    Fault,
    calling,
    changed,
    hooking,
    is_down,
    is_gate_up,
    loading,
    mapping,
    streaming,
    without,
)
from tests.support.hooks import Hook

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ids by position, upstream's hook", "argument contract",
        calling(positionally), (Cause.ARGUMENT_CONTRACT,),
    ),
    Fault(
        "ids by position, a hook that looks away", "argument contract",
        calling(positionally), (Cause.ARGUMENT_CONTRACT,), hook=Hook.LENIENT,
    ),
    Fault(
        "empty range of local experts", "argument order",
        calling(upper_half_never), (Cause.NOT_DELIVERED,),
    ),
    Fault(
        "view kept past its life", "stale buffer",
        streaming(stale),
        (Cause.OTHER_LAYER, Cause.OTHER_SLICE, Cause.EXPERTS_PERMUTED, Cause.OTHER_BYTES),
    ),
    Fault(
        "processed before all came", "hook fires early",
        hooking("VllmUnquantizedFusedMoEMethod", half_is_enough), (Cause.DELIVERED_LATE,),
    ),
    Fault(
        "transposed, same numel", "transposed", streaming(changed(same_numel)),
        (Cause.TRANSPOSED,),
    ),
    Fault(
        "replicated", "replicated instead of sharded",
        hooking("shard_moe_weights", with_sharding(replicated)), (Cause.REPLICATED,),
    ),
    Fault(
        "mesh backwards", "replicated instead of sharded",
        hooking("shard_moe_weights", with_sharding(backwards_over_the_mesh)),
        (Cause.MISPLACED,),
    ),
    Fault(
        "two experts never written", "lost experts", loading(returns_unwritten),
        (Cause.UNWRITTEN,),
    ),
    Fault("two experts zeroed", "lost experts", loading(zeros), (Cause.ZEROS,)),
    Fault(
        "interleaved rows split in the middle", "wrong shard slice",
        streaming(changed(interleaved, is_gate_up)), (Cause.INTERLEAVED,),
        fused_only=True,
    ),
    Fault(
        "padded stride over an unpadded source", "wrong shard slice", calling(padded_stride),
        (Cause.OTHER_BYTES, Cause.ROLLED, Cause.MIXED),
    ),
    Fault("wrong offset", "wrong shard slice", calling(wrong_offset), (Cause.ROLLED,)),
    Fault(
        "the neighbour rank's piece", "wrong shard slice",
        hooking("process_unquantized_moe_weights", next_ranks_piece), (Cause.ROLLED,),
    ),
    Fault("last rows missing", "silently narrowed", loading(without_last_rows),
          (Cause.NARROWED,)),
    Fault(
        "gate and up swapped", "w1/w3 mixed", calling(gate_as_up),
        (Cause.PROJECTIONS_EXCHANGED,),
    ),
    Fault(
        "ids sorted as strings", "expert permutation", calling(ids_as_strings),
        (Cause.EXPERTS_PERMUTED,),
    ),
    Fault(
        "two experts exchanged", "expert permutation", calling(two_exchanged),
        (Cause.EXPERTS_EXCHANGED,),
    ),
    Fault(
        "one of each of two groups in turn", "expert permutation",
        calling(groups_in_turn), (Cause.EXPERT_GROUPS_MIXED,),
    ),
    Fault(
        "a projection skipped under a prefix", "MTP missing or skipped",
        mapping(without(is_down)), (Cause.NOT_DELIVERED,),
    ),
    Fault(
        "the model is not loaded at all", "MTP missing or skipped", never_loaded,
        (Cause.NOT_STREAMED, Cause.PARAMETER_UNWRITTEN),
    ),
    Fault(
        "the model takes no tensor", "MTP missing or skipped", mapping(none),
        (Cause.NOT_DELIVERED, Cause.PARAMETER_UNWRITTEN, Cause.TENSOR_UNREAD),
    ),
    Fault(
        "mapping changes after the first tensor", "order dependence",
        mapping(after_the_first), (Cause.NOT_DELIVERED,),
    ),
    Fault(
        "a shard file not listed", "missing shard file", streaming(without_a_file),
        (Cause.NOT_STREAMED,),
    ),
    Fault(
        "every expert again at the end", "duplicate files", streaming(twice),
        (Cause.DELIVERED_TWICE,),
    ),
    Fault(
        "gate and up again at once", "duplicate files", streaming(twice_at_once),
        (Cause.DELIVERED_TWICE,),
    ),
    Fault("tensors backwards", "file order", streaming(backwards), ()),
    Fault(
        "through float16", "dtype cast", streaming(changed(through_float16)),
        (Cause.DTYPE_ROUND_TRIP,),
    ),
    Fault(
        "subnormals flushed to zero", "dtype cast", streaming(changed(flushed)),
        (Cause.SUBNORMALS_FLUSHED,),
    ),
    Fault("one bit", "corruption", streaming(changed(one_bit)), (Cause.BIT_FLIP,)),
    Fault("broken bytes", "corruption", streaming(changed(broken_bytes)), (Cause.DAMAGED,)),
    Fault(
        "the vision tower's biases dropped", "bias lost", mapping(without(is_bias)),
        (Cause.BIAS_LOST,), only="Qwen3-VL-MoE",
    ),
    Fault(
        "a layer of experts built dense", "layer kind mistaken", taken_for_dense,
        (
            Cause.DENSE_LAYER, Cause.TENSOR_UNREAD, Cause.PARAMETER_UNWRITTEN, Cause.UNACCOUNTED,
        ), only="Qwen3-VL-MoE",
    ),
    Fault(
        "the decoder's last layer as the draft's", "draft layer off by one",
        streaming(one_layer_before), (Cause.DRAFT_LAYER_OFF_BY_ONE,), only="Qwen3.6-MTP",
        whole=True,
    ),
)  # fmt: skip
