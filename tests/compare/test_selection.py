"""Selections choose what they say, the same on every machine, and count what they leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.compare.selection import Selection, choose, every_expert, expert_bytes
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint

Pairs = dict[Part, list[tuple[int, int]]]


@pytest.fixture(scope="module")
def parts(tiny_checkpoints: dict[str, Path]) -> tuple[ReferencePart, ...]:
    """A decoder of 2 layers and a draft model of 1, 8 experts each."""
    return reference_parts(ModelCheckpoint(tiny_checkpoints["qwen3.6-mtp"]))


def chosen(parts: tuple[ReferencePart, ...], selection: Selection) -> Pairs:
    found = choose(parts, selection)
    return {
        p.part: [(layer, e) for layer in p.layers for e in found[p.part].of(layer)] for p in parts
    }


def test_all_by_default(parts: tuple[ReferencePart, ...]) -> None:
    assert chosen(parts, Selection()) == {p.part: list(every_expert(p)) for p in parts}


@pytest.mark.parametrize(
    ("selection", "decoder", "mtp"),
    [
        (Selection(layers="-1", experts="0"), [(1, 0)], [(0, 0)]),
        (Selection(layers="1", experts="0-1,7"), [(1, 0), (1, 1), (1, 7)], []),
        (Selection(layers="0,1", experts="-1"), [(0, 7), (1, 7)], [(0, 7)]),
        (Selection(layers="0-1", experts="3, 3"), [(0, 3), (1, 3)], [(0, 3)]),
    ],
)
def test_layers_and_experts(
    parts: tuple[ReferencePart, ...],
    selection: Selection,
    decoder: list[tuple[int, int]],
    mtp: list[tuple[int, int]],
) -> None:
    assert chosen(parts, selection) == {Part.DECODER: decoder, Part.MTP: mtp}


def test_a_sample_follows_from_its_seed(parts: tuple[ReferencePart, ...]) -> None:
    first = chosen(parts, Selection(sample=6))
    assert first == chosen(parts, Selection(sample=6, seed=0))
    assert first != chosen(parts, Selection(sample=6, seed=1))
    assert sum(map(len, first.values())) == 6
    assert chosen(parts, Selection(sample=99)) == chosen(parts, Selection())


def test_a_budget_is_kept(parts: tuple[ReferencePart, ...]) -> None:
    nbytes = expert_bytes(parts[0])
    found = choose(parts, Selection(max_bytes=5 * nbytes + 1))
    assert sum(c.count for c in found.values()) == 5
    assert sum(c.left_out for c in found.values()) == 24 - 5


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("layers", "2", "there is no layer 2"),
        ("layers", "-3", "there is no layer -3"),
        ("experts", "0-8", "there is no expert 8"),
        ("experts", "3-1", "not a list of numbers and ranges: '3-1'"),
        ("experts", "a", "not a list of numbers and ranges: 'a'"),
        ("experts", "1,,2", "not a list of numbers and ranges: ''"),
        ("experts", "-3-5", "not a list of numbers and ranges"),
        ("sample", 0, "leaves nothing"),
        ("sample", -1, "leaves nothing"),
        ("max_bytes", 100, "leaves nothing"),
    ],
)
def test_bad_selections(
    parts: tuple[ReferencePart, ...], option: str, value: str | int, match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        choose(parts, Selection(**{option: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["0", "3"])
def test_bad_numbers_of_layers(tiny_checkpoints: dict[str, Path], number: str) -> None:
    at = str(tiny_checkpoints["qwen3-vl-moe"])
    result = CliRunner().invoke(main, ["verify", at, "--num-layers", number])
    assert result.exit_code == 2
    assert f"a load of {number} layers" in result.stderr
