"""The causes a report can name, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from harness.base.text import runs_text
from harness.compare.difference import Difference
from harness.families.registry import families


class Cause(StrEnum):
    """The classes of fault that can be told apart."""

    ARGUMENT_CONTRACT = "argument-contract"
    FUSED_WITHOUT_SHARD = "fused-without-shard"
    NOT_STREAMED = "not-streamed"
    NOT_DELIVERED = "not-delivered"
    DELIVERED_LATE = "delivered-late"
    DELIVERED_TWICE = "delivered-twice"
    UNWRITTEN = "unwritten"
    ZEROS = "zeros"
    NARROWED = "narrowed"
    WRONG_CORNER = "wrong-corner"
    EXPERTS_EXCHANGED = "experts-exchanged"
    EXPERTS_PERMUTED = "experts-permuted"
    PROJECTIONS_EXCHANGED = "projections-exchanged"
    HEADS_EXCHANGED = "heads-exchanged"
    HEADS_REPEATED = "heads-repeated-wrongly"
    ROWS_EXCHANGED = "rows-exchanged"
    SHARDS_EXCHANGED = "shards-exchanged"
    REPLICAS_DIFFER = "replicas-differ"
    OTHER_SLICE = "other-slice"
    OTHER_LAYER = "other-layer"
    OTHER_BYTES = "other-bytes"
    TIED = "tied-embeddings"
    TRANSPOSED = "transposed"
    ROLLED = "rolled"
    MIXED = "mixed"
    OTHER_DTYPE = "other-dtype"
    DTYPE_ROUND_TRIP = "dtype-round-trip"
    SUBNORMALS_FLUSHED = "subnormals-flushed"
    DAMAGED = "damaged"
    BIT_FLIP = "bit-flip"
    SIGN_OF_ZERO = "sign-of-zero"
    NAN_CANONICALISED = "nan-canonicalised"
    SCALE = "scale"
    REPLICATED = "replicated"
    MISPLACED = "misplaced"
    PADDING = "padding"
    STRUCTURE = "structure"
    TENSOR_UNREAD = "tensor-unread"
    PARAMETER_UNWRITTEN = "parameter-unwritten"
    UNACCOUNTED = "unaccounted"
    UNCHECKED = "unchecked"
    UNEXPLAINED = "unexplained"


NEXT_STEP: dict[Cause, str] = {
    Cause.ARGUMENT_CONTRACT: "pass them by keyword at the call site: shard_id=shard_id, "
    "expert_id=expert_id",
    Cause.FUSED_WITHOUT_SHARD: "let the hook take a call without shard_id as one that loads all "
    "shards; fixed by tpu-inference #2647, released with 0.22",
    Cause.NOT_STREAMED: "look at the list of files the streamer was given: _prepare_weights, the "
    "index, a filter",
    Cause.NOT_DELIVERED: "look at the name mapping of the model's load_weights: expert_params_"
    "mapping, a skip under a nested prefix, a filter by expert id",
    Cause.DELIVERED_LATE: "look at what the hook counts as complete: it processed the layer "
    "before all its pieces had come",
    Cause.DELIVERED_TWICE: "look for files that hold the same tensors twice, and for tensors "
    "that are streamed twice",
    Cause.UNWRITTEN: "look at the weight_loader that was called: it returned without writing",
    Cause.ZEROS: "look for a zero fill, or a buffer that was replaced after it was written",
    Cause.NARROWED: "look for a narrow() or copy_() with the smaller of two sizes",
    Cause.WRONG_CORNER: "look at the layout the file is taken for: sizes that do not fit are "
    "narrowed to the smaller of the two (_narrow_expert_data_for_padding)",
    Cause.EXPERTS_EXCHANGED: "look at the order of expert ids: a permuted expert map",
    Cause.EXPERTS_PERMUTED: "look at the order of expert ids: sorted as strings, or a permuted "
    "expert map",
    Cause.PROJECTIONS_EXCHANGED: "look at the shard_id each half is loaded under (w1, w2, w3) and "
    "at how the fused tensor is chunked",
    Cause.HEADS_EXCHANGED: "look at the order of q, k and v and of their heads: the shard_id "
    "each is loaded under, reorder_concatenated_tensor_for_sharding and its split sizes",
    Cause.HEADS_REPEATED: "look at how k and v heads are repeated for more devices than heads: "
    "each r times in a row (_tile_kv)",
    Cause.ROWS_EXCHANGED: "look for an index that permutes rows on the way from the file",
    Cause.SHARDS_EXCHANGED: "look at the mesh's device order, the partition spec, and the number "
    "of shards rows were ordered for",
    Cause.REPLICAS_DIFFER: "look for a device that was written for itself: memory or link "
    "corruption, or a transfer that failed",
    Cause.OTHER_SLICE: "look at the expert_id and shard_id the slice was loaded under",
    Cause.OTHER_LAYER: "look for a view of the streamer's buffer that was kept past the next "
    "tensor, or for a layer number taken from the wrong name",
    Cause.OTHER_BYTES: "look for a view of the streamer's buffer that was kept past the next "
    "tensor",
    Cause.TIED: "compare tie_word_embeddings at the top of config.json, which transformers reads, "
    "with that of text_config, by which vLLM builds Qwen3.5",
    Cause.TRANSPOSED: "look for a transpose too many or too few on the way from the file",
    Cause.ROLLED: "look at the offset a shard of this tensor starts from",
    Cause.MIXED: "look at how the fused tensor is split: halves, or interleaved rows; per shard, "
    "or as a whole",
    Cause.OTHER_DTYPE: "compare the dtypes that the headers of reference and checkpoint give this "
    "tensor; look for a view() on the way",
    Cause.DTYPE_ROUND_TRIP: "look for a cast on the way: set_default_torch_dtype, .to()",
    Cause.SUBNORMALS_FLUSHED: "look for arithmetic or a conversion by a unit that takes subnormals "
    "for zero (VCVTNEPS2BF16 on CPUs does): a copy keeps them",
    Cause.DAMAGED: "compare the file with its checksum (--checksums), then read it and the device "
    "again",
    Cause.BIT_FLIP: "read the file and the device again: storage, memory or link corruption",
    Cause.SIGN_OF_ZERO: "look for arithmetic on the weights (x + 0, casts): a copy keeps -0.0",
    Cause.NAN_CANONICALISED: "expected where tpu-inference casts bf16 to f32 and back (t2j); "
    "compare with nan=canonical; torch's conversions from other types have no rule for NaNs",
    Cause.SCALE: "look at the scales on their way: the slot each is loaded into, the orientation "
    "of their grid, the block size they are taken for",
    Cause.REPLICATED: "look at the partition spec: every device holds the whole array; an expert "
    "axis without NEW_MODEL_DESIGN=1 does this",
    Cause.MISPLACED: "look at the mesh's device order and the array's partition spec",
    Cause.PADDING: "look at get_w13_padding_config: something was written past a piece's end",
    Cause.STRUCTURE: "look at the parameter's creation: shape, dtype or name changed upstream",
    Cause.TENSOR_UNREAD: "look at the name mapping of the model's load_weights, or tell the "
    "harness why this model leaves the tensor alone (harness/verification/coverage.py)",
    Cause.PARAMETER_UNWRITTEN: "look for the checkpoint tensor that should have come, and at the "
    "name mapping it went through",
    Cause.UNACCOUNTED: "look at what the release renamed or added, and give it a rule, a "
    "derivation or a reason in harness/families/",
    Cause.UNCHECKED: "every host of the mesh has to run the harness; see that each left a report",
    Cause.UNEXPLAINED: "the differences are listed raw; rerun to see whether they are stable",
}


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

    ``{experts}`` in the summary stands for the experts of all of them, and a verb in braces,
    ``{hold}``, for its form that agrees with them.
    """

    cause: Cause
    group: str
    summary: str
    evidence: str


