"""The causes a report can name, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Self

import msgspec

from harness.base.number_runs import runs_text
from harness.compare.difference import Difference
from harness.families.known_families import families


class Cause(StrEnum):
    """The classes of fault that can be told apart."""

    # Its name in reports, and what to do about it. A new one is a member here and a rule in RULES
    # of harness/explain/rules.py.
    next_step: str

    def __new__(cls, value: str, next_step: str) -> Self:
        """A member, known by ``value`` alone."""
        cause = str.__new__(cls, value)
        cause._value_ = value
        cause.next_step = next_step
        return cause

    ARGUMENT_CONTRACT = (
        "argument-contract",
        "pass them by keyword at the call site: shard_id=shard_id, expert_id=expert_id",
    )
    FUSED_WITHOUT_SHARD = (
        "fused-without-shard",
        "let the hook take a call without shard_id as one that loads all shards; fixed by "
        "tpu-inference #2647, released with 0.22",
    )
    STORAGE_MISREAD = (
        "storage-misread",
        "save the experts in the storage that this release takes them for, or load them with a "
        "release that reads the one they are in (harness/families/misread.py)",
    )
    CONFIG_LACKS_KEY = (
        "config-lacks-key",
        "give config.json the key, with the publisher's value: what saved the checkpoint does not "
        "write it, and this release builds no model, or another one, without it",
    )
    HOOKED_AS_EXPERT = (
        "hooked-as-expert",
        "let the hook pass over what the experts' module only shares with another one: a router's "
        "bias has no expert_id and no shard_id",
    )
    NOT_STREAMED = (
        "not-streamed",
        "look at the list of files the streamer was given: _prepare_weights, the index, a filter",
    )
    NOT_DELIVERED = (
        "not-delivered",
        "look at the name mapping of the model's load_weights: expert_params_mapping, a "
        "skip under a nested prefix, a filter by expert id",
    )
    DELIVERED_LATE = (
        "delivered-late",
        "look at what the hook counts as complete: it processed the layer before all its "
        "pieces had come",
    )
    DELIVERED_TWICE = (
        "delivered-twice",
        "look for files that hold the same tensors twice, and for tensors that are streamed twice",
    )
    BIAS_LOST = (
        "bias-lost",
        "look for has_bias where the layer is made, and for names that end in bias in "
        "load_weights: vLLM 0.26's RoutedExperts.load_weights drops those of experts",
    )
    UNWRITTEN = (
        "unwritten",
        "look at the weight_loader that was called: it returned without writing",
    )
    ZEROS = "zeros", "look for a zero fill, or a buffer that was replaced after it was written"
    NARROWED = "narrowed", "look for a narrow() or copy_() with the smaller of two sizes"
    WRONG_CORNER = (
        "wrong-corner",
        "look at the layout the file is taken for: sizes that do not fit are narrowed to "
        "the smaller of the two (_narrow_expert_data_for_padding)",
    )
    EXPERTS_EXCHANGED = (
        "experts-exchanged",
        "look at the order of expert ids: a permuted expert map",
    )
    EXPERTS_PERMUTED = (
        "experts-permuted",
        "look at the order of expert ids: sorted as strings, or a permuted expert map",
    )
    EXPERT_GROUPS = (
        "expert-groups-mixed",
        "look at how expert ids are counted: group by group, or one of each group in turn "
        "(expert_placement_strategy linear and round_robin)",
    )
    PROJECTIONS_EXCHANGED = (
        "projections-exchanged",
        "look at the shard_id each half is loaded under (w1, w2, w3) and at how the fused "
        "tensor is chunked",
    )
    HEADS_EXCHANGED = (
        "heads-exchanged",
        "look at the order of q, k and v and of their heads: the shard_id each is loaded "
        "under, reorder_concatenated_tensor_for_sharding and its split sizes",
    )
    HEADS_REPEATED = (
        "heads-repeated-wrongly",
        "look at how k and v heads are repeated for more devices than heads: each r times "
        "in a row (_tile_kv)",
    )
    ROWS_EXCHANGED = (
        "rows-exchanged",
        "look for an index that permutes rows on the way from the file",
    )
    SHARDS_EXCHANGED = (
        "shards-exchanged",
        "look at the mesh's device order, the partition spec, and the number of shards "
        "rows were ordered for",
    )
    REPLICAS_DIFFER = (
        "replicas-differ",
        "look for a device that was written for itself: memory or link corruption, or a "
        "transfer that failed",
    )
    OTHER_SLICE = "other-slice", "look at the expert_id and shard_id the slice was loaded under"
    OTHER_LAYER = (
        "other-layer",
        "look for a view of the streamer's buffer that was kept past the next tensor, or "
        "for a layer number taken from the wrong name",
    )
    DRAFT_LAYER = (
        "draft-layer-off-by-one",
        "look at where the draft's layers are numbered from: num_hidden_layers, and whether the "
        "first of them is counted as 0 or as that",
    )
    OTHER_BYTES = (
        "other-bytes",
        "look for a view of the streamer's buffer that was kept past the next tensor",
    )
    TIED = (
        "tied-embeddings",
        "compare tie_word_embeddings at the top of config.json, which transformers reads, "
        "with that of text_config, by which vLLM builds Qwen3.5",
    )
    TRANSPOSED = "transposed", "look for a transpose too many or too few on the way from the file"
    ROLLED = "rolled", "look at the offset a shard of this tensor starts from"
    MIXED = (
        "mixed",
        "look at how the fused tensor is split: halves, or interleaved rows; per shard, "
        "or as a whole",
    )
    INTERLEAVED = (
        "interleaved",
        "look at how the model tells gate and up of a fused tensor apart: as halves, or as every "
        "other row; and at the layout this release takes the file for",
    )
    OTHER_DTYPE = (
        "other-dtype",
        "compare the dtypes that the headers of reference and checkpoint give this "
        "tensor; look for a view() on the way",
    )
    DTYPE_ROUND_TRIP = (
        "dtype-round-trip",
        "look for a cast on the way: set_default_torch_dtype, .to()",
    )
    SUBNORMALS_FLUSHED = (
        "subnormals-flushed",
        "look for arithmetic or a conversion by a unit that takes subnormals for zero "
        "(VCVTNEPS2BF16 on CPUs does): a copy keeps them",
    )
    DAMAGED = (
        "damaged",
        "compare the file with its checksum (--checksums), then read it and the device again",
    )
    BIT_FLIP = "bit-flip", "read the file and the device again: storage, memory or link corruption"
    SIGN_OF_ZERO = (
        "sign-of-zero",
        "look for arithmetic on the weights (x + 0, casts): a copy keeps -0.0",
    )
    NAN_CANONICALISED = (
        "nan-canonicalised",
        "expected where tpu-inference casts bf16 to f32 and back (t2j); compare with "
        "nan=canonical; torch's conversions from other types have no rule for NaNs",
    )
    SCALE = (
        "scale",
        "look at the scales on their way: the slot each is loaded into, the orientation "
        "of their grid, the block size they are taken for",
    )
    REPLICATED = (
        "replicated",
        "look at the partition spec: every device holds the whole array; an expert axis "
        "without NEW_MODEL_DESIGN=1 does this",
    )
    MISPLACED = "misplaced", "look at the mesh's device order and the array's partition spec"
    PADDING = "padding", "look at get_w13_padding_config: something was written past a piece's end"
    STRUCTURE = (
        "structure",
        "look at the parameter's creation: shape, dtype or name changed upstream",
    )
    DENSE_LAYER = (
        "dense-layer",
        "look at which layers the model gives experts: first_k_dense_replace, mlp_only_layers, "
        "decoder_sparse_step, moe_layer_freq and their like, and from which layer they count",
    )
    TENSOR_UNREAD = (
        "tensor-unread",
        "look at the name mapping of the model's load_weights, or tell the harness why "
        "this model leaves the tensor alone (harness/verification/coverage.py)",
    )
    PARAMETER_UNWRITTEN = (
        "parameter-unwritten",
        "look for the checkpoint tensor that should have come, and at the name mapping it "
        "went through",
    )
    UNACCOUNTED = (
        "unaccounted",
        "look at what the release renamed or added, and give it a rule, a derivation or a "
        "reason in harness/families/",
    )
    UNCHECKED = (
        "unchecked",
        "every host of the mesh has to run the harness; see that each left a report",
    )
    UNEXPLAINED = (
        "unexplained",
        "the differences are listed raw; rerun to see whether they are stable",
    )


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One cause, the sentence that states it, its evidence, the next step, and how much it covers.

    ``first`` indexes the report's differences; ``covers`` counts those with this cause. Both are
    0 where a load failed and nothing was compared. ``members`` are the numbers of all of them, as
    ``0-5,7``.
    """

    cause: Cause
    summary: str
    evidence: str
    next_step: str
    first: int = 0
    covers: int = 0
    members: str = ""


