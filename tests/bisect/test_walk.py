"""A bisection: interrupted and continued, with builds that cannot be installed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import BadInput, TargetUnavailable
from harness.bisect.search import Mark
from harness.bisect.walk import STATE_FILE, Bisection, Question, Tried, opened, save

LINE = [f"0.{number}.0" for number in range(20)]
BAD_FROM = 13
ASKED = Question(package="tpu-inference", good=LINE[0], bad=LINE[-1], scenario="vl-fused")


def outcome(version: str) -> Tried:
    bad = LINE.index(version) >= BAD_FROM
    return Tried(words="different: zeros" if bad else "equal", shows=bad, pair=version)


class Attempts:
    """Tries builds; ends as it is told to at some of them."""

    def __init__(self, ends: dict[int, Exception | Tried | type[BaseException]]) -> None:
        self.ends, self.tried = ends, list[str]()

    def __call__(self, version: str) -> Tried:
        end = self.ends.get(len(self.tried))
        self.tried.append(version)
        if isinstance(end, Tried):
            return end
        if end is not None:
            raise end
        return outcome(version)


def bisection(
    folder: Path,
    attempt: Callable[[str], Tried],
    asked: Question = ASKED,
    said: list[str] | None = None,
) -> Bisection:
    return Bisection(
        opened(folder, asked), folder, attempt, (said if said is not None else []).append
    )


def test_the_first_bad_build(tmp_path: Path) -> None:
    said: list[str] = []
    walk = bisection(tmp_path, Attempts({}), said=said)
    walk.require_ends()
    found = walk.answer(walk.narrowed(LINE))
    assert (found.border.before, found.border.after) == (LINE[BAD_FROM - 1], LINE[BAD_FROM])
    assert (found.first, found.before.words, found.after.words) == (
        Mark.BAD, "equal", "different: zeros",
    )  # fmt: skip
    assert said[0] == "0.0.0: equal, 0 s"


def test_the_first_good_build_where_the_bad_one_is_older(tmp_path: Path) -> None:
    asked = Question(package="vllm", good=LINE[-1], bad=LINE[0], scenario="s", issue="i")

    def mended(version: str) -> Tried:
        good = LINE.index(version) >= BAD_FROM
        return Tried(words="equal" if good else "load-failed", shows=not good)

    walk = bisection(tmp_path, mended, asked)
    found = walk.answer(walk.narrowed(LINE))
    assert (found.first, found.border.after) == (Mark.GOOD, LINE[BAD_FROM])


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TargetUnavailable])
def test_interrupted_and_continued(tmp_path: Path, at: int, error: type[Exception]) -> None:
    """Whatever ends it, and at whatever trial: nothing is tried twice but what did not end."""
    raised = (
        TargetUnavailable("no network", where="", expected="", hint="")
        if error is TargetUnavailable
        else error()
    )
    first = Attempts({at: raised})
    with pytest.raises(error):
        bisection(tmp_path, first).narrowed(LINE)
    second = Attempts({})
    found = bisection(tmp_path, second).narrowed(LINE)
    assert (found.before, found.after) == (LINE[BAD_FROM - 1], LINE[BAD_FROM])
    assert second.tried[0] == first.tried[-1]
    assert not set(first.tried[:-1]) & set(second.tried)
    alone = Attempts({})
    bisection(tmp_path / "alone", alone).narrowed(LINE)
    assert first.tried[:-1] + second.tried == alone.tried


def test_builds_that_cannot_be_installed_in_between(tmp_path: Path) -> None:
    def attempt(version: str) -> Tried:
        if LINE.index(version) in range(8, BAD_FROM):
            return Tried(why="cannot be imported together")
        return outcome(version)

    walk = bisection(tmp_path, attempt)
    found = walk.narrowed(LINE)
    assert (found.before, found.after) == (LINE[7], LINE[BAD_FROM])
    assert list(found.between) == LINE[8:BAD_FROM]
    assert {walk.marks()[build] for build in found.between} == {Mark.SKIPPED}


def test_another_failure_in_between_says_nothing(tmp_path: Path) -> None:
    def attempt(version: str) -> Tried:
        return Tried(words="load-failed: KeyError") if version == LINE[9] else outcome(version)

    walk = bisection(tmp_path, attempt)
    found = walk.narrowed(LINE)
    assert found.after == LINE[BAD_FROM]
    assert walk.mark_of(walk.state.trials[LINE[9]]) is Mark.SKIPPED


def test_a_failure_that_hides_an_issue_says_nothing(tmp_path: Path) -> None:
    asked = Question(package="vllm", good=LINE[0], bad=LINE[-1], scenario="s", issue="i")

    def attempt(version: str) -> Tried:
        if version == LINE[9]:
            return Tried(words="load-failed: KeyError", shows=None)
        return outcome(version)

    walk = bisection(tmp_path, attempt, asked)
    assert walk.narrowed(LINE).after == LINE[BAD_FROM]
    assert walk.marks()[LINE[9]] is Mark.SKIPPED


@pytest.mark.parametrize(
    ("good", "bad", "issue", "match"),
    [
        (Tried(words="equal"), Tried(words="equal"), "", "both ends come to the same: equal"),
        (Tried(words="equal", shows=False), Tried(words="different", shows=False), "i",
         "the ends are not good and bad"),
        (Tried(words="different", shows=True), Tried(words="equal", shows=False), "i",
         "the ends are not good and bad"),
    ],
)  # fmt: skip
def test_ends_that_are_none(
    tmp_path: Path, good: Tried, bad: Tried, issue: str, match: str
) -> None:
    asked = Question(package="vllm", good="1", bad="2", scenario="s", issue=issue)
    with pytest.raises(BadInput, match=match):
        bisection(tmp_path, {"1": good, "2": bad}.__getitem__, asked).require_ends()


def test_an_end_that_cannot_be_tried(tmp_path: Path) -> None:
    walk = bisection(tmp_path, lambda version: Tried(why="cannot be imported"))
    with pytest.raises(TargetUnavailable, match=r"0\.0\.0 cannot be tried: cannot be imported"):
        walk.require_ends()


def test_another_question_is_not_gone_on_with(tmp_path: Path) -> None:
    save(tmp_path, opened(tmp_path, ASKED))
    other = Question(package="vllm", good="1", bad="2", scenario="s")
    with pytest.raises(BadInput, match="another question"):
        opened(tmp_path, other)
    assert opened(tmp_path, other, fresh=True).question == other


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', "{"])
def test_what_is_no_state(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(BadInput, match="not the state of a bisection"):
        opened(tmp_path, ASKED)
