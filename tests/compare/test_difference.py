"""Every kind of difference has fields of its own, travels as JSON, and is put into words."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from harness.compare.difference import Difference, Kind, ShardMisplaced, Subject, Unequal
from harness.compare.words import device_words, reference_words, source_words
from harness.families.family import Part
from tests.support.differences import CLASSES, a_difference


def test_each_kind_has_a_class() -> None:
    assert set(CLASSES) == set(Kind)
    assert len(get_args(Difference)) == len(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_a_difference_travels_and_is_told(kind: Kind) -> None:
    sent = a_difference(kind)
    back: Difference = msgspec.json.decode(msgspec.json.encode(sent), type=Difference)
    assert (back, back.kind, hash(back)) == (sent, kind, hash(sent))
    assert reference_words(back)
    assert device_words(back)


def test_only_what_compares_elements_counts_them() -> None:
    counted = {k for k, c in CLASSES.items() if {"count", "total"} & set(c.__struct_fields__)}
    assert counted == {k for k, c in CLASSES.items() if issubclass(c, Unequal)}
    assert counted == {Kind.BITS, Kind.VALUES, Kind.REPLICAS, Kind.PADDING}


@pytest.mark.parametrize("count", [0, -1])
def test_no_difference_is_of_no_elements(count: int) -> None:
    sent = msgspec.to_builtins(a_difference(Kind.BITS)) | {"total": count}
    with pytest.raises(msgspec.ValidationError, match=r"\$.total"):
        msgspec.convert(sent, Difference)


@pytest.mark.parametrize("subject", Subject)
def test_a_tensor_that_is_unaccounted_for_is_no_array(subject: Subject) -> None:
    found = a_difference(Kind.UNACCOUNTED, subject=subject, name="a", file="f", reason="r")
    assert (found.parameter == "a") is (subject is Subject.ARRAY)
    of_reference = subject in (Subject.TENSOR_OF_NO_PARAMETER, Subject.TENSOR_NOT_COMPARED)
    assert (source_words(found) == "f a") is of_reference


@pytest.mark.parametrize(
    ("share", "held", "replicated", "words"),
    [
        (((0, 4),), (((0, 8),),), True, "[0:8]"),
        (((0, 4),), (((4, 8),),), False, "[4:8]"),
        (((0, 4),), (((0, 4),), ((4, 8),)), True, "[0:4] and [4:8]"),
        (((0, 4),), (), False, "nothing"),
        (None, (((0, 8),),), False, "[0:8]"),
    ],
    ids=["whole", "a neighbour's", "both", "none", "no share"],
)
def test_a_shard_that_is_misplaced(
    share: tuple[tuple[int, int], ...] | None,
    held: tuple[tuple[tuple[int, int], ...], ...],
    replicated: bool,
    words: str,
) -> None:
    found = ShardMisplaced(
        part=Part.DECODER, parameter="w", share=share, held=held, device_name="cpu:1"
    )
    assert (found.replicated, device_words(found)) == (replicated, words)
