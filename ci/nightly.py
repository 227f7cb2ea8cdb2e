"""The nightly run over stacks: environment, target, scenarios, audit, properties.

Standard library only.

Exit: 0 all as expected; 1 a difference, or a known failure that did not happen; 2 bad input;
3 the run, or all that failed in it, broke off before its verdict; 4 a pair of releases that cannot
be installed or imported together, which is upstream's verdict and no difference; 75 (EX_TEMPFAIL)
the environment or the target could not be had, so nothing was compared. Only 75 is worth another
try, and CI tries again on nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import nightly_summary
import setup
from nightly_summary import Outcome, StackResult
from pairs import PairFails, SetupError, UnknownStack

INSTALLED = "installed"
PROPERTIES = ("tests/repository/test_properties.py", "tests/checkpoint/test_safetensors_file.py")
SECONDS_TO_END = 60.0
MOST_NIGHTS = 60
SECONDS_BETWEEN_LOOKS = 0.2


class Unprovisioned(Exception):
    """The environment or the target of a stack could not be had."""


class Interrupted(BaseException):
    """CI or the user ended the run."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(list(sys.argv[1:] if arguments is None else arguments))
    try:
        stacks = named(options.stacks, options.target)
    except SetupError as error:
        print(f"nightly: {error}", file=sys.stderr)
        return Outcome.BAD_INPUT
    signal.signal(signal.SIGTERM, interrupt)
    results: list[StackResult] = []
    for name, stack in stacks.items():
        results.append(run_stack(stack, StackResult(name, folder=options.out / name), options))
        if results[-1].interrupted:
            break
    outcome = nightly_summary.worst(results)
    changes = kept(results, options) if options.nights else ""
    written = nightly_summary.write(
        options.out, results, outcome, options.target, options.command, changes
    )
    print(written)
    return outcome


def kept(results: Sequence[StackResult], options: argparse.Namespace) -> str:
    """Keep the sessions as a night; what changed since the last one, as Markdown.

    A night is a folder, named by its time, with one for each stack: ``harness history`` reads them.
    """
    night = options.nights / time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    for result in results:
        session = result.folder / "session.json"
        if session.exists():
            (night / result.stack).mkdir(parents=True)
            shutil.copy(session, night / result.stack)
    for old in sorted(options.nights.glob("*T*Z"))[:-MOST_NIGHTS]:
        shutil.rmtree(old)
    programs = [result.programs for result in results if result.programs]
    if not (night.exists() and programs):
        return ""
    command = [programs[-1] / "harness", "history", "--changes", options.nights]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stdout if ran.returncode == 0 else f"No history: {ran.stderr.strip()[-500:]}\n"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; everything after ``--`` is pytest's."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser().parse_args(arguments[:cut])
    options.pytest = arguments[cut + 1 :]
    options.command = ["ci/run_nightly.sh", *arguments]
    options.out = options.out.resolve()
    options.stacks = list(dict.fromkeys(split(options.stacks or [""])))
    return options


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ci/run_nightly.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--stacks",
        action="append",
        metavar="LIST",
        help="0.21,0.29,0.33+0.32,latest,nightly; or "
        "installed: this Python's own environment; or path:VLLM[,TPU_INFERENCE]; repeatable",
    )
    add("--streamer", default="", help="another Run:ai streamer than the one upstream pins")
    add("--target", default="emulated", help="emulated, torch-xla, gpu or tpu")
    add("--checkpoint", action="append", default=[], metavar="PLACE", help="instead of the "
        "synthetic ones: a directory, s3://, gs:// or a hub id; repeatable")  # fmt: skip
    add("--out", type=Path, default=setup.ROOT / "reports" / "nightly", help="where files are left")
    add("--inside", default="", metavar="NAME", help="change one environment, .venv-NAME, from "
        "pair to pair, where another would be made for each")  # fmt: skip
    add("--families", choices=("chosen", "all"), default="all", help="chosen: one load of each "
        "family, and the special ones")  # fmt: skip
    add("--nights", type=Path, metavar="DIR", help="keep this night's sessions there, and begin "
        "the summary with what changed since the last night")  # fmt: skip
    add("--audit", action="store_true", help="audit the stack's sources too, as SARIF")
    add("--properties", action="store_true", help="try what comes in from outside with 20 000 "
        "examples of each kind, too: an hour")  # fmt: skip
    add("--workers", type=int, default=0, help="pytest workers")
    add("--attempts", type=int, default=3, help="tries to make an environment")
    add("--retry-seconds", type=float, default=20.0, help="wait between them")
    return made


def split(given: Sequence[str]) -> list[str]:
    """The stacks of all ``--stacks``; a ``path:`` has a comma of its own."""
    whole = [[value] if value.startswith("path:") else value.split(",") for value in given]
    return [stack.strip() for part in whole for stack in part]


def named(stacks: Sequence[str], target: str) -> dict[str, str]:
    """The stacks by the names of their folders.

    Raises:
        SetupError: there is no such stack, or none such for ``target``.
    """
    names: dict[str, str] = {}
    for stack in stacks:
        as_it_is = stack == INSTALLED or (setup.is_pair(stack) and target != "gpu")
        name = stack if as_it_is else setup.chosen(stack, target)
        if stack.startswith("path:"):
            name = f"path-{name}"
        names[name if name not in names else f"{name}-{len(names) + 1}"] = stack
    return names