#: What experts do: of several, and of one.
_VERBS = {"hold": "holds", "stand": "stands", "are": "is", "were": "was"}


def experts_text(experts: Iterable[int]) -> str:
    """``expert 3``, or ``experts 0-5, 7``."""
    text = runs_text(experts, separator=", ")
    return f"expert{'' if text.isdecimal() else 's'} {text}"


def fix_of(site: str) -> str:
    """What fixed the positional call at ``site`` (``file:line``), as the end of a sentence."""
    file = site.rsplit("/", 1)[-1].split(":")[0]
    fix = next((family.fixes[file] for family in families() if file in family.fixes), "")
    return f"; fixed by {fix}, released with vLLM 0.22.0" if fix else ""


def diagnoses_of(found: Iterable[tuple[Difference, Finding]], offset: int = 0) -> list[Diagnosis]:
    """One diagnosis for each group of findings, in the order of their first difference.

    Args:
        found: every difference with what explains it, in the report's order.
        offset: the place of the first of them in the report.
    """
    groups: dict[str, list[tuple[int, Difference, Finding]]] = {}
    for number, (difference, finding) in enumerate(found, start=offset):
        groups.setdefault(finding.group, []).append((number, difference, finding))
    return [_diagnosis(group) for group in groups.values()]


def _diagnosis(group: list[tuple[int, Difference, Finding]]) -> Diagnosis:
    first, _, finding = group[0]
    experts = {d.expert for _, d, _ in group if d.expert is not None}
    summary = finding.summary.replace("{experts}", experts_text(experts))
    for plural, singular in _VERBS.items():
        summary = summary.replace(f"{{{plural}}}", singular if len(experts) == 1 else plural)
    return Diagnosis(
        cause=finding.cause,
        summary=summary,
        evidence=finding.evidence,
        next_step=NEXT_STEP[finding.cause],
        first=first,
        covers=len(group),
        members=runs_text(number for number, _, _ in group),
    )
