"""Makes the environment of a stack: ``python3 ci/setup.py [STACK]``, standard library only.

Prints the environment's directory. Does nothing when that environment was made from the same
requirements file already. uv is taken from PATH or installed from the package index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STACKS = ROOT / "ci" / "stacks"
UV = "uv==0.13.9"


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?", default="", help="the default one for this Python")
    parser.add_argument("--lock", action="store_true", help="compile the requirements files anew")
    options = parser.parse_args()
    try:
        if options.lock:
            lock()
        else:
            print(setup(choose(options.stack)))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"setup: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 2
    return 0


def stacks() -> dict[str, dict[str, object]]:
    return json.loads((STACKS / "stacks.json").read_text())


def choose(stack: str) -> str:
    """The stack asked for, or the default one of this Python; it must run on this Python."""
    table = stacks()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if stack and stack not in table:
        raise SetupError(f"unknown stack {stack!r}. Expected: one of {', '.join(table)}.")
    fitting = [name for name, row in table.items() if row["python"] == python]
    if stack in fitting:
        return stack
    wanted = ", ".join(f"{name} on Python {row['python']}" for name, row in table.items())
    if stack or not fitting:
        raise SetupError(
            f"no stack {stack or 'at all'} for Python {python} ({sys.executable}). "
            f"Expected: {wanted}. Try: make PYTHON=python{next(iter(table.values()))['python']}."
        )
    return next(name for name in fitting if table[name].get("default"))


def setup(stack: str) -> Path:
    """Make ``.venv`` for ``stack`` unless it is there already."""
    environment = ROOT / ".venv"
    requirements = STACKS / f"{stack}.txt"
    stamp = environment / ".requirements"
    wanted = hashlib.sha256(
        requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == f"{stack} {wanted}":
        return environment
    uv = find_uv()
    run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment))
    options = ("--quiet", "--python", str(environment / "bin" / "python"))
    # Bytecode is compiled here, once: importing the stack without it takes a minute longer.
    run(uv, "pip", "sync", *options, "--compile-bytecode", str(requirements))
    run(uv, "pip", "install", *options, "--no-deps", "--editable", str(ROOT))
    stamp.write_text(f"{stack} {wanted}")
    return environment


def lock() -> None:
    """Compile every stack's requirements file; the files name versions and no host."""
    uv = find_uv()
    for stack, row in stacks().items():
        run(
            uv, "pip", "compile", "--quiet", "--python-version", str(row["python"]),
            "--override", f"{stack}.overrides", "--custom-compile-command", "make lock",
            "--no-annotate", "--output-file", f"{stack}.txt", f"{stack}.in",
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
