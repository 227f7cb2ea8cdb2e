"""Makes the environment of a stack: ``python3 ci/setup.py [STACK]``, standard library only.

Prints the environment's directory. Does nothing when that environment was made from the same
requirements files already. uv is taken from PATH or installed from the package index. STACK is one
of the pinned stacks, any pair of releases (:mod:`pairs`), ``path:VLLM[,TPU_INFERENCE]``, or
``installed``: the environment of the Python that runs this, as it is.

Exit: 0 made, 2 bad input or no environment, 4 a pair of releases that does not work together.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pairs
from pairs import Pair, PairFails, SetupError

ROOT = Path(__file__).resolve().parent.parent
STACKS = ROOT / "ci" / "stacks"
RELEASE = re.compile(r"version = '(\d+\.\d+\.\d+)")
#: What a stack needs besides to run on a GPU: ``jax[cuda…]`` of its own jax, by stack.
CUDA = STACKS / "cuda"
UV = "uv==0.13.9"
DOCS_PYTHON = "3.11"  # the oldest that docs.txt is for


#: How a pair that does not work together ends; as ``harness verify`` without its stack.
PAIR_FAILS = 4
#: Requirements, locks and verdicts of pairs.
STATE = pairs.STATE
#: In an environment: whether its releases can be imported together, and what it was made from.
_PROBED = ".imports"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?", default="", help="the default one for this Python")
    parser.add_argument("--target", default="emulated", help="what the environment is to run on")
    parser.add_argument(
        "--streamer", default="", help="a Run:ai streamer that is not upstream's pin"
    )
    parser.add_argument("--again", action="store_true", help="resolve a pair anew")
    parser.add_argument("--prune", type=float, metavar="DAYS", help="remove the environments of "
        "pairs that nobody used for so long")  # fmt: skip
    parser.add_argument("--inside", default="", metavar="NAME", help="change .venv-NAME into the "
        "pair's environment, where another would be made beside it")  # fmt: skip
    parser.add_argument("--versions", metavar="PACKAGE", help="list what the package index has")
    parser.add_argument("--built", metavar="PACKAGE==VERSION", help="print the day it was built")
    parser.add_argument("--lock", action="store_true", help="compile the requirements files anew")
    parser.add_argument("--docs", action="store_true", help="what builds docs/ as a site")
    parser.add_argument("--uv", action="store_true", help="print where uv is; it is made there")
    parser.add_argument("--python", action="store_true", help="print the Python of the stack")
    options = parser.parse_args()
    try:
        if options.lock:
            lock()
        elif options.uv:
            print(find_uv())
        elif options.python:
            print(stacks()[choose(options.stack)]["python"])
        elif options.docs:
            print(docs())
        elif options.prune is not None:
            prune(options.prune)
        elif options.versions:
            print(json.dumps(index()(options.versions)))
        elif options.built:
            print(built_on(options.built))
        elif options.stack == "installed":
            print(sys.prefix)
        elif options.inside:
            print(made_pair(options.stack, options.streamer, inside=options.inside))
        else:
            print(wanted(options.stack, options.target, options.streamer, again=options.again))
    except PairFails as error:
        print(f"setup: {error}", file=sys.stderr)
        return PAIR_FAILS
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"setup: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 2
    return 0


def wanted(stack: str, target: str, streamer: str = "", *, again: bool = False) -> Path:
    """The environment of ``stack``, pinned or not, made unless it is there already.

    Raises:
        PairFails: the releases do not work together.
        SetupError: there is no such stack, or it cannot be made here.
    """
    if is_pair(stack):
        if target == "gpu":
            choose_gpu(stack)
        return made_pair(stack, streamer, again=again)
    name = chosen(stack, target)
    if not streamer:
        return made(name, target)
    if target == "gpu":
        raise SetupError("a GPU's stack has its own streamer. Expected: STREAMER= with no GPU.")
    return made_with_streamer(name, streamer, again=again)


def is_pair(stack: str) -> bool:
    """Whether ``stack`` is a pair of releases that nobody pinned."""
    return stack not in stacks() and pairs.is_spelling(stack)


def pair_python() -> str:
    """The Python that pairs are resolved for: that of the newest pinned stack."""
    return max((str(row["python"]) for row in stacks().values()), key=version)


def index() -> pairs.Index:
    return pairs.Index(find_pip, pair_python())


def built_on(text: str) -> str:
    """The day that ``package==version`` was built; empty where nothing tells it."""
    package, _, wanted = text.partition("==")
    with tempfile.TemporaryDirectory() as folder:
        return pairs.built_on(package, wanted, find_pip(), Path(folder))


def made_pair(stack: str, streamer: str = "", *, again: bool = False, inside: str = "") -> Path:
    """The environment of the first pair that ``stack`` stands for and that works.

    Args:
        stack: a spelling.
        streamer: another than upstream's pin.
        again: resolve anew.
        inside: the name of an environment that is changed into the pair's.

    Raises:
        PairFails: the wanted one does not work, nor does another that it may stand for.
    """
    failed: list[PairFails] = []
    for pair in known(stack, streamer) or pairs.candidates(stack, index(), streamer):
        try:
            return environment_of_pair(pair, again=again, inside=inside)
        except PairFails as error:
            failed.append(error)
            if stack == pairs.LATEST and error.verdict != "unresolvable":
                break  # these are the newest that install together: that they do not work is news
            if stack in (pairs.LATEST, pairs.NIGHTLY):
                pairs.note(str(error))
    raise failed[0]


def known(stack: str, streamer: str) -> list[Pair]:
    """The pair that ``stack`` names in full and that was resolved before: no index is asked."""
    vllm, _, tpu = stack.partition("+")
    pair = Pair(vllm, tpu, streamer)
    return [pair] if (STATE / f"{pair.name}.txt").exists() else []


def environment_of_pair(pair: Pair, *, again: bool = False, inside: str = "") -> Path:
    """The environment of a pair, and that its releases can be imported together there.

    Raises:
        PairFails: they cannot be installed or imported together, or have no worker.
    """
    python, at = pair_python(), ROOT / f".venv-{inside or pair.name}"
    with locked(f"{pair.name}.resolving"):
        requirements = pairs.compiled(pair, find_uv(), python, again=again)
    made = environment(at, python, requirements, project=True, change=bool(inside))
    probe(made, pair)
    return made


def made_with_streamer(stack: str, streamer: str, *, again: bool = False) -> Path:
    """The environment of a pinned stack with another streamer, all else as it is pinned."""
    row, name = stacks()[stack], f"{stack}{pairs.streamer_suffix(streamer)}"
    pairs.picked(pairs.STREAMER, streamer, index())
    requirements = STATE / f"{name}.txt"
    if again or not requirements.exists():
        pins = (STACKS / f"{stack}.txt").read_text().splitlines()
        kept = [pin for pin in pins if not pin.startswith((pairs.STREAMER, "#"))]
        overrides = [(STACKS / f"{other}.overrides").read_text() for other in row["overrides"]]
        overrides.append(pairs.streamer_override(streamer))
        lines = [*kept, f"{pairs.STREAMER}[s3,gcs]=={streamer}"]
        with pairs.verdict_over(Pair(stack, stack, streamer)):
            pairs.resolve(requirements, lines, overrides, find_uv(), row["python"])
    return environment(ROOT / f".venv-{name}", row["python"], requirements, project=True)


def probe(at: Path, pair: Pair) -> None:
    """Import the pair's releases together, once for each environment.

    Raises:
        PairFails: they cannot be, or have no worker.
    """
    told = at / _PROBED
    made_from = (at / ".requirements").read_text()
    found = json.loads(told.read_text()) if told.exists() else {}
    if found.get("made_from") != made_from:
        command = [str(at / "bin" / "python"), "-m", "harness.load.importable"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = ran.stdout.strip().splitlines()
        if ran.returncode or not lines:
            raise SetupError(f"{at} does not start: {ran.stderr.strip()[-2000:]}")
        found = {"made_from": made_from, **json.loads(lines[-1])}
        told.write_text(json.dumps(found))
    if found["verdict"] != "works":
        raise PairFails(pair, found["verdict"], found["why"])


def prune(days: float) -> None:
    """Remove the environments of pairs that were not asked for in so many ``days``.

    Their requirements stay: the same pair is made of the same ones again.
    """
    for at in sorted(ROOT.glob(".venv-*+*")):
        stamp = at / ".requirements"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < days * 86400:
            continue
        with locked(at.name):
            shutil.rmtree(at)
        print(f"setup: removed {at.name}", file=sys.stderr)
    shutil.rmtree(STATE / "metadata", ignore_errors=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other set-ups of this checkout away from ``name``; wait for one that has it."""
    STATE.mkdir(exist_ok=True)
    with (STATE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stacks() -> dict[str, dict[str, Any]]:
    """The table of stacks: the Python each is pinned for, and the overrides it resolves with."""
    table: dict[str, dict[str, Any]] = json.loads((STACKS / "stacks.json").read_text())
    return table


def choose(stack: str, running: tuple[int, int] = sys.version_info[:2]) -> str:
    """The stack asked for, or the default one: the newest that runs on this Python."""
    table = stacks()
    if stack in table:
        return stack
    if stack.startswith("path:"):
        checkout = stack.removeprefix("path:").split(",")[0]
        return nearest(Path(checkout).expanduser()) if checkout else choose("", running)
    wanted = ", ".join(f"{name} (Python {row['python']})" for name, row in table.items())
    if stack:
        raise SetupError(f"unknown stack {stack!r}. Expected: one of {wanted}.")
    fitting = [name for name, row in table.items() if version(row["python"]) <= running]
    if not fitting:
        raise SetupError(
            f"no stack runs on Python {running[0]}.{running[1]} ({sys.executable}). "
            f"Expected: {wanted}. Try: make PYTHON=python3.11, or a later one."
        )
    return max(fitting, key=version)


def chosen(stack: str, target: str) -> str:
    """The stack asked for, or the default one, that can run on ``target``."""
    return choose_gpu(stack) if target == "gpu" else choose(stack)


def choose_gpu(stack: str) -> str:
    """The stack asked for, or the newest, of those that have requirements for a GPU."""
    able = sorted((path.stem for path in CUDA.glob("*.txt")), key=version)
    wanted = choose(stack) if stack else able[-1]
    if wanted not in able:
        raise SetupError(
            f"stack {wanted} has no requirements for a GPU. Expected: one of {', '.join(able)}. "
            f"Try: make verify TARGET=gpu STACK={able[-1]}."
        )
    return wanted


def nearest(checkout: Path) -> str:
    """The newest stack that is not newer than a vLLM checkout."""
    release = checkout_version(checkout)
    not_newer = [name for name in stacks() if version(name) <= release[:2]]
    if not not_newer:
        raise SetupError(
            f"{checkout} is vLLM {'.'.join(map(str, release))}, older than every stack. "
            f"Expected: {min(stacks(), key=version)} or later."
        )
    return max(not_newer, key=version)


def checkout_version(checkout: Path) -> tuple[int, ...]:
    """A vLLM checkout's version: what its build wrote, or the last tag git knows."""
    for written in (checkout / "vllm" / "_version.py", checkout / "_version.py"):
        if written.is_file() and (found := RELEASE.search(written.read_text())):
            return version(found[1])
    git = ["git", "-C", str(checkout), "describe", "--tags", "--abbrev=0", "--match", "v*"]
    ran = subprocess.run(git, capture_output=True, text=True, check=False)
    if ran.returncode == 0 and (found := re.match(r"v(\d+\.\d+\.\d+)", ran.stdout)):
        return version(found[1])
    raise SetupError(
        f"the version of {checkout} cannot be told. Expected: a vLLM checkout with "
        "vllm/_version.py or with tags. Try: git fetch --tags."
    )


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def find_python(wanted: str, uv: str) -> str:
    """An interpreter of version ``wanted``: the running one, or from PATH, pyenv or uv."""
    if sys.version_info[:2] == version(wanted):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    from_path = filter(None, [shutil.which(f"python{wanted}")])
    for candidate in [*from_path, *sorted(map(str, pyenv.glob(f"{wanted}.*/bin/python")))]:
        if answers(candidate) == wanted:
            print(f"setup: Python {wanted} is {candidate}", file=sys.stderr)
            return candidate
    found = subprocess.run(
        [uv, "python", "find", "--no-python-downloads", wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == 0:
        print(f"setup: Python {wanted} is {found.stdout.strip()}", file=sys.stderr)
        return found.stdout.strip()
    raise SetupError(
        f"this stack needs Python {wanted}; none was found on PATH, under {pyenv}, or by uv. "
        f"Try: install python{wanted}, or make PYTHON=/path/to/python{wanted}."
    )


def answers(python: str) -> str:
    """The version an interpreter says it has; a pyenv shim may stand for none."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def environment_of(stack: str) -> Path:
    """``.venv`` for this Python's default stack, ``.venv-<stack>`` for the others."""
    return ROOT / (".venv" if stack == choose("") else f".venv-{stack}")


def made(stack: str, target: str) -> Path:
    """The environment of ``stack`` for ``target``, made unless it is there already."""
    return setup_gpu(stack) if target == "gpu" else setup(stack)


def setup(stack: str) -> Path:
    """Make the environment of ``stack`` unless it is there already."""
    return environment(
        environment_of(stack), stacks()[stack]["python"], STACKS / f"{stack}.txt", project=True
    )


def setup_gpu(stack: str) -> Path:
    """Make the environment of ``stack`` with JAX's CUDA plugin, unless it is there already."""
    return environment(
        ROOT / f".venv-{stack}-gpu", stacks()[stack]["python"],
        STACKS / f"{stack}.txt", CUDA / f"{stack}.txt", project=True,
    )  # fmt: skip


def docs() -> Path:
    """Make the environment that builds the site; it holds nothing of any stack."""
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return environment(ROOT / ".venv-docs", running, STACKS / "docs.txt")


def environment(
    at: Path, wanted: str, *requirements: Path, project: bool = False, change: bool = False
) -> Path:
    """The environment ``at``, made anew unless it was made from the same ``requirements``.

    ``project`` installs the harness there too; ``change`` changes one that is there, where it would
    be made anew: what two pairs have in common stays.
    """
    stamp = at / ".requirements"
    inputs = b"".join(file.read_bytes() for file in requirements)
    inputs += (ROOT / "pyproject.toml").read_bytes() if project else b""
    made_from = f"{requirements[0].stem} {hashlib.sha256(inputs).hexdigest()}"
    with locked(at.name):
        if stamp.exists() and stamp.read_text() == made_from:
            stamp.touch()  # it is in use: see prune
            return at
        there = change and stamp.exists()
        stamp.unlink(missing_ok=True)  # until it is whole again
        make(at, wanted, requirements, project=project, anew=not there)
        stamp.write_text(made_from)
    return at


def make(at: Path, wanted: str, requirements: Sequence[Path], *, project: bool, anew: bool) -> None:
    """Make the environment ``at``, or change the one that is there."""
    uv = find_uv()
    if anew:
        python = find_python(wanted, uv)
        run(uv, "venv", "--quiet", "--clear", "--python", python, str(at))
    options = ("--quiet", "--python", str(at / "bin" / "python"))
    # Bytecode is compiled here, once: importing the stack without it takes a minute longer. Of an
    # environment that changes again soon, what is imported has it from the first import.
    compiling = ["--compile-bytecode"] if anew else []
    run(uv, "pip", "sync", *options, *compiling, *map(str, requirements))
    if project:
        run(uv, "pip", "install", *options, "--no-deps", "--editable", str(ROOT))


def lock() -> None:
    """Compile every requirements file; the files name versions and no host."""
    uv = find_uv()
    docs_row = {"python": DOCS_PYTHON, "overrides": []}
    for name, row in {**stacks(), "docs": docs_row}.items():
        overrides = [f"--override={other}.overrides" for other in row["overrides"]]
        run(
            uv, "pip", "compile", "--quiet", "--python-version", row["python"], *overrides,
            "--custom-compile-command", "make lock", "--no-annotate",
            "--output-file", f"{name}.txt", f"{name}.in",
            cwd=STACKS,
        )  # fmt: skip
    for file in CUDA.glob("*.txt"):
        run(
            uv, "pip", "compile", "--quiet", "--python-version", stacks()[file.stem]["python"],
            "--constraint", f"{file.stem}.txt", "--custom-compile-command", "make lock",
            "--no-annotate", "--output-file", f"cuda/{file.name}", "cuda.in",
            cwd=STACKS,
        )  # fmt: skip


def find_uv() -> str:
    """uv from PATH, or from the package index into ``.tools``."""
    if found := shutil.which("uv"):
        return found
    uv = find_tools() / "bin" / "uv"
    if not uv.exists():
        run(str(find_tools() / "bin" / "python"), "-m", "pip", "install", "--quiet", UV)
    return str(uv)


def find_pip() -> list[str]:
    return [str(find_tools() / "bin" / "python"), "-m", "pip"]


def find_tools() -> Path:
    """``.tools``, an environment that has a pip."""
    tools = ROOT / ".tools"
    if not (tools / "bin" / "pip").exists():
        with locked("tools"):
            venv.create(tools, with_pip=True)
    return tools


def run(*command: str, cwd: Path = ROOT) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
