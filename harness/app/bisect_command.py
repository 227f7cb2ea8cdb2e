"""``harness bisect``: the options, and what it prints."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from harness.base.errors import BadInput, TargetUnavailable
from harness.bisect.builds import (
    TPU_INFERENCE,
    VLLM,
    chosen_version,
    days_between,
    releases_between,
)
from harness.bisect.commits import Commits, commit_of_clone
from harness.bisect.search import Border
from harness.bisect.trial import (
    VersionTrial,
    asked_for,
    built_on,
    require_checkout,
    set_up,
    versions_of,
)
from harness.bisect.walk import Bisection, BisectionAnswer, Notebook, Question, opened, save
from harness.load.stack import chronological

_PACKAGES = (TPU_INFERENCE, VLLM)


@click.command("bisect")
@click.option("--good", required=True, help="A version that works, or with --checkout a commit.")
@click.option("--bad", required=True, help="One that does not; give the older one to find a fix.")
@click.option("--package", type=click.Choice(_PACKAGES), default=TPU_INFERENCE, show_default=True)
@click.option("--scenario", default="", help="Run this scenario; an outcome as at --bad is bad.")
@click.option("--issue", default="", help="A build that shows this known issue is bad.")
@click.option("--other", default="", help="Fix the other package's version; by default it follows.")
@click.option(
    "--checkout", type=click.Path(path_type=Path), help="Search the commits of this clone."
)
@click.option("--stack", default="", help="With --checkout: the pair to lay it over.")
@click.option("--target", default="emulated", show_default=True, help="Where to load the model.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for state and reports.")
@click.option("--fresh", is_flag=True, help="Forget earlier trials and start over.")
def bisect_command(
    good: str,
    bad: str,
    package: str,
    scenario: str,
    issue: str,
    other: str,
    checkout: Path | None,
    stack: str,
    target: str,
    out: Path | None,
    fresh: bool,
) -> None:
    """Find the upstream build that broke or fixed a scenario.

    Tries releases of one package, then its daily builds; the other package follows. Skips what
    cannot be installed or imported. After an interruption the same command goes on.
    """
    require_checkout()
    if not (scenario or issue):
        raise BadInput(
            "nothing to run",
            where="harness bisect",
            expected="--scenario NAME or --issue ID",
            hint="--scenario vl-fused",
        )
    name, load, row = asked_for(scenario, issue, target)
    asked = Question(
        package=package, good=good, bad=bad, scenario=name, issue=issue, other=other,
        target=target, checkout=str(checkout.resolve()) if checkout else "", stack=stack,
    )  # fmt: skip
    folder = out or Path("reports") / "bisect" / f"{package}-{good}-{bad}-{issue or name}"
    with alone(folder):
        if checkout:
            _over_commits(asked, folder, fresh)
            return
        state, versions, others = _line(asked, folder, fresh)
        trial = VersionTrial(state.question, folder, others, load, row)
        walk = Bisection(state, folder, trial, lambda line: click.echo(line, err=True))
        found = _walked(walk, versions)
        _date(state, folder, found.border)
        _print(found, state, folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep another bisection out of the folder.

    Raises:
        TargetUnavailable: one is running there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TargetUnavailable(
                "another bisection is running there",
                where=str(folder),
                expected="a folder for each",
                hint="another --out",
            ) from error
        yield


def _line(asked: Question, folder: Path, fresh: bool) -> tuple[Notebook, list[str], list[str]]:
    """The state, and the versions of both packages; asked of the index once for a bisection."""
    other = VLLM if asked.package == TPU_INFERENCE else TPU_INFERENCE
    listed = folder / "versions.json"
    if fresh:
        listed.unlink(missing_ok=True)
    known = _listed(listed, asked.package, other)
    good, bad = (chosen_version(asked.package, v, known[0]) for v in (asked.good, asked.bad))
    if good == bad:
        raise BadInput(
            f"both ends are {good}",
            where="--good and --bad",
            expected="two versions",
            hint="0.26 and 0.32",
        )
    wanted = chosen_version(other, asked.other, known[1]) if asked.other else ""
    question = Question(
        package=asked.package, good=good, bad=bad, scenario=asked.scenario, issue=asked.issue,
        other=wanted, target=asked.target,
    )  # fmt: skip
    return opened(folder, question, fresh=fresh), *known


def _listed(file: Path, package: str, other: str) -> tuple[list[str], list[str]]:
    if not file.exists():
        file.write_text(json.dumps([versions_of(package), versions_of(other)]))
    mine, others = json.loads(file.read_text())
    return mine, others


def _walked(walk: Bisection, versions: list[str]) -> BisectionAnswer:
    """Over releases, and then over the builds of the days between the two that were found."""
    asked = walk.state.question
    old, new = sorted((asked.good, asked.bad), key=chronological)
    walk.require_ends()
    found = walk.narrowed(releases_between(versions, old, new))
    found = walk.narrowed(days_between(versions, found.before, found.after))
    return walk.answer(found)


def _date(state: Notebook, folder: Path, found: Border) -> None:
    for version in (found.before, found.after):
        if version not in state.dates:
            state.dates[version] = built_on(state.question.package, version)
    save(folder, state)


def _over_commits(asked: Question, folder: Path, fresh: bool) -> None:
    good, bad = (commit_of_clone(asked.checkout, c) for c in (asked.good, asked.bad))
    question = Question(
        package=asked.package, good=good, bad=bad, scenario=asked.scenario, issue=asked.issue,
        target=asked.target, checkout=asked.checkout, stack=asked.stack,
    )  # fmt: skip
    state = opened(folder, question, fresh=fresh)
    save(folder, state)
    ran = set_up(*filter(None, [asked.stack]), "--target", asked.target)
    if ran.returncode:
        raise TargetUnavailable(
            ran.stderr.strip().splitlines()[-1],
            where="--stack",
            expected="a stack that works",
            hint="the stack nearest to the commits",
        )
    programs = Path(ran.stdout.strip()) / "bin"
    (folder / "programs").write_text(str(programs))
    commits = Commits(state, folder, programs, say=lambda line: click.echo(line, err=True))
    if fresh:
        commits.end()
    found = commits.found()
    _print(found, commits.walk.state, folder)
    commits.end()


def _print(found: BisectionAnswer, state: Notebook, folder: Path) -> None:
    """The border: both sides, their dates, how they came out, and where their reports are."""
    package, border = state.question.package, found.border
    first, last = f"first {found.first}", f"last {'good' if found.first == 'bad' else 'bad'}"
    for words, build, outcome in ((first, border.after, found.after),
                                  (last, border.before, found.before)):  # fmt: skip
        date = state.dates.get(build) or "date unknown"
        click.echo(f"{words:<11}{package} {build} ({date}): {outcome.words}")
        click.echo(f"{'':<11}tried as {outcome.pair}; report: {folder / outcome.report}")
    for build in border.between:
        why = state.trials[build].why or state.trials[build].words if build in state.trials else ""
        click.echo(f"{'skipped':<11}{package} {build}: {why or 'not tried'}")
    sys.stdout.flush()
