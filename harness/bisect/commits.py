"""Bisecting commits of a local clone: ``git bisect run`` over one package laid over a stack.

The clone is not touched: its commits are checked out in a work tree of the bisection's own, which
also has git's state, so that a bisection that was interrupted goes on. ``python -m
harness.bisect.commits FOLDER`` is what git runs for each commit: 0 as at the older end, 1 as at the
newer one, 125 for a commit that cannot be tried.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from harness.base.errors import BadInput, HarnessError, TargetUnavailable
from harness.base.foreign import one_line
from harness.bisect.builds import VLLM
from harness.bisect.search import Border, Mark
from harness.bisect.trial import asked_for, scenario_run
from harness.bisect.walk import (
    Bisection,
    BisectionAnswer,
    Notebook,
    Question,
    Tried,
    opened,
    save,
)

TREE = "tree"
_BEFORE, _AFTER = "before", "after"
_SKIP, _STOP = 125, 255


class Commits:
    """A bisection over commits.

    Args:
        state: see :func:`harness.bisect.walk.opened`.
        folder: where state, work tree and reports are.
        programs: of the environment that the package is laid over.
        attempt: tries the commit that is checked out; by default the scenario is run.
        say: is told a line for each trial.
    """

    def __init__(
        self,
        state: Notebook,
        folder: Path,
        programs: Path,
        attempt: Callable[[str], Tried] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.tree, self._programs = folder, folder / TREE, programs
        self.walk = Bisection(state, folder, attempt or self.run_here, say)

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.walk.state.question

    def run_here(self, commit: str) -> Tried:
        """Run the scenario with the package as it is checked out now."""
        asked, started = self.question, time.monotonic()
        _, load, issue = asked_for(asked.scenario, asked.issue, asked.target)
        reports = self.folder / "trials" / commit[:12]
        stack = f"path:{self.tree}" if asked.package == VLLM else f"path:,{self.tree}"
        found = scenario_run(
            self._programs, asked, reports, load, issue, options=[f"--stack={stack}"]
        )
        values = {name: getattr(found, name) for name in found.__struct_fields__}
        report = str(Path(found.report).relative_to(self.folder)) if found.report else ""
        seconds = round(time.monotonic() - started, 1)
        return Tried(**values | {"pair": commit, "report": report, "seconds": seconds})

    def found(self) -> BisectionAnswer:
        """Bisect, or go on; the border and how its sides came out.

        Raises:
            BadInput: a commit is none, the ends are not related, or come to the same.
            TargetUnavailable: a commit cannot be tried, or git failed.
        """
        old, new = self._ends()
        if not self._begun():
            self._begin(old, new)
        command = [sys.executable, "-m", "harness.bisect.commits", str(self.folder.resolve())]
        ran = subprocess.run(
            ["git", "-C", str(self.tree), "bisect", "run", *command],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        self._read_again()
        if ran.returncode not in (0, 2):
            raise self._failed(ran.stdout)
        return self._answer()

    def step(self) -> int:
        """Try the commit that git checked out; what git wants to hear of it."""
        commit = self._git("rev-parse", "HEAD")
        mark = self.walk.mark_of(self.walk.tried(commit))
        if mark is Mark.SKIPPED:
            return _SKIP
        return 0 if mark is self._mark_before() else 1

    def end(self) -> None:
        """Remove the work tree, and git's state with it; the reports stay."""
        clone = self.question.checkout
        subprocess.run(
            ["git", "-C", clone, "worktree", "remove", "--force", str(self.tree.resolve())],
            capture_output=True, check=False,
        )  # fmt: skip

    def _mark_before(self) -> Mark:
        trials, asked = self.walk.state.trials, self.question
        return self.walk.mark_of(trials[self._older(asked.good, asked.bad)])

    def _older(self, good: str, bad: str) -> str:
        for old, new in ((good, bad), (bad, good)):
            asked = ["git", "-C", str(self.tree), "merge-base", "--is-ancestor", old, new]
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
                return old
        raise BadInput(
            "neither commit is an ancestor of the other",
            where=f"{good} and {bad}",
            expected="two commits of one line",
            hint="git merge-base of both, which may do for one of the ends",
        )

    def _ends(self) -> tuple[str, str]:
        """The older and the newer end, both tried."""
        self._make_tree()
        asked = self.question
        old = self._older(asked.good, asked.bad)
        new = asked.bad if old == asked.good else asked.good
        if not self._begun():
            for end in (old, new):
                if end not in self.walk.state.trials:
                    self._git("checkout", "--quiet", "--detach", end)
                    self.walk.tried(end)
        self.walk.require_ends()
        return old, new

    def _make_tree(self) -> None:
        if not (self.tree / ".git").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            clone, tree = self.question.checkout, str(self.tree.resolve())
            subprocess.run(["git", "-C", clone, "worktree", "prune"], check=False)
            made = subprocess.run(
                ["git", "-C", clone, "worktree", "add", "--quiet", "--detach", tree,
                 self.question.good],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                raise self._failed(made.stderr)

    def _begun(self) -> bool:
        asked = self._git("rev-parse", "--git-path", "BISECT_START")
        return Path(self.tree, asked).exists()

    def _begin(self, old: str, new: str) -> None:
        terms = (f"--term-old={_BEFORE}", f"--term-new={_AFTER}")
        self._git("bisect", "start", *terms, new, old)

    def _answer(self) -> BisectionAnswer:
        after = self._git("rev-parse", f"refs/bisect/{_AFTER}")
        asked = self.question
        old = self._older(asked.good, asked.bad)
        line = self._git("rev-list", "--reverse", "--first-parent", f"{old}..{after}").split()
        trials, mark = self.walk.state.trials, self._mark_before()
        fits = [c for c in [old, *line] if c in trials and self.walk.mark_of(trials[c]) is mark]
        before = fits[-1]
        between = line[line.index(before) + 1 : -1] if before in line else line[:-1]
        for commit in (before, after):
            self.walk.state.dates[commit] = self._git("show", "-s", "--format=%cs %s", commit)
        save(self.folder, self.walk.state)
        return self.walk.answer(Border(before, after, tuple(between)))

    def _read_again(self) -> None:
        """What git's runs of :meth:`step` wrote meanwhile."""
        self.walk.state = opened(self.folder, self.question)

    def _git(self, *words: str) -> str:
        ran = subprocess.run(
            ["git", "-C", str(self.tree), *words], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise self._failed(ran.stderr)
        return ran.stdout.strip()

    def _failed(self, said: str) -> TargetUnavailable:
        lines = said.strip().splitlines() or ["it said nothing"]
        return TargetUnavailable(
            f"git cannot bisect: {one_line(lines[-1])}",
            where=self.question.checkout,
            expected="a clone whose commits can be checked out in a work tree",
            hint="the same command once more goes on; --fresh begins anew",
        )


def commit_of_clone(checkout: str, wanted: str) -> str:
    """The full name of a commit.

    Raises:
        BadInput: there is no clone, or no such commit.
    """
    try:
        ran = subprocess.run(
            ["git", "-C", checkout, "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise _no_commit(checkout, wanted) from error
    if ran.returncode:
        raise _no_commit(checkout, wanted)
    return ran.stdout.strip()


def _no_commit(checkout: str, wanted: str) -> BadInput:
    return BadInput(
        f"there is no commit {wanted!r}",
        where=checkout,
        expected="a clone with all commits between --good and --bad",
        hint="git fetch --tags --unshallow",
    )


def main(folder: Path) -> int:
    """One step of ``git bisect run``."""
    try:
        state = msgspec.json.decode((folder / "bisect.json").read_bytes(), type=Notebook)
        programs = Path((folder / "programs").read_text())
        say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        return Commits(state, folder, programs, say=say).step()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # git stops at 128 and above
    except HarnessError as error:
        print(f"error: {error.paragraph}", file=sys.stderr)
        return _STOP


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