class Finding(msgspec.Struct, frozen=True):
    """What one difference was explained by. Findings with the same ``group`` become one diagnosis.

    ``{experts}`` in the summary stands for the experts of all of them, ``{names}`` for their
    ``name``, and a verb in braces, ``{hold}``, for its form that agrees with them.
    """

    cause: Cause
    group: str
    summary: str
    evidence: str
    name: str = ""


#: What several do, and what one does.
_VERBS = {"hold": "holds", "stand": "stands", "differ": "differs", "are": "is", "were": "was"}


def experts_text(experts: Iterable[int]) -> str:
    """``expert 3``, or ``experts 0-5, 7``."""
    text = runs_text(experts, separator=", ")
    return f"expert{'' if text.isdecimal() else 's'} {text}"


def fix_of(site: str) -> str:
    """What fixed the positional call at ``site`` (``file:line``), as the end of a sentence."""
    file = site.rsplit("/", 1)[-1].split(":")[0]
    fix = next((family.fixes[file] for family in families() if file in family.fixes), "")
    return f"; fixed by {fix}, released with vLLM 0.22.0" if fix else ""


def diagnoses_of(found: Iterable[tuple[Difference, Finding]]) -> list[Diagnosis]:
    """One diagnosis for each group of findings, in the order of their first difference.

    Args:
        found: every difference with what explains it; diagnoses number them from 0.
    """
    groups: dict[str, list[tuple[int, Difference, Finding]]] = {}
    for number, (difference, finding) in enumerate(found):
        groups.setdefault(finding.group, []).append((number, difference, finding))
    return [_diagnosis(group) for group in groups.values()]


def _diagnosis(group: list[tuple[int, Difference, Finding]]) -> Diagnosis:
    first, _, finding = group[0]
    experts = {d.expert for _, d, _ in group if d.expert is not None}
    names = list(dict.fromkeys(each.name for *_, each in group))
    summary = finding.summary.replace("{experts}", experts_text(experts))
    summary = summary.replace("{names}", _names_text(names))
    several = len(names if "{names}" in finding.summary else experts) != 1
    for plural, singular in _VERBS.items():
        summary = summary.replace(f"{{{plural}}}", plural if several else singular)
    return Diagnosis(
        cause=finding.cause,
        summary=summary,
        evidence=finding.evidence,
        next_step=finding.cause.next_step,
        first=first,
        covers=len(group),
        members=runs_text(number for number, _, _ in group),
    )


def _names_text(names: list[str]) -> str:
    """The first name, and how many there are besides."""
    more = len(names) - 1
    return names[0] + (f" and {more} more" if more else "")
