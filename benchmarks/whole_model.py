"""A whole model at its published shapes: written, loaded, compared, and compared with faults in it.

    python benchmarks/whole_model.py --recipe qwen3-vl-moe --shapes published:qwen3-vl-30b-a3b \
        --target gpu --faults --json out.json --report report.json

One synthetic checkpoint and one load. Each phase's seconds, bytes and memory are printed: of the
host the private part, RssAnon, when the phase began and at its peak, sampled every 20 ms; of a
device what JAX counts, where it does. The second comparison finds its programs compiled, and what
was read of the reference while the load ran; the third reads all of it. With ``--digest-file`` a
digest file is written first, and two more comparisons are with that. With
``--faults`` the arrays on the device are then spoiled, one fault after the other, and compared
again: what it is called, and the seconds beyond those of the faultless comparison, which is what
explaining costs. Bits are compared, so the values do not matter; files are in the page cache.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from loads import peak, private

from harness.base.bits import FROM_ARRAY_NAME, ON_DEVICES, Bits, bits_dtype
from harness.base.progress import Meter
from harness.compare.authority import WEIGHTS
from harness.compare.digest_comparison import Method
from harness.devices.jax_arrays import from_jax
from harness.devices.tensors import DeviceTensor
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import child
from harness.load.ledger import POISON
from harness.load.loaded import Loaded
from harness.load.process import LoadProcess
from harness.load.stack import require_stack, stack_name
from harness.load.target import Parallelism, Target
from harness.load.targets import tpu_inference
from harness.load.targets.known_targets import target_named, targets
from harness.report.report import Environment, Report, Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.digests import write_digests
from harness.verification.job import Verification, VerifyRequest
from harness.verification.verify import digests_used

_GIB = 1 << 30
_MALLOC_TRIM = ctypes.CDLL(None).malloc_trim  # glibc keeps what is freed, and would count it


class Phase(msgspec.Struct):
    """A phase: seconds, bytes, and memory in bytes; ``device`` is 0 where unknown.

    ``before`` is the host's when it began, ``host`` and ``device`` are peaks.
    """

    name: str
    seconds: float
    nbytes: int
    host: int
    before: int = 0
    device: int = 0
    found: str = ""


class Task(msgspec.Struct):
    """What the loading process is asked for."""

    path: str
    target: Target
    parts: tuple[Part, ...]
    num_layers: int | None
    faults: bool
    digests: str = ""
    method: Method = Method.AUTO


class Figures(msgspec.Struct):
    """What it measured; the report is that of the faultless comparison."""

    phases: list[Phase]
    report: Report


def measure(argument: bytes, meter: Meter) -> bytes:
    """Load, compare, and compare again with each fault."""
    task = msgspec.json.decode(argument, type=Task)
    request = VerifyRequest(
        checkpoint=task.path, reference=task.path, target=task.target, parts=task.parts,
        num_layers=task.num_layers, method=task.method,
    )  # fmt: skip
    versions = require_stack()
    environment = Environment(
        stack=stack_name(versions), python=platform.python_version(), versions=versions,
        target=str(task.target),
    )  # fmt: skip
    unfinished = Report(
        checkpoint=task.path, reference=task.path, family=ModelCheckpoint(task.path).family.name,
        status=Status.LOAD_FAILED, environment=environment,
    )  # fmt: skip
    arrays = _arrays_kept()
    verification = Verification(request, unfinished, meter)
    phases: list[Phase] = []
    with _phase(phases, "setup and load") as phase:
        loaded = verification.load()
        phase.nbytes = ModelCheckpoint(task.path).nbytes
    phases.append(Phase("of it load", loaded.load_seconds, phase.nbytes, private()))
    with _phase(phases, "compare") as phase:
        report = verification.compared(loaded)
        phase.nbytes, phase.found = report.all_bytes_compared, _called(report)
    with _phase(phases, "compare again") as phase:
        phase.nbytes = verification.compared(loaded).all_bytes_compared
    verification._authority = WEIGHTS
    with _phase(phases, "compare, the reference read after the load") as phase:
        phase.nbytes = verification.compared(loaded).all_bytes_compared
    if task.digests:
        request = msgspec.structs.replace(request, digests=task.digests)
        unfinished = msgspec.structs.replace(unfinished, digests=digests_used(task.digests))
        by_file = Verification(request, unfinished, meter)
        by_file._ledgers.update(verification._ledgers)
        for name in ("compare with a digest file", "compare with it again"):
            with _phase(phases, name) as phase:
                again = by_file.compared(loaded)
                phase.nbytes, phase.found = again.all_bytes_compared, _called(again)
    faults = _faults(loaded, arrays) if task.faults else {}
    for name, spoil in faults.items():
        spoiled = spoil()
        with _phase(phases, name) as phase:
            again = verification.compared(spoiled)
            phase.nbytes, phase.found = again.all_bytes_compared, _called(again)
        del spoiled
    return msgspec.json.encode(Figures(phases, report))


def _called(report: Report) -> str:
    """The verdict, and every diagnosis in a line."""
    return "; ".join([report.status, *(f"[{d.cause}] {d.summary}" for d in report.diagnoses)])


@contextmanager
def _phase(phases: list[Phase], name: str) -> Iterator[Phase]:
    _MALLOC_TRIM(0)
    phase = Phase(name, 0.0, 0, 0, private())
    with peak() as seen:
        started = time.perf_counter()
        yield phase
        phase.seconds = time.perf_counter() - started
    phase.host, phase.device = max(seen[0], private()), _device_peak()
    phases.append(phase)


def _device_peak() -> int:
    """The most bytes of one device in use so far."""
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return int(max(s.get("peak_bytes_in_use", 0) for s in stats))


# Faults.


def _arrays_kept() -> dict[str, Any]:
    """JAX's arrays by name, filled as the load sees them; the draft's and the decoder's differ."""
    kept: dict[str, Any] = {}

    def keeping(name: str, array: Any, *, in_host_memory: bool) -> DeviceTensor:
        kept[name] = array
        return from_jax(name, array, in_host_memory=in_host_memory)

    vars(tpu_inference)["from_jax"] = keeping
    return kept


