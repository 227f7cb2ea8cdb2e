"""Verifies one checkpoint: stream it, compare all that arrived, explain what differs, report.

:func:`verify` is the library; the command line and the pytest plugin only call it. The load and
the comparison run in a process of their own, where the tensors live; the report travels back.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import TextIO

import msgspec

from harness import engine, progress
from harness.causes import Diagnosis
from harness.checkpoint import Checkpoint
from harness.compare import Nan, tally_of
from harness.compare_fp8 import part_comparison
from harness.coverage import Counts, coverage
from harness.deliveries import calls_of
from harness.diagnosis import Explainer
from harness.errors import HarnessError
from harness.experts import ReferencePart, reference_parts
from harness.family import Part
from harness.hook import Hook
from harness.ledger import Ledger
from harness.load import LoadProcess, LoadProcessError
from harness.load_failure import diagnose_failure
from harness.loaded import Adapt, Ledgers, Loaded
from harness.maps import map_of
from harness.report import (
    Delivery,
    Environment,
    Failure,
    Report,
    Status,
    Timings,
    redacted_report,
)
from harness.selection import Chosen, Selection, choose, expert_bytes
from harness.stack import require_stack, stack_name
from harness.target import Parallelism, Target, emulated_target
from harness.upstream import failure_of, name_sites
from harness.verify_parameters import add_copies, add_parameters, expert_copies

_EVERYTHING = Selection()


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a loading process is asked to verify."""

    checkpoint: str
    reference: str
    target: Target
    parts: tuple[Part, ...]
    nan: Nan = Nan.PAYLOAD
    hook: Hook = Hook.UPSTREAM
    stream_options: dict[str, str] = {}
    selection: Selection = Selection()
    num_layers: int | None = None
    progress: str = ""


def verify(
    checkpoint: str | os.PathLike[str],
    target: Target | None = None,
    *,
    reference: str | os.PathLike[str] | None = None,
    nan: Nan = Nan.PAYLOAD,
    parts: Collection[Part] = tuple(Part),
    hook: Hook = Hook.UPSTREAM,
    stream_options: Mapping[str, str] | None = None,
    selection: Selection = _EVERYTHING,
    num_layers: int | None = None,
    checksums: bool = False,
    timeout: float = 3600.0,
    process: LoadProcess | None = None,
    terminal: TextIO | None = None,
) -> Report:
    """Stream ``checkpoint`` through the real stack onto ``target`` and compare every expert.

    Args:
        checkpoint: what to load: a directory, ``s3://…``, ``gs://…`` or a hub id.
        target: where to; four emulated devices by default.
        reference: the checkpoint to compare with, instead of ``checkpoint`` itself.
        nan: how NaNs in the reference count.
        parts: load and compare these parts only, of those the checkpoint has.
        hook: the loader hook the load goes through.
        stream_options: ``RUNAI_STREAMER_*`` variables for this load.
        selection: the experts to compare; the load is whole all the same.
        num_layers: load the decoder with its first layers only, by an override of its
            configuration.
        checksums: read every file whole first and compare it with its store's checksums.
        timeout: seconds until the load is ended and reported as failed.
        process: a running load process to use, of a target of the same name.
        terminal: where to show progress, if that is a terminal.

    Returns:
        The report; its status says whether all experts are equal.

    Raises:
        BadInput: a checkpoint cannot be used.
        TargetUnavailable: the stack is not installed, or the target's chips are not free.
    """
    target = target or emulated_target()
    versions = require_stack()
    opened = Checkpoint(checkpoint)
    against = Checkpoint(reference) if reference is not None else opened
    chosen = [part for part in reference_parts(against, num_layers) if part.part in parts]
    experts = choose(chosen, selection)
    files_checked = sum(c.require_checksums() for c in {opened, against}) if checksums else 0
    report = Report(
        checkpoint=opened.path,
        reference=against.path,
        family=opened.family.name,
        status=Status.LOAD_FAILED,
        environment=Environment(
            stack=stack_name(versions),
            python=platform.python_version(),
            versions=versions,
            target=str(target),
            overlay=str(process.overlay) if process else "",
        ),
        tallies=[tally_of(part, experts[part.part]) for part in chosen],
        files_checked=files_checked,
        maps=[map_of(part.part, part.layers, part.shape.experts) for part in chosen],
    )
    request = VerifyRequest(
        checkpoint=opened.model,
        reference=against.model,
        target=target,
        parts=tuple(part.part for part in chosen),
        nan=nan,
        hook=hook,
        stream_options=dict(stream_options or {}),
        selection=selection,
        num_layers=num_layers,
    )
    report.repeat = _repeat(request)
    running_process = nullcontext(process) if process else LoadProcess(target)
    with running_process as running, progress.shown(terminal) as figures:
        request = msgspec.structs.replace(request, progress=figures)
        try:
            outcome = running.run(
                f"{__name__}:verify_job",
                msgspec.json.encode((request, report)),
                timeout=timeout,
                target=target,
            )
        except LoadProcessError as error:
            report.failure = Failure(error=error.what, message="", log_tail=error.details)
            return redacted_report(report)
    return redacted_report(msgspec.json.decode(outcome, type=Report))


