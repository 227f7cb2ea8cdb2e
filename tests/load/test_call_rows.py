"""The ledger in a form that stays small: what is told together, and what is not."""

from __future__ import annotations

from typing import Any

from harness.families.family import Part, Projection
from harness.load.call_rows import Calls, calls_of
from harness.load.ledger import Ledger, LoaderCall


def call(layer: int, expert: int, shard: str = "w1", *, positional: bool = False) -> LoaderCall:
    array = "w2" if shard == "w2" else "w13"
    name = f"layers.{layer}.mlp.experts.{array}_weight"
    source = f"model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
    by_position = (name, shard, expert) if positional else (name,)
    ids: dict[str, object] = {} if positional else {"shard_id": shard, "expert_id": expert}
    return LoaderCall(name, "RoutedExperts", source, by_position, ids, "model.py:7", False)


def rows(*calls: LoaderCall, **given: Any) -> list[Calls]:
    return calls_of(Part.DECODER, Ledger(calls=list(calls), **given))


def test_calls_that_differ_by_numbers_alone_are_one_row() -> None:
    calls = [
        call(layer, e, shard) for layer in range(3) for e in range(4) for shard in ("w1", "w3")
    ]
    gate, up = rows(*calls)
    assert (gate.projection, up.projection) == (Projection.GATE, Projection.UP)
    assert (gate.layers, gate.experts, gate.times) == ("0-2", "0-3", 1)
    assert gate.source == "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
    assert gate.call == (
        "weight_loader(param, loaded_weight, 'layers.{layer}.mlp.experts.w13_weight', "
        "shard_id='w1', expert_id={expert})"
    )
    assert gate.site == "model.py:7"


def test_layers_with_other_experts_are_told_apart() -> None:
    found = rows(call(0, 0), call(0, 1), call(1, 0), call(2, 0), call(2, 1))
    assert [(row.layers, row.experts) for row in found] == [("0,2", "0-1"), ("1", "0")]


def test_a_second_delivery_is_told() -> None:
    found = rows(call(0, 0), call(0, 1), call(0, 1))
    assert [(row.experts, row.times) for row in found] == [("0", 1), ("1", 2)]


def test_positional_late_and_raised_are_told() -> None:
    late = call(0, 2)._replace(late=True)
    found = rows(call(0, 0), call(0, 1, positional=True), late, call(0, 3), failed=True)
    facts = [(row.experts, row.positional, row.late, row.raised) for row in found]
    assert facts == [
        ("0", False, False, False), ("1", True, False, False),
        ("2", False, True, False), ("3", False, False, True),
    ]  # fmt: skip
    assert "'w1', {expert})" in found[1].call


def test_other_parameters_are_no_rows() -> None:
    assert rows(LoaderCall("q_proj.weight", "Linear", "q", ("q",), {}, "m.py:1", False)) == []


def test_a_copy_is_a_row_for_each_matrix_it_brought() -> None:
    name = "layers.{}.mlp.experts.w13_weight"
    copies = [
        LoaderCall(name.format(n), "RoutedExperts", f"model.layers.{n}.mlp.experts.gate_up_proj",
                   (), {}, "m.py:1", False, "copy_", 4)
        for n in range(2)
    ]  # fmt: skip
    gate, up = rows(*copies)
    assert (gate.projection, up.projection) == (Projection.GATE, Projection.UP)
    assert (gate.layers, gate.experts, gate.times) == ("0-1", "0-3", 1)
    assert gate.call == "param.copy_(loaded_weight)"
    assert gate.source == "model.layers.{layer}.mlp.experts.gate_up_proj"


def test_which_call_concerns_an_expert() -> None:
    (row,) = rows(call(0, 1), call(2, 1))
    assert row.concerns(2, 1)
    assert not row.concerns(1, 1)
    assert not row.concerns(2, 0)


def test_a_large_ledger_is_small() -> None:
    shards = ("w1", "w2", "w3")
    calls = [call(layer, e, s) for layer in range(20) for e in range(128) for s in shards]
    assert len(rows(*calls)) == 3
