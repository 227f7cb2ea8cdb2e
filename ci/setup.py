"""Makes the environment of a stack: ``python3 ci/setup.py [STACK]``, standard library only.

Prints the environment's directory. Does nothing when that environment was made from the same
requirements files already. uv is taken from PATH or installed from the package index. STACK
``installed`` is the environment of the Python that runs this, as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STACKS = ROOT / "ci" / "stacks"
RELEASE = re.compile(r"version = '(\d+\.\d+\.\d+)")
#: What a stack needs besides to run on a GPU: ``jax[cuda…]`` of its own jax, by stack.
CUDA = STACKS / "cuda"
UV = "uv==0.13.9"
DOCS_PYTHON = "3.11"  # the oldest that docs.txt is for


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?", default="", help="the default one for this Python")
    parser.add_argument("--target", default="emulated", help="what the environment is to run on")
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
        elif options.stack == "installed":
            print(sys.prefix)
        else:
            print(made(chosen(options.stack, options.target), options.target))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"setup: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 2
    return 0


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
        return nearest(Path(stack.removeprefix("path:").split(",")[0]).expanduser())
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


def environment(at: Path, wanted: str, *requirements: Path, project: bool = False) -> Path:
    """The environment ``at``, made anew unless it was made from the same ``requirements``.

    ``project`` installs the harness there too.
    """
    stamp = at / ".requirements"
    inputs = b"".join(file.read_bytes() for file in requirements)
    inputs += (ROOT / "pyproject.toml").read_bytes() if project else b""
    made_from = f"{requirements[0].stem} {hashlib.sha256(inputs).hexdigest()}"
    if stamp.exists() and stamp.read_text() == made_from:
        return at
    uv = find_uv()
    python = find_python(wanted, uv)
    run(uv, "venv", "--quiet", "--clear", "--python", python, str(at))
    options = ("--quiet", "--python", str(at / "bin" / "python"))
    # Bytecode is compiled here, once: importing the stack without it takes a minute longer.
    run(uv, "pip", "sync", *options, "--compile-bytecode", *map(str, requirements))
    if project:
        run(uv, "pip", "install", *options, "--no-deps", "--editable", str(ROOT))
    stamp.write_text(made_from)
    return at


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
    tools = ROOT / ".tools"
    uv = tools / "bin" / "uv"
    if not uv.exists():
        venv.create(tools, with_pip=True)
        run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", UV)
    return str(uv)


def run(*command: str, cwd: Path = ROOT) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