def verify_job(argument: bytes) -> bytes:
    """The job of a loading process: a request and an unfinished report in, the report out."""
    request, report = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    os.environ.update(request.stream_options)
    return msgspec.json.encode(run(request, report))


def run(request: VerifyRequest, report: Report, adapt: Adapt = lambda loader: loader) -> Report:
    """Load, compare and explain, in this process; completes and returns ``report``.

    Args:
        request: what to verify.
        report: names the checkpoint, the target and what there is to compare.
        adapt: changes the loader class under test, for tests that plant faults in it.
    """
    parts = reference_parts(Checkpoint(request.reference), request.num_layers)
    parts = tuple(part for part in parts if part.part in request.parts)
    experts = choose(parts, request.selection)
    ledgers: Ledgers = {}
    progress.count_into(request.progress)
    progress.begin("stream", len(parts) * Checkpoint(request.checkpoint).nbytes)
    try:
        loaded = engine.load(
            request.checkpoint, request.target, request.parts,
            hook=request.hook, num_layers=request.num_layers, ledgers=ledgers, adapt=adapt,
        )  # fmt: skip
    except HarnessError:
        raise
    except Exception as error:
        for name, ledger in ledgers.items():
            name_sites(ledger)
            report.calls += calls_of(name, ledger)
        report.failure = failure_of(error)
        report.diagnoses = _diagnoses_of_failure(parts, ledgers)
        return report
    report.environment = msgspec.structs.replace(
        report.environment, mesh=loaded.mesh, entry=loaded.entry
    )
    started = time.perf_counter()
    progress.begin("compare", sum(experts[p.part].count * expert_bytes(p) for p in parts))
    for part in parts:
        ledger = ledgers.get(part.part, Ledger())
        compare_part(report, part, parts, loaded, ledger, request, experts[part.part])
    report.status = Status.DIFFERENT if report.differences else Status.EQUAL
    report.timings = Timings(
        setup=loaded.setup_seconds,
        load=loaded.load_seconds,
        compare=time.perf_counter() - started,
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        stream=sum(ledger.stream_seconds for ledger in ledgers.values()),
        stream_bytes=sum(ledger.stream_bytes for ledger in ledgers.values()),
    )
    return report


def compare_part(
    report: Report,
    part: ReferencePart,
    parts: Sequence[ReferencePart],
    loaded: Loaded,
    ledger: Ledger,
    request: VerifyRequest,
    chosen: Chosen,
) -> None:
    """Compare one part and add its tally, differences and diagnoses to ``report``."""
    name_sites(ledger)
    device, *copies = expert_copies(loaded, part.part)
    comparison = part_comparison(
        part, device, backend=request.target.backend, nan=request.nan, chosen=chosen
    )
    counts, uncovered = coverage(part, ledger)
    differences = [*comparison.differences(), *uncovered]
    offset = len(report.differences)
    report.tallies = [t for t in report.tallies if t.part is not part.part]
    report.tallies.append(comparison.tally)
    report.deliveries.append(_delivery(part.part, ledger, counts))
    report.differences += differences
    explained = len(report.diagnoses)
    report.diagnoses += Explainer(comparison, parts, ledger).diagnose(differences, offset)
    report.calls += calls_of(part.part, ledger)
    add_copies(report, part, copies, request.target, request.nan, chosen, ledger)
    report.maps = [m for m in report.maps if m.part is not part.part]
    report.maps.append(
        map_of(
            part.part, part.layers, part.shape.experts, chosen.of,
            report.differences[offset:], report.diagnoses[explained:], offset,
        )
    )  # fmt: skip
    add_parameters(report, part, loaded, request.target, request.nan, request.selection, chosen)


def _delivery(part: Part, ledger: Ledger, counts: Counts) -> Delivery:
    sites = Counter(call.site for call in ledger.calls if call.is_of_expert)
    return Delivery(part=part, calls=len(ledger.calls), sites=dict(sites), **counts._asdict())


def _diagnoses_of_failure(parts: Sequence[ReferencePart], ledgers: Ledgers) -> list[Diagnosis]:
    """Why the load ended early, from the ledger of the part it ended in."""
    for part in parts:
        ledger = ledgers.get(part.part)
        if ledger and not ledger.finished:
            return diagnose_failure(ledger, part.layers, part.shape.experts)
    return diagnose_failure(Ledger(), (), 0)


def _repeat(request: VerifyRequest) -> str:
    """The command line that repeats ``request``."""
    words = [f"{name}={value}" for name, value in request.stream_options.items()]
    words += ["harness", "verify", request.checkpoint]
    target = request.target
    words += ["--target", target.name]
    words += ["--mesh", target.mesh] if target.mesh else ["--devices", str(target.devices)]
    if target.parallelism is not Parallelism.TENSOR:
        words += ["--parallelism", target.parallelism]
    if request.reference != request.checkpoint:
        words += ["--reference", request.reference]
    words += ["--nan", request.nan] if request.nan is not Nan.PAYLOAD else []
    words += ["--hook", request.hook] if request.hook is not Hook.UPSTREAM else []
    words += ["--only", *request.parts] if request.parts == (Part.MTP,) else []
    words += request.selection.options()
    words += ["--num-layers", str(request.num_layers)] if request.num_layers else []
    return shlex.join(words)
