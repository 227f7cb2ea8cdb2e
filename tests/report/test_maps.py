"""Maps: every state a matrix can have, in a form that stays small, and in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from harness.compare.difference import Difference, Kind
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection
from harness.report.maps import (
    PartMap,
    State,
    decoded,
    encoded,
    map_of,
    pattern,
    regions,
    with_missing,
)
from tests.support.differences import a_difference

W13 = "model.layers.1.mlp.experts.w13_weight"


def difference(kind: Kind = Kind.BITS, layer: int | None = 1, **given: Any) -> Difference:
    found: Difference = a_difference(kind, layer=layer, **given)
    return found


def diagnosis(cause: Cause, members: str) -> Diagnosis:
    return Diagnosis(
        cause=cause, summary="s", evidence="e", next_step="n", first=0, covers=1, members=members
    )


def mapped(*differences: Difference, **given: Any) -> PartMap:
    """The map of two layers of four experts, all of which were to be compared."""
    return map_of(Part.DECODER, [0, 1], 4, lambda layer: range(4), differences, **given)


def states(part_map: PartMap) -> dict[str, list[str]]:
    return {str(projection): rows for projection, rows in part_map.states.items()}


@pytest.mark.parametrize("row", ["", "4e", "3e1d4e", "1m1n1p128e"])
def test_an_encoded_row_is_read_back(row: str) -> None:
    assert encoded(decoded(row)) == row


def test_all_equal() -> None:
    equal = mapped()
    assert states(equal) == {
        "gate_proj": ["4e", "4e"], "up_proj": ["4e", "4e"], "down_proj": ["4e", "4e"],
    }  # fmt: skip
    assert (equal.count(State.EQUAL), equal.count(State.DIFFERS)) == (24, 0)


def test_what_was_not_selected_was_not_compared() -> None:
    some = map_of(Part.MTP, [0], 4, lambda layer: {1, 3})
    assert set(some.states[Projection.UP]) == {"1n1e1n1e"}
    assert map_of(Part.MTP, [0], 4).count(State.NOT_COMPARED) == 12


def test_a_matrix_that_differs() -> None:
    one = mapped(difference(expert=2, projection=Projection.DOWN))
    assert states(one)["down_proj"] == ["4e", "2e1d1e"]
    assert one.count(State.DIFFERS) == 1


@pytest.mark.parametrize(
    ("kind", "state"), [(Kind.MISSING, "m"), (Kind.SHARDING, "p"), (Kind.SHAPE, "d")]
)
def test_a_whole_array(kind: Kind, state: str) -> None:
    """Gate and up share an array; down has one of its own."""
    whole = mapped(difference(kind, parameter=W13))
    assert states(whole) == {
        "gate_proj": ["4e", f"4{state}"], "up_proj": ["4e", f"4{state}"],
        "down_proj": ["4e", "4e"],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_scales_that_are_missing_are_their_matrices(suffix: str) -> None:
    whole = mapped(difference(Kind.MISSING, parameter=f"w13_weight{suffix}"))
    assert whole.count(State.MISSING) == 8
    assert states(whole)["down_proj"] == ["4e", "4e"]


@pytest.mark.parametrize(
    "other",
    [
        difference(Kind.EXTRA, parameter=W13),
        difference(layer=None, parameter="lm_head.weight"),
        difference(parameter="model.layers.1.mlp.gate.weight"),
    ],
)
def test_what_is_of_no_expert_marks_none(other: Difference) -> None:
    assert mapped(other).count(State.EQUAL) == 24


def test_a_slice_that_never_got_its_bytes_is_missing() -> None:
    """Whether bits differ or were never written is the diagnosis's to say, by its members."""
    both = [difference(expert=e, projection=Projection.GATE) for e in (0, 1)]
    lost = diagnosis(Cause.NOT_DELIVERED, "1")
    assert states(mapped(*both, diagnoses=[lost]))["gate_proj"][1] == "1d1m2e"
    other = diagnosis(Cause.BIT_FLIP, "1")
    assert states(mapped(*both, diagnoses=[other]))["gate_proj"][1] == "2d2e"


def test_bits_weigh_more_than_their_place() -> None:
    bits = difference(expert=1, projection=Projection.UP)
    place = difference(Kind.SHARDING, parameter=W13)
    for order in ((bits, place), (place, bits)):
        assert states(mapped(*order))["up_proj"][1] == "1p1d2p"


@pytest.mark.parametrize(
    ("experts", "total", "words"),
    [
        (range(8), 8, "all 8 experts"),
        ([3], 8, "expert 3"),
        ([2, 3, 4, 7], 8, "experts 2-4,7"),
        (range(0, 128, 8), 128, "every 8th expert from 0 to 120"),
        (range(0, 8, 2), 8, "every 2nd expert from 0 to 6"),
        (range(1, 12, 3), 12, "every 3rd expert from 1 to 10"),
        (range(0, 40, 11), 64, "every 11th expert from 0 to 33"),
        (range(0, 64, 21), 64, "every 21st expert from 0 to 63"),
        (range(0, 400, 112), 512, "every 112th expert from 0 to 336"),
        ([0, 8], 128, "experts 0,8"),
    ],
)
def test_experts_in_words(experts: range | list[int], total: int, words: str) -> None:
    assert pattern(list(experts), total) == words


def test_places_in_words() -> None:
    lost = [
        difference(layer=layer, expert=e, projection=Projection.GATE)
        for layer in (0, 1)
        for e in (2, 3)
    ]
    assert list(map(str, regions(mapped(*lost), State.DIFFERS))) == [
        "gate_proj: layers 0-1, experts 2-3"
    ]
    assert regions(mapped(*lost), State.MISSING) == []


def test_a_large_map_is_small() -> None:
    large = map_of(Part.DECODER, range(94), 128, lambda layer: range(128))
    assert len(msgspec.json.encode(large)) < 4000
    assert sum(1 for _ in large.rows()) == 3 * 94


def test_what_never_arrived_is_missing_and_the_rest_is_open() -> None:
    drawn = with_missing(map_of(Part.DECODER, [3, 4], 4), {3: (1, 2), 9: (0,)})
    assert all(rows == ["1n2m1n", "4n"] for rows in drawn.states.values())