def run_stack(stack: str, result: StackResult, options: argparse.Namespace) -> StackResult:
    """Run ``stack``; ``result`` gets its verdict, whatever ends it."""
    print(f"--- {result.stack}", flush=True)  # Buildkite folds its log at such lines
    started = time.monotonic()
    try:
        empty(result.folder)
        verify(stack, result, options)
    except Unprovisioned as error:
        result.end(Outcome.PROVISIONING, str(error))
    except PairFails as error:
        result.end(Outcome.PAIR_FAILS, str(error))
        result.pair = {
            "vllm": error.pair.vllm,
            "tpu_inference": error.pair.tpu_inference,
            "verdict": error.verdict,
            "why": error.why,
        }
    except UnknownStack as error:
        result.end(Outcome.BAD_INPUT, str(error))
    except (Interrupted, KeyboardInterrupt):
        result.end(Outcome.BROKEN, "interrupted")
        result.interrupted = True
    result.seconds = round(time.monotonic() - started, 1)
    return result


def empty(folder: Path) -> None:
    """Make ``folder`` anew: an earlier run's files must not pass for this one's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def verify(stack: str, result: StackResult, options: argparse.Namespace) -> None:
    """Make the environment, ask for the target, run the scenarios and the audit.

    Raises:
        Unprovisioned: the environment or the target cannot be had.
    """
    programs = result.programs = provision(stack, options)
    doctor = result.folder / "doctor.txt"
    ended = logged([programs / "harness", "doctor", "--target", options.target], doctor)
    if ended == Outcome.BAD_INPUT:
        return result.end(Outcome.BAD_INPUT, last_line(doctor))
    if ended:
        raise Unprovisioned(last_line(doctor))
    command = scenarios(programs, stack, options, result.folder)
    ended = logged(command, result.folder / "log.txt")
    result.end(*nightly_summary.verdict(ended, result.folder))
    if options.audit:
        audit(programs, stack, result)
    if options.properties:
        properties(programs, result)
    return None


def provision(stack: str, options: argparse.Namespace) -> Path:
    """The folder of the stack's programs; its environment is made where it is not there.

    Raises:
        Unprovisioned: it cannot be had, after so many tries where another may help.
    """
    if stack == INSTALLED:
        return Path(sys.executable).parent
    error: Exception | None = None
    for attempt in range(options.attempts):
        if attempt:
            time.sleep(options.retry_seconds)
        try:
            if options.inside and setup.is_pair(stack):
                return setup.made_pair(stack, options.streamer, inside=options.inside) / "bin"
            return setup.wanted(stack, options.target, options.streamer) / "bin"
        except (PairFails, UnknownStack):
            raise
        except SetupError as without_hope:
            raise Unprovisioned(str(without_hope)) from without_hope
        except (subprocess.CalledProcessError, OSError) as again:
            error = again
            print(f"nightly: try {attempt + 1} of {options.attempts}: {again}", file=sys.stderr)
    raise Unprovisioned(f"no environment in {options.attempts} tries: {error}")


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else f"nothing in {path.name}"


def scenarios(
    programs: Path, stack: str, options: argparse.Namespace, out: Path
) -> list[str | Path]:
    """The command that runs the scenarios; the known upstream failures must happen, no others."""
    return [
        programs / "pytest",
        "scenarios",
        f"--target={options.target}",
        "--expect=known",
        f"--families={options.families}",
        f"--reports={out}",
        *([f"--numprocesses={options.workers}"] if options.workers else []),
        *([f"--stack={stack}"] if stack.startswith("path:") else []),
        *(f"--checkpoint={place}" for place in options.checkpoint),
        *options.pytest,
    ]


def audit(programs: Path, stack: str, result: StackResult) -> None:
    """Audit the sources. Findings are counted and no failure: code scanning tells new from old."""
    sarif, log = result.folder / "audit.sarif", result.folder / "audit.txt"
    sources = stack.removeprefix("path:").split(",") if stack.startswith("path:") else []
    options = [f"{o}={s}" for o, s in zip(("--vllm", "--tpu-inference"), sources)]  # noqa: B905
    command = ["audit", "--format=sarif", f"--output={sarif}", *options]
    if logged([programs / "harness", *command], log) in (0, 1):
        result.findings = nightly_summary.findings(sarif)
    elif result.outcome is Outcome.AS_EXPECTED:
        result.end(Outcome.BROKEN, f"audit: {last_line(log)}")


def properties(programs: Path, result: StackResult) -> None:
    """Run the property tests at length. One that fails is a fault of the harness: no verdict."""
    log = result.folder / "properties.txt"
    command: list[str | Path] = [
        programs / "pytest",
        *PROPERTIES,
        "--hypothesis-profile=nightly",
        "-o",
        "timeout=0",
    ]
    ended = logged(command, log)
    if ended and result.outcome is Outcome.AS_EXPECTED:
        result.end(Outcome.BROKEN, f"properties: {last_line(log)}")


def logged(command: Sequence[str | Path], log: Path) -> int:
    """Run ``command`` with its output here and in ``log``; it is ended when this process is.

    The output goes by the file, not by a pipe: a process left behind cannot hold this one up.
    GitHub's step summary is not theirs: this run's summary has what they would add to it.
    """
    environment = {n: v for n, v in os.environ.items() if n != "GITHUB_STEP_SUMMARY"}
    with log.open("w") as output, log.open(errors="replace") as shown:
        try:
            process = subprocess.Popen(
                command, cwd=setup.ROOT, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
        except OSError as error:
            name = Path(command[0]).name
            hint = "ci/install_beside.sh, with --stacks installed"
            raise Unprovisioned(f"{name} does not start: {error}. Try: {hint}.") from error
        try:
            while process.poll() is None:
                show(shown)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            process.terminate()
            end(process)
            show(shown)
    return process.returncode


def show(log: TextIO) -> None:
    """Print what was added to ``log`` since the last look."""
    sys.stdout.write(log.read())
    sys.stdout.flush()


def end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
