"""The classes of faults that upstream shipped, by the catalogue's names; each is planted or not."""

from __future__ import annotations

#: Every class of the catalogue, in its order.
CLASSES = (
    "argument contract", "argument order", "stale buffer", "hook fires early",
    "fused on disk, no shard id", "transposed", "replicated instead of sharded",
    "scale lost or in the wrong slot", "lost experts", "wrong shard slice", "silently narrowed",
    "w1/w3 mixed", "expert permutation", "MTP missing or skipped", "order dependence",
    "tied weights", "missing shard file", "duplicate files", "file order", "dtype cast",
    "corruption",
)  # fmt: skip

#: Classes that came with families of every kind. Of the first vLLM 0.26 has a case: it drops the
#: biases of experts on its common road.
OF_FAMILIES = ("bias lost", "layer kind mistaken", "draft layer off by one")

#: Classes of the catalogue that no row stands for, and why.
ELSEWHERE: dict[str, str] = {
    "fused on disk, no shard id": "the scenario vl-vision-first; its failure on 0.21 is known",
    "scale lost or in the wrong slot": "tests/compare/test_fp8_experts.py plants it, on FP8 "
    "checkpoints",
    "tied weights": "the scenarios vl-tied, decoder-tied, vl-ties-contradict and "
    "decoder-ties-contradict; tests/support/parameter_faults.py plants it",
}