def _faults(loaded: Loaded, arrays: dict[str, Any]) -> dict[str, Callable[[], Loaded]]:
    """What is spoiled, by name: the load with some of the decoder's arrays replaced."""
    w13 = {_layer(name): name for name in arrays if name.endswith("w13_weight")}
    w2 = {_layer(name): name for name in arrays if name.endswith("w2_weight")}
    norms = {_layer(n): n for n in arrays if n.endswith("input_layernorm.weight")}
    last, middle = max(w2), sorted(w2)[len(w2) // 2]
    expert = arrays[w2[last]].shape[0] - 1
    before = sorted(norms)[0]

    def spoiled(names: tuple[str, ...], change: Callable[[Bits], None]) -> Callable[[], Loaded]:
        return lambda: _replaced(loaded, {n: _spoiled(arrays[n], change) for n in names})

    both = w13[middle], w2[middle]
    return {
        f"one bit in layer {last}, expert {expert}, down_proj": spoiled(
            (w2[last],), lambda bits: _flipped(bits, expert)
        ),
        f"experts 1 and {expert - 1} of layer {middle} exchanged": spoiled(
            both, lambda bits: _exchanged(bits, 1, expert - 1)
        ),
        f"the norm of layer {before} in layer {middle}": lambda: _replaced(
            loaded, {norms[middle]: arrays[norms[before]]}
        ),
        f"expert 5 of layer {middle} never written": spoiled(both, lambda bits: _poisoned(bits, 5)),
    }


def _layer(name: str) -> int:
    return int(name.split("layers.")[1].split(".")[0])


def _flipped(bits: Bits, expert: int) -> None:
    bits[expert, 3, 5] ^= 1


def _exchanged(bits: Bits, one: int, other: int) -> None:
    bits[[one, other]] = bits[[other, one]]


def _poisoned(bits: Bits, expert: int) -> None:
    bits[expert] = POISON[bits.itemsize]


def _spoiled(array: Any, change: Callable[[Bits], None]) -> Any:
    """A copy of an array with its bits changed, on the same devices."""
    import jax

    held = np.array(array)
    change(held.view(bits_dtype((FROM_ARRAY_NAME | ON_DEVICES)[str(array.dtype)])))
    return jax.device_put(held, array.sharding)


def _replaced(loaded: Loaded, changed: dict[str, Any]) -> Loaded:
    tensors = {
        part: [
            from_jax(t.name, changed[t.name], in_host_memory=t.shards[0].in_host_memory)
            if part is Part.DECODER and t.name in changed
            else t
            for t in held
        ]
        for part, held in loaded.tensors.items()
    }
    return replace(loaded, tensors=tensors)


# In the parent.


def written(options: argparse.Namespace, directory: Path, spill: Path | None) -> tuple[Path, Phase]:
    """The checkpoint, and what writing it took."""
    started = time.perf_counter()
    with _spilling(directory, spill, options.spill_files) if spill else nullcontext():
        done = write_checkpoint(
            options.recipe, directory / "checkpoint", shapes=options.shapes, layers=options.layers,
            files=options.files, quantised=options.quantised, tied=options.tied,
        )  # fmt: skip
    return done.path, Phase("write", time.perf_counter() - started, done.nbytes, 0)


@contextmanager
def _spilling(directory: Path, spill: Path, count: int) -> Iterator[None]:
    """Move the first ``count`` files to ``spill`` as each is written, and leave links to them.

    Files are written one after the other, so all but the last are complete.
    """
    done = threading.Event()

    def move() -> None:
        while not done.wait(0.1):
            for file in sorted(directory.rglob("model-*.safetensors"))[:-1][:count]:
                if not file.is_symlink():
                    moved = Path(shutil.move(file, spill / file.name))
                    file.symlink_to(moved)

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main() -> None:
    """Write, load, compare; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="qwen3-vl-moe")
    parser.add_argument("--shapes", default="tiny")
    parser.add_argument("--quantised", default="", help="format to write: mxfp4, ct-int4, …")
    parser.add_argument("--layers", type=int, help="decoder layers to write")
    parser.add_argument("--num-layers", type=int, help="decoder layers to load")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--target", choices=list(targets()), default="emulated")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--parallelism", choices=list(Parallelism), default=Parallelism.TENSOR)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary one")
    parser.add_argument("--spill", type=Path, help="where the first files go, if one disk is small")
    parser.add_argument("--spill-files", type=int, default=4)
    parser.add_argument("--compare", choices=list(Method), default=Method.AUTO)
    parser.add_argument("--digest-file", action="store_true", help="compare with one, too")
    parser.add_argument("--faults", action="store_true", help="spoil the arrays and compare again")
    parser.add_argument("--json", type=Path, help="keep the phases")
    parser.add_argument("--report", type=Path, help="keep the report")
    options = parser.parse_args()
    target = target_named(options.target, options.devices, Parallelism(options.parallelism))
    scratch = Path(tempfile.mkdtemp(prefix="whole-model-", dir=options.directory))
    spill = options.spill and Path(tempfile.mkdtemp(prefix="whole-model-", dir=options.spill))
    try:
        path, writing = written(options, scratch, spill)
        parts = tuple(part.part for part in reference_parts(ModelCheckpoint(path)))
        child.JOBS["whole_model"] = "whole_model:measure"
        digests, digesting = str(path) + ".digests" if options.digest_file else "", []
        if digests:
            started = time.perf_counter()
            write_digests(path, Path(digests))
            nbytes = ModelCheckpoint(path).nbytes
            digesting = [Phase("digest", time.perf_counter() - started, nbytes, 0)]
        task = Task(
            str(path), target, parts, options.num_layers, options.faults, digests,
            Method(options.compare),
        )  # fmt: skip
        with LoadProcess(target) as process:
            answer = process.run("whole_model", msgspec.json.encode(task), target, timeout=7200)
    finally:
        for directory in filter(None, (scratch, spill)):
            shutil.rmtree(directory, ignore_errors=True)
    figures = msgspec.json.decode(answer, type=Figures)
    phases = [writing, *digesting, *figures.phases]
    print(f"{options.recipe} {options.shapes}, {target}\n")
    print("| phase | seconds | GB | GB/s | host before, GiB | host, GiB | device, GiB | found |")
    print("|---|---|---|---|---|---|---|---|")
    for p in phases:
        rate = p.nbytes / 1e9 / p.seconds
        print(
            f"| {p.name} | {p.seconds:.1f} | {p.nbytes / 1e9:.1f} | {rate:.2f} "
            f"| {p.before / _GIB:.2f} | {p.host / _GIB:.2f} | {p.device / _GIB:.1f} | {p.found} |"
        )
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(phases)))
    if options.report:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(figures.report)))


if __name__ == "__main__":
    main()
