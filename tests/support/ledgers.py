"""Calls of a ``weight_loader`` as the recorder notes them."""

from __future__ import annotations

from typing import Any

from harness.load.ledger import LoaderCall

W13 = "model.layers.3.mlp.experts.routed_experts.w13_weight"
W2 = "model.layers.3.mlp.experts.w2_weight"


def call(parameter: str = W13, *arguments: object, **given: Any) -> LoaderCall:
    late = given.pop("late", False)
    source = given.pop("source", "t")
    return LoaderCall(parameter, "RoutedExperts", source, arguments, given, "m.py:1", late)


def whole(expert: int) -> list[LoaderCall]:
    return [
        call(parameter, shard_id=shard, expert_id=expert)
        for parameter, shard in ((W13, "w1"), (W2, "w2"), (W13, "w3"))
    ]
