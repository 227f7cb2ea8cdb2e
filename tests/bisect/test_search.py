"""The border between good and bad, and which build is tried next."""

from __future__ import annotations

import math
import random

import pytest

from harness.bisect.search import Border, Mark, border, next_build

LINE = [str(number) for number in range(40)]


def walked(line: list[str], marks: dict[str, Mark], truth: dict[str, Mark]) -> tuple[Border, int]:
    """The border that is found, and in how many trials."""
    tries = 0
    while build := next_build(line, marks):
        assert build not in marks
        marks[build] = truth[build]
        tries += 1
    return border(line, marks), tries


@pytest.mark.parametrize("at", range(1, 40))
@pytest.mark.parametrize("old", [Mark.GOOD, Mark.BAD])
def test_every_border_is_found_in_a_few_trials(at: int, old: Mark) -> None:
    new = Mark.BAD if old is Mark.GOOD else Mark.GOOD
    truth = {build: old if number < at else new for number, build in enumerate(LINE)}
    found, tries = walked(LINE, {LINE[0]: old, LINE[-1]: new}, truth)
    assert found == (str(at - 1), str(at), ())
    assert tries <= math.ceil(math.log2(len(LINE)))


@pytest.mark.parametrize("seed", range(40))
def test_builds_that_say_nothing_are_gone_round(seed: int) -> None:
    draw = random.Random(seed)
    at = draw.randrange(1, 40)
    truth = {build: Mark.GOOD if n < at else Mark.BAD for n, build in enumerate(LINE)}
    truth |= dict.fromkeys(draw.sample(LINE[1:-1], 15), Mark.SKIPPED)
    found, _ = walked(LINE, {LINE[0]: Mark.GOOD, LINE[-1]: Mark.BAD}, truth)
    assert truth[found.before] is Mark.GOOD
    assert truth[found.after] is Mark.BAD
    assert int(found.before) < at <= int(found.after)
    assert all(truth[build] is Mark.SKIPPED for build in found.between)
    assert list(found.between) == LINE[int(found.before) + 1 : int(found.after)]


def test_neighbours_need_no_trial() -> None:
    marks = {"0": Mark.GOOD, "1": Mark.BAD}
    assert next_build(["0", "1"], marks) is None
    assert border(["0", "1"], marks) == ("0", "1", ())
