"""Rules that find a slice to be another: of its array, its expert, its layer, the checkpoint."""

from __future__ import annotations

from harness.base.scanning import equal
from harness.explain.causes import Cause, Finding
from harness.explain.evidence import Evidence, Need, Slice, Turn, rule
from harness.families.family import Part

TURN = Turn.ORIGINS

TIED_EMBEDDINGS = Cause.declared(
    "tied-embeddings",
    "compare tie_word_embeddings at the top of config.json, which transformers reads, "
    "with that of text_config, by which vLLM builds Qwen3.5",
)
#: What is said of a head and an embedding that are one, or two, against config.json.
TIED_OTHERWISE = "head and embedding are tied otherwise than config.json says"


@rule(TIED_EMBEDDINGS, Need.TIE)
def tied(e: Evidence) -> Finding | None:
    """The head where the embedding should be, or the embedding where the head should be."""
    if (text := e.tied()) is None:
        return None
    return e.finding_of_all(TIED_EMBEDDINGS, TIED_OTHERWISE, text)


EXPERT_GROUPS_MIXED = Cause.declared(
    "expert-groups-mixed",
    "look at how expert ids are counted: group by group, or one of each group in turn "
    "(expert_placement_strategy linear and round_robin)",
)


@rule(EXPERT_GROUPS_MIXED, Need.EXPERTS)
def expert_groups(e: Evidence) -> Finding | None:
    """All experts of its layer stand as if one of each group came in turn, or the reverse."""
    if (other := e.around.whose()) is None or other.layer != e.slice.layer:
        return None
    count, order = e.around.experts(), e.around.order()
    for groups in (n for n in range(2, count // 2 + 1) if not count % n):
        size = count // groups
        dealt = {expert: expert % groups * size + expert // groups for expert in order}
        if dealt == order and sum(e != o for e, o in dealt.items()) > 2:  # two are an exchange
            return e.finding(
                EXPERT_GROUPS_MIXED,
                f"{e.words.they} {{are}} mixed: one of each of {groups} groups of {size} in turn",
                f"{e.name} holds the bytes of {other.name}, as that order has it",
            )
    return None


EXPERTS_EXCHANGED = Cause.declared(
    "experts-exchanged", "look at the order of expert ids: a permuted expert map"
)
EXPERTS_PERMUTED = Cause.declared(
    "experts-permuted",
    "look at the order of expert ids: sorted as strings, or a permuted expert map",
)


@rule(EXPERTS_EXCHANGED, EXPERTS_PERMUTED, Need.EXPERTS)
def another_expert(e: Evidence) -> Finding | None:
    """It holds the same matrix of another expert of its layer."""
    own, other = e.slice, e.around.whose()
    if other is None or (other.layer, other.matrix) != (own.layer, own.matrix):
        return None
    if own.expert is None or other.expert is None:
        return None
    evidence = f"{own.name} holds the bytes of {other.name}"
    if _is_mutual(e, other):
        first, second = sorted((own.expert, other.expert))
        return e.finding(
            EXPERTS_EXCHANGED,
            f"experts {first} and {second} of {e.words.place} are exchanged",
            evidence,
            f"{first} {second}",
        )
    return e.finding(EXPERTS_PERMUTED, f"{e.words.they} {{stand}} in another order", evidence)


PROJECTIONS_EXCHANGED = Cause.declared(
    "projections-exchanged",
    "look at the shard_id each half is loaded under (w1, w2, w3) and at how the fused "
    "tensor is chunked",
)
OTHER_SLICE = Cause.declared(
    "other-slice", "look at the expert_id and shard_id the slice was loaded under"
)


@rule(PROJECTIONS_EXCHANGED, OTHER_SLICE, Need.FELLOWS)
def another_of_its_array(e: Evidence) -> Finding | None:
    """It holds another slice of its own array: another matrix of the expert, q, k or v."""
    own, other = e.slice, e.around.whose()
    if other is None:
        return None
    of_layer = None not in (own.expert, other.expert) and other.layer == own.layer
    if not of_layer and other not in e.around.fellows():
        return None
    evidence = f"{own.name} holds the bytes of {other.name}"
    if own.expert == other.expert and _is_mutual(e, other):
        names = (own.name, other.name) if own.expert is None else (own.matrix, other.matrix)
        first, second = sorted(names)
        place = "" if own.expert is None else f" in {e.words.place}"
        return e.finding(
            PROJECTIONS_EXCHANGED,
            f"{first} and {second} are exchanged{place}{e.words.tail}",
            evidence,
            f"{first} {second}",
        )
    return e.finding(
        OTHER_SLICE,
        f"{e.words.they} {{hold}} the bytes of others in the same array",
        evidence,
    )


DRAFT_LAYER_OFF_BY_ONE = Cause.declared(
    "draft-layer-off-by-one",
    "look at where the draft's layers are numbered from: num_hidden_layers, and whether the "
    "first of them is counted as 0 or as that",
)


@rule(DRAFT_LAYER_OFF_BY_ONE, Need.LAYERS)
def draft_layer(e: Evidence) -> Finding | None:
    """A layer of the draft model holds the one before or after it, or the decoder's last does."""
    own, other = e.slice, e.around.whose()
    if other is None or own.layer is None or other.layer is None:
        return None
    here, there = e.around.depth(own), e.around.depth(other)
    if Part.MTP not in (own.layer[0], other.layer[0]) or here is None or there is None:
        return None
    if abs(here - there) != 1:
        return None
    return e.finding(
        DRAFT_LAYER_OFF_BY_ONE,
        f"{e.words.they} {{hold}} what belongs to {other.place}, one layer off",
        f"{own.name} holds the bytes of {other.name}",
        other.place,
    )


OTHER_LAYER = Cause.declared(
    "other-layer",
    "look for a view of the streamer's buffer that was kept past the next tensor, or "
    "for a layer number taken from the wrong name",
)


@rule(OTHER_LAYER, Need.LAYERS)
def another_layer(e: Evidence) -> Finding | None:
    """It holds a slice of another layer."""
    own, other = e.slice, e.around.whose()
    if other is None or other.layer is None or other.layer == own.layer:
        return None
    return e.finding(
        OTHER_LAYER,
        f"{e.words.they} {{hold}} what belongs to {other.place}",
        f"{own.name} holds the bytes of {other.name}",
        other.place,
    )


OTHER_BYTES = Cause.declared(
    "other-bytes", "look for a view of the streamer's buffer that was kept past the next tensor"
)


@rule(OTHER_BYTES)
def another_tensor(e: Evidence) -> Finding | None:
    """It holds a tensor of the checkpoint that has nothing to do with it."""
    if (other := e.around.whose()) is None:
        return None
    return e.finding(
        OTHER_BYTES,
        f"{e.words.they} {{hold}} other tensors of the checkpoint",
        f"{e.name} holds the bytes of {other.name}",
    )


def _is_mutual(e: Evidence, other: Slice) -> bool:
    """Whether the other slice holds this one's bits."""
    return equal(e.around.held(other), e.reference)
