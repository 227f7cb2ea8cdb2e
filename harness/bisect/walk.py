"""A bisection: its question, what was tried so far, and the walk from the ends to the border.

What was tried is written after each trial, so a bisection that was interrupted, or killed, goes on
where it was: the same question in the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harness.base.errors import BadInput, TargetUnavailable
from harness.base.writing import indented, write
from harness.bisect.search import Border, Mark, border, next_build

SCHEMA = 1
STATE_FILE = "bisect.json"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked; a bisection goes on only where it is asked the same.

    Attributes:
        package: ``vllm`` or ``tpu-inference``.
        good: the version, or commit, at the end that is in order.
        bad: the one at the other end; older than ``good`` where a fix is looked for.
        scenario: the one that is run.
        issue: the known issue that makes a build bad; empty where the outcome at ``bad`` does.
        other: the version of the other package; empty where it follows.
        target: where to load to.
        checkout: of commits, the clone; empty for versions.
        stack: of commits, the pair whose environment is used.
    """

    package: str
    good: str
    bad: str
    scenario: str
    issue: str = ""
    other: str = ""
    target: str = "emulated"
    checkout: str = ""
    stack: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial saw.

    Attributes:
        words: status and causes; empty where there was no verdict.
        shows: whether the known issue of the question is to be seen; None where none is asked for,
            or another failure hides it.
        why: where there was no verdict, why not.
        pair: the versions that were tried.
        report: the session, relative to the bisection's folder; empty for none.
        seconds: that it took.
    """

    words: str = ""
    shows: bool | None = None
    why: str = ""
    pair: str = ""
    report: str = ""
    seconds: float = 0.0


class Notebook(msgspec.Struct, kw_only=True):
    """All that is known: the question, the line of builds, and every trial by its build."""

    schema: int = SCHEMA
    question: Question
    lines: list[list[str]] = []
    trials: dict[str, Tried] = {}
    dates: dict[str, str] = {}


class BisectionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The border, and how each of its sides came out."""

    border: Border
    first: Mark
    before: Tried
    after: Tried


def opened(folder: Path, question: Question, *, fresh: bool = False) -> Notebook:
    """The state in ``folder``, or a new one.

    Raises:
        BadInput: the folder holds another question's, or no state.
    """
    file = folder / STATE_FILE
    if fresh or not file.exists():
        return Notebook(question=question)
    try:
        state = msgspec.json.decode(file.read_bytes(), type=Notebook)
    except msgspec.DecodeError as error:
        raise BadInput(
            f"not the state of a bisection: {error}",
            where=str(file),
            expected="what harness bisect wrote",
            hint="--fresh begins anew",
        ) from error
    if state.question != question:
        raise BadInput(
            "the folder holds the bisection of another question",
            where=str(file),
            expected=msgspec.json.encode(question).decode(),
            hint="another --out, or --fresh, which begins anew",
        )
    return state


def save(folder: Path, state: Notebook) -> None:
    """Write the state; it is there as a whole, whatever ends this process."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / STATE_FILE, indented(state))


class Bisection:
    """One bisection over versions.

    Args:
        state: see :func:`opened`.
        folder: where it is saved.
        attempt: tries a build; what it raises ends the bisection, which can go on later.
        say: is told a line for each trial.
    """

    def __init__(
        self,
        state: Notebook,
        folder: Path,
        attempt: Callable[[str], Tried],
        say: Callable[[str], None],
    ) -> None:
        self.state, self._folder, self._attempt, self._say = state, folder, attempt, say

    def tried(self, build: str) -> Tried:
        """How a build came out; tried where it was not before."""
        if build not in self.state.trials:
            self.state.trials[build] = self._attempt(build)
            save(self._folder, self.state)
            found = self.state.trials[build]
            self._say(f"{build}: {found.words or 'skipped: ' + found.why}, {found.seconds:.0f} s")
        return self.state.trials[build]

    def require_ends(self) -> None:
        """Try both ends.

        Raises:
            TargetUnavailable: one cannot be tried.
            BadInput: they come to the same, or not to what they are said to.
        """
        asked = self.state.question
        for build in (asked.good, asked.bad):
            if not self.tried(build).words:
                raise TargetUnavailable(
                    f"{asked.package} {build} cannot be tried: {self.tried(build).why}",
                    where="harness bisect",
                    expected="an end that installs, imports and has a verdict",
                    hint="another --good or --bad, or another release of the other package",
                )
        good, bad = self.state.trials[asked.good], self.state.trials[asked.bad]
        if asked.issue and (good.shows, bad.shows) != (False, True):
            raise BadInput(
                f"the ends are not good and bad: {asked.good} is {good.words}, {asked.bad} is "
                f"{bad.words}",
                where=f"--issue {asked.issue}",
                expected="an issue that shows at --bad and not at --good",
                hint="another end, or --scenario with any difference between both",
            )
        if good.words == bad.words:
            raise BadInput(
                f"both ends come to the same: {good.words}",
                where=f"{asked.package} {asked.good} and {asked.bad}",
                expected="a scenario that ends otherwise at --bad than at --good",
                hint="another scenario, or other ends",
            )

    def marks(self) -> dict[str, Mark]:
        """What each trial says."""
        return {build: self.mark_of(found) for build, found in self.state.trials.items()}

    def mark_of(self, found: Tried) -> Mark:
        """Like which end a build came out; neither is skipped, as is what has no verdict."""
        asked = self.state.question
        if not found.words:
            return Mark.SKIPPED
        if asked.issue:
            known = {True: Mark.BAD, False: Mark.GOOD, None: Mark.SKIPPED}
            return known[found.shows]
        ends = {self.state.trials[asked.bad].words: Mark.BAD}
        ends[self.state.trials[asked.good].words] = Mark.GOOD
        return ends.get(found.words, Mark.SKIPPED)

    def narrowed(self, line: Sequence[str]) -> Border:
        """Try builds of ``line`` until there is no more between the two sides to try."""
        self.require_ends()
        while build := next_build(line, self.marks()):
            self.tried(build)
        return border(line, self.marks())

    def answer(self, found: Border) -> BisectionAnswer:
        """The border with its two outcomes."""
        trials = self.state.trials
        return BisectionAnswer(
            border=found,
            first=self.mark_of(trials[found.after]),
            before=trials[found.before],
            after=trials[found.after],
        )
