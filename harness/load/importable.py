"""Whether the releases of an environment can be imported together, and where a load enters there.

``python -m harness.load.importable`` imports what a load onto emulated devices imports first, and
prints one line of JSON: ``verdict`` is ``works``, ``unimportable`` or ``no-worker``, ``why`` says
which module of which package lacks what. ``ci/setup.py`` runs it once for each environment of a
pair that nobody pinned: vLLM 0.29.0 and tpu-inference 0.29.0 install, and cannot be imported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, packages_distributions, version

import msgspec

from harness.base.foreign import one_line
from harness.load.targets.known_targets import driver_named, target_on

#: Where a load enters: module and class.
WORKER = ("tpu_inference.worker.tpu_worker", "TPUWorker")


class Importable(msgspec.Struct, frozen=True):
    """What came of importing: ``works``, ``unimportable`` or ``no-worker``, and why not."""

    verdict: str
    why: str = ""


def imported(target: str = "emulated", worker: tuple[str, str] = WORKER) -> Importable:
    """Import the modules of the named target's stack, and look for the worker."""
    os.environ.update(target_on(target).environment)
    for module in driver_named(target).modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if module == worker[0] and error.name == module:
                return Importable("no-worker", f"there is no module {error.name}.")
            return Importable("unimportable", told(error))
        except Exception as error:
            return Importable("unimportable", told(error))
    if not hasattr(sys.modules.get(worker[0]), worker[1]):
        return Importable("no-worker", f"{worker[0]} has no {worker[1]}.")
    return Importable("works")


def told(error: BaseException) -> str:
    """Who demands what: the error, and the line of the package that met it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "<frozen" not in f.filename]
    inside = [f for f in frames if f"{os.sep}site-packages{os.sep}" in f.filename]
    text = one_line(f"{type(error).__name__}: {error}".split(" (/")[0])
    if not inside:
        return f"{text}."
    place = inside[-1].filename.rpartition(f"{os.sep}site-packages{os.sep}")[2]
    return f"{release_of(place)} asks for what is not there ({place}:{inside[-1].lineno}): {text}."


def release_of(place: str) -> str:
    """The distribution, with its version, that a file below ``site-packages`` is of."""
    package = place.split(os.sep)[0]
    name = next(iter(packages_distributions().get(package, [])), package)
    with contextlib.suppress(PackageNotFoundError):
        return f"{name.replace('_', '-')} {version(name)}"
    return name


def main() -> None:
    """Print the verdict; what imports print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    line = msgspec.json.encode(imported()) + b"\n"
    os.write(answers, line)
    os._exit(0)  # to take the imported stack apart would take seconds


if __name__ == "__main__":
    main()
