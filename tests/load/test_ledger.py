"""What the ledger answers from the calls it holds."""

from __future__ import annotations

from typing import Any

import pytest

from harness.families.family import Projection
from harness.load.ledger import Ledger, LoaderCall, Slot
from tests.support.ledgers import W2, W13, call, whole


@pytest.mark.parametrize(
    "given",
    [
        call(W13, "name", "w1", 2),
        call(W13, "name", shard_id="w1", expert_id=2),
        call(W13, weight_name="name", shard_id="w1", expert_id=2),
        call(W13, "name", "w1", expert_id=2),
    ],
)
def test_ids_wherever_they_stand(given: LoaderCall) -> None:
    ledger = Ledger(calls=[given])
    assert given.ids == (2, "w1")
    assert ledger.counts() == {Slot(3, 2, "w1"): 1}
    assert ledger.of(3, 2, Projection.GATE) == [given]
    assert ledger.of(3, 2, Projection.UP) == []


def test_calls_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many slices are asked for; what comes later, or is renamed, is seen all the same."""
    looked: list[LoaderCall] = []
    slot = LoaderCall.slot.fget  # type: ignore[attr-defined]

    def counted(call: LoaderCall) -> object:
        looked.append(call)
        return slot(call)

    monkeypatch.setattr(LoaderCall, "slot", property(counted))
    ledger = Ledger(calls=[c for expert in range(20) for c in whole(expert)])
    for expert in range(20):
        for projection in Projection:
            assert len(ledger.of(3, expert, projection)) == 1
    assert len(looked) == 60
    ledger.calls += whole(7)
    ledger.calls[0] = ledger.calls[0]._replace(site="renamed.py:1")
    assert len(ledger.of(3, 7, Projection.UP)) == 2
    assert ledger.of(3, 0, Projection.GATE)[0].site == "renamed.py:1"
    assert len(looked) == 63


def test_positional_means_no_id_by_keyword() -> None:
    assert call(W13, "name", "w1", 2).ids_are_positional
    assert not call(W13, "name", "w1", expert_id=2).ids_are_positional
    assert not call(W13, "name", shard_id="w1", expert_id=2).ids_are_positional
    assert not call("q_proj.weight", "q").ids_are_positional


def test_calls_that_are_not_of_experts_deliver_nothing() -> None:
    others = [call("model.layers.3.mlp.shared_expert.w13_weight"), call("q_proj.weight", "q")]
    assert not Ledger(calls=others).counts()
    assert not any(c.is_of_expert for c in others)


def test_delivered_and_undelivered() -> None:
    ledger = Ledger(calls=[*whole(0), *whole(2), *whole(2)])
    assert ledger.undelivered([3], 3) == {3: (1,)}
    assert ledger.undelivered([3, 4], 1) == {4: (0,)}
    assert ledger.counts()[Slot(3, 2, "w2")] == 2


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_expert_without_one_shard_is_undelivered(lost: int) -> None:
    calls = whole(0)
    del calls[lost]
    assert Ledger(calls=calls).undelivered([3], 1) == {3: (0,)}


def test_what_delivers_nothing() -> None:
    positional = [call(c.parameter, "name", c.ids[1], c.ids[0]) for c in whole(0)]
    late = [c._replace(late=True) for c in whole(0)]
    for calls in (positional, late):
        assert Ledger(calls=calls).undelivered([3], 1) == {3: (0,)}
    assert Ledger(calls=whole(0), failed=True).undelivered([3], 1) == {3: (0,)}
    assert Ledger(calls=whole(0)).undelivered([3], 1) == {}


def copied(parameter: str, experts: int = 3, **given: Any) -> LoaderCall:
    return call(parameter, **given)._replace(operation="copy_", experts=experts)


def test_a_copy_of_a_whole_parameter_delivers_all_it_holds() -> None:
    ledger = Ledger(calls=[copied(W13, source="a"), copied(W2, source="b")], streamed=["a", "b"])
    assert ledger.undelivered([3], 3) == {}
    assert ledger.undelivered([3], 4) == {3: (3,)}
    assert ledger.unread() == []
    assert set(ledger.counts().values()) == {1}
    assert len(ledger.counts()) == 9
    assert [c.parameter for c in ledger.of(3, 2, Projection.UP)] == [W13]
    assert ledger.calls[0].as_call == "param.copy_(loaded_weight)"


def test_a_copy_of_a_part_delivers_nobody_knows_what() -> None:
    ledger = Ledger(calls=[copied(W13, 0), copied(W2)])
    assert ledger.undelivered([3], 3) == {3: (0, 1, 2)}
    assert Ledger(calls=[copied(W13), copied(W2)], failed=True).undelivered([3], 1) == {3: (0,)}
    assert Ledger(calls=[copied(W13, late=True), copied(W2)]).undelivered([3], 1) == {3: (0,)}
    assert not Ledger(calls=[copied("model.layers.3.attn.sinks")]).counts()


def test_unread_tensors() -> None:
    ledger = Ledger(calls=[call(source="a")], streamed=["a", "b"])
    assert ledger.unread() == ["b"]


def test_processed_layers() -> None:
    ledger = Ledger(processed=[W13, W2, "model.layers.4.self_attn.qkv_proj.weight"])
    assert ledger.processed_layers() == [3]


def test_a_call_as_source_shows_it() -> None:
    assert call(W13, "n", "w1", 2, return_success=True).as_call == (
        "weight_loader(param, loaded_weight, 'n', 'w1', 2, return_success=True)"
    )


def test_part_is_no_part_of_a_slot() -> None:
    """A ledger is of one part; both parts number their layers from 0."""
    assert Ledger.slot(0, 1, Projection.DOWN) == Slot(0, 1, "w2")
    assert Slot._fields == ("layer", "expert", "shard")
