"""Verifies one checkpoint: stream it, compare all that arrived, explain what differs, report.

:func:`verify` is the library; the command line and the pytest plugin only call it. The load and
the comparison run in processes of their own, one for each host of the target, where the tensors
live (:mod:`harness.verification.job`); reports travel back.
"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import msgspec

from harness.base import progress
from harness.base.bits import Nan
from harness.base.bounds import require_seconds
from harness.base.errors import BadInput
from harness.base.writing import write
from harness.checkpoint.stores.opening import is_store
from harness.compare.accounting import model_parts
from harness.compare.digest_comparison import Method, no_digests
from harness.compare.digest_file import DigestFile, is_digest_file, read_digest_file
from harness.compare.expert_comparison import tally_of
from harness.compare.selection import Selection, choose
from harness.devices.digest import DEFINITION
from harness.devices.expert_layout import Backend
from harness.devices.parameter_layout import sizes_of
from harness.families.experts import ReferencePart, absent_parts, reference_parts
from harness.families.family import Part, Storage
from harness.families.formats.format import OWN_GRID, UNCHANGED, unchanged
from harness.families.known_families import bring
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.overlay import Overlay
from harness.load.process import LoadProcesses
from harness.load.stack import every_version, require_stack, stack_name
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets.driver import Capability
from harness.load.targets.known_targets import driver_of, served_by, target_named
from harness.report.maps import map_of
from harness.report.merge import merged
from harness.report.report import DigestsUsed, Environment, Report, Status, redacted_report
from harness.verification.digest_cache import Keeping
from harness.verification.job import VerifyRequest
from harness.verification.outcomes import outcomes

_EVERYTHING = Selection()
#: Seconds a load may take.
TIMEOUT = 3600.0


def verify(
    checkpoint: str | os.PathLike[str],
    target: Target | None = None,
    *,
    reference: str | os.PathLike[str] | None = None,
    nan: Nan = Nan.PAYLOAD,
    method: Method = Method.AUTO,
    parts: Collection[Part] = tuple(Part),
    stream_options: Mapping[str, str] | None = None,
    selection: Selection = _EVERYTHING,
    storage: Storage | None = None,
    num_layers: int | None = None,
    checksums: bool = False,
    families: Iterable[str | os.PathLike[str]] = (),
    experts_only: bool = False,
    cache: bool = False,
    timeout: float = TIMEOUT,
    processes: LoadProcesses | None = None,
    terminal: TextIO | None = None,
) -> Report:
    """Stream ``checkpoint`` through the real stack onto ``target`` and compare every expert.

    Args:
        checkpoint: what to load: a directory, ``s3://…``, ``gs://…`` or a hub id.
        target: where to load it; four emulated devices by default.
        reference: a checkpoint to compare with instead of ``checkpoint`` itself, or a digest file,
            so that weights are read only to explain a difference.
        nan: how NaNs in the reference count.
        method: how bits of experts are compared.
        parts: load and compare only these parts, of those the checkpoint has. A draft model that
            config.json announces and no file holds is left out, and the report says so, unless
            nothing else was asked for.
        stream_options: ``RUNAI_STREAMER_*`` variables for this load.
        selection: the experts to compare; the whole checkpoint is loaded all the same.
        storage: how experts are stored, if names and shapes allow several readings.
        num_layers: load only the first layers of the decoder, by overriding its configuration.
        checksums: first read every file whole and compare it with its store's checksums.
        families: Python files that describe families. They are run, here and in the loading
            processes, and stay known.
        experts_only: compare only experts. If no family describes the architecture, compare those
            that the naming rules of known families find. The report says so.
        cache: compare with digests that an earlier run kept of these very files, and keep new
            ones (:mod:`harness.verification.digest_cache`), if the checkpoint is compared with
            itself, by its bits. The report says which.
        timeout: seconds until the load is stopped and reported as failed.
        processes: running load processes to use.
        terminal: where to show progress: one line on a terminal, occasional lines in a log.

    Returns:
        The report; its status says whether all is equal. On a TPU slice it is this host's part,
        for :func:`harness.report.merge.merged`.

    Raises:
        BadInput: a checkpoint cannot be used, or not on several hosts, or has none of ``parts``;
            a file of it changed meanwhile; one of ``families`` describes no family; or a digest
            file is invalid, is of another checkpoint, or does not suffice for this comparison.
        TargetUnavailable: the stack is not installed, or the target's chips are not free.
        InternalError: the harness failed, not the load under test.
    """
    timeout = require_seconds(timeout, "--timeout")
    asked = Asked(
        reference=reference, nan=nan, method=method, parts=parts,
        stream_options=stream_options or {}, selection=selection, storage=storage,
        num_layers=num_layers, checksums=checksums, families=families, experts_only=experts_only,
        cache=cache,
    )  # fmt: skip
    prepared = prepared_for(
        checkpoint,
        target or served_by(target_named("emulated"), Implementation.AUTO),
        asked,
        overlay=processes.overlay if processes else None,
    )
    request, keeping = prepared.request, prepared.keeping
    prepared.report.repeat = _repeat(prepared, timeout)
    with ExitStack() as stack:
        running = processes or stack.enter_context(LoadProcesses())
        if keeping is not None:
            beside = Path(stack.enter_context(TemporaryDirectory(prefix="harness-digests-")))
            whole = not prepared.some and selection.everything and num_layers is None
            request = _with_kept(request, beside, prepared.digests, keeping, whole=whole)
        with undisturbed(prepared):
            report = _completed(request, prepared.report, running, timeout, terminal)
        if keeping is not None:
            if request.keep and is_digest_file(request.keep):
                keeping.keep(read_digest_file(request.keep))
            report.cache = keeping.said
        return report


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a checkpoint is to be compared; each as the argument of :func:`verify` of that name."""

    reference: str | os.PathLike[str] | None = None
    nan: Nan = Nan.PAYLOAD
    method: Method = Method.AUTO
    parts: Collection[Part] = tuple(Part)
    stream_options: Mapping[str, str] = field(default_factory=dict)
    selection: Selection = _EVERYTHING
    storage: Storage | None = None
    num_layers: int | None = None
    checksums: bool = False
    families: Iterable[str | os.PathLike[str]] = ()
    experts_only: bool = False
    cache: bool = False


@dataclass(frozen=True)
class Prepared:
    """A verification before anything is loaded.

    Attributes:
        request: for whoever compares.
        report: unfinished; names the checkpoint, the target and what there is to compare.
        checkpoints: both sides, which are not to change meanwhile.
        some: whether not all parts of the checkpoint are compared.
        overlay: packages that stand in for the installed ones.
        digests: to compare with, where there are any.
        keeping: the cache they are of, or are to go to.
    """

    request: VerifyRequest
    report: Report
    checkpoints: tuple[ModelCheckpoint, ModelCheckpoint]
    some: bool
    overlay: Overlay
    digests: DigestFile | None
    keeping: Keeping | None


def prepared_for(
    checkpoint: str | os.PathLike[str],
    target: Target,
    asked: Asked,
    *,
    recorded: bool = True,
    overlay: Overlay | None = None,
) -> Prepared:
    """Read the headers of both sides, and see that they can be compared.

    Args:
        checkpoint: what is loaded.
        target: where to.
        asked: how they are to be compared.
        recorded: whether the load is the harness's own.
        overlay: packages that stand in for the installed ones.

    Raises:
        BadInput: as :func:`verify`.
        TargetUnavailable: the stack is not installed.
    """
    brought = bring(asked.families)
    opened = ModelCheckpoint(checkpoint, asked.storage, experts_only=asked.experts_only)
    against, digests = opened, None
    if asked.reference is not None and is_digest_file(asked.reference):
        digests = read_digest_file(asked.reference)
        _require_digests_do(opened, asked, digests)
    elif asked.reference is not None:
        against = ModelCheckpoint(asked.reference, asked.storage, experts_only=asked.experts_only)
    for location in (opened.model, against.model):
        _require_text(location)
    _require_described(against, target)
    _require_known_grids(against, {**os.environ, **target.environment, **asked.stream_options})
    there = reference_parts(against, asked.num_layers, asked.parts)
    if not asked.experts_only:  # before the load
        sizes_of(against.text, against.config, against.location.where("config.json"))
    for each in {opened, against}:
        each.require_copies_equal()
    chosen = _chosen(against, there, asked.parts)
    files_checked = (
        sum(each.require_checksums() for each in {opened, against}) if asked.checksums else 0
    )
    keeping = None
    if asked.cache and asked.reference is None and _may_be_kept(opened, target, asked):
        keeping = Keeping(opened, brought, hashed=asked.checksums)
        digests = keeping.found(partial(_require_digests_do, opened, asked))
    request = VerifyRequest(
        checkpoint=opened.model, reference=against.model, target=target,
        digests=os.path.abspath(digests.path) if digests and not keeping else "",
        parts=_loaded(opened, chosen), asked=tuple(asked.parts), nan=asked.nan,
        method=asked.method, stream_options=dict(asked.stream_options),
        selection=asked.selection, num_layers=asked.num_layers, storage=asked.storage,
        families=brought, experts_only=asked.experts_only, recorded=recorded,
    )  # fmt: skip
    overlay = overlay or Overlay()
    report = _unfinished(opened, against, chosen, request, overlay)
    report.files_checked = files_checked
    if digests:
        report.digests = _used(digests, kept=keeping is not None)
    if digests and keeping is None:
        report.reference = digests.path
    some = len(chosen) < len(there)
    return Prepared(request, report, (opened, against), some, overlay, digests, keeping)


def _may_be_kept(checkpoint: ModelCheckpoint, target: Target, asked: Asked) -> bool:
    """Whether digests of a checkpoint do for what is to be compared, on all hosts alike.

    Hosts of a slice have a cache each; reports of some that used one, and others that did not, are
    of no one verification.
    """
    by_bits = asked.nan is Nan.PAYLOAD and not checkpoint.format and not checkpoint.experts_only
    all_here = len(driver_of(target).played_here(target)) == target.hosts
    return by_bits and asked.method is not Method.READBACK and all_here


def _with_kept(
    request: VerifyRequest,
    beside: Path,
    digests: DigestFile | None,
    keeping: Keeping,
    *,
    whole: bool,
) -> VerifyRequest:
    """The request, with kept digests to compare with, or a file for those that come about.

    A copy is compared with: another run may put a new entry in its place, or remove it. Digests
    come about where they cost nothing that shows: devices with memory of their own make them
    anyway, and a store gives bytes more slowly than a core digests them. Elsewhere comparing bits
    takes about as long as reading them, and ``harness digest`` makes them.
    """
    if digests is not None:
        write(beside / "reference", digests.encoded(digests.identity), durable=False)
        return msgspec.structs.replace(
            request, digests=str(beside / "reference"), identity=keeping.plain
        )
    own_memory = driver_of(request.target).can(Capability.OWN_MEMORY)
    if whole and request.target.hosts == 1 and (own_memory or is_store(request.checkpoint)):
        return msgspec.structs.replace(request, keep=str(beside / "kept"), identity=keeping.plain)
    return request


@contextmanager
def undisturbed(prepared: Prepared) -> Iterator[None]:
    """Have a checkpoint that changes while the body runs refused, however the body ends.

    No verdict holds then: whichever side read the file sooner read another one.
    """
    try:
        yield
    except Exception:
        _require_unchanged(prepared.checkpoints)
        raise
    _require_unchanged(prepared.checkpoints)


def _require_unchanged(checkpoints: Sequence[ModelCheckpoint]) -> None:
    for checkpoint in checkpoints:
        checkpoint.location.require_unchanged()


def _chosen(
    checkpoint: ModelCheckpoint, there: Sequence[ReferencePart], parts: Collection[Part]
) -> list[ReferencePart]:
    """Those of the checkpoint's parts that were asked for.

    Raises:
        BadInput: none; what compares nothing must not be called equal.
    """
    if chosen := [part for part in there if part.part in parts]:
        return chosen
    raise BadInput(
        f"nothing to compare: {', '.join(parts) or 'no part'} was asked for",
        where=checkpoint.path,
        expected=f"a part that the checkpoint has: {', '.join(part.part for part in there)}",
        hint="leave out --only to compare every part",
    )


def _loaded(checkpoint: ModelCheckpoint, chosen: Sequence[ReferencePart]) -> tuple[Part, ...]:
    """Those of the chosen parts that the checkpoint under test has, too.

    A draft model that it has no word or no tensor of is not loaded: the stack would only fail to
    build it, or fill it with nothing. All of the reference's tensors for it are differences.

    Raises:
        BadInput: none is left.
    """
    there = model_parts(checkpoint) | {Part.DECODER}
    if found := tuple(part.part for part in chosen if part.part in there):
        return found
    raise BadInput(
        "nothing to compare: config.json announces no draft model, or no file holds it; "
        "the reference has one",
        where=checkpoint.path,
        expected="a checkpoint that has what --only asks for",
        hint="leave out --only: the decoder is compared, and the draft model is a difference",
    )


def _completed(
    request: VerifyRequest,
    report: Report,
    processes: LoadProcesses,
    timeout: float,
    terminal: TextIO | None,
) -> Report:
    """Have every host that this machine plays load and compare; one report of theirs."""
    with progress.shown(terminal) as watch:
        hosts = driver_of(request.target).played_here(request.target)
        reports = outcomes(request, report, hosts, processes, timeout, watch)
    return redacted_report(merged(reports) if len(reports) > 1 else reports[0])


def _unfinished(
    opened: ModelCheckpoint,
    against: ModelCheckpoint,
    chosen: Sequence[ReferencePart],
    request: VerifyRequest,
    overlay: Overlay,
) -> Report:
    """The report before the load: what there is to compare, and where."""
    versions = require_stack()
    experts = choose(chosen, request.selection)
    return Report(
        checkpoint=opened.path,
        reference=against.path,
        family=opened.family.name,
        experts_only=request.experts_only,
        status=Status.LOAD_FAILED,
        environment=Environment(
            stack=stack_name(versions),
            python=platform.python_version(),
            versions=every_version(versions),
            target=str(request.target),
            overlay=str(overlay),
        ),
        tallies=[tally_of(part, experts[part.part]) for part in chosen],
        maps=[map_of(part.part, part.layers, part.shape.experts) for part in chosen],
        absent=list(absent_parts(against, request.asked)),
    )


def _require_digests_do(checkpoint: ModelCheckpoint, asked: Asked, digests: DigestFile) -> None:
    """Digests can be compared with what will be on the devices, and are of this checkpoint.

    Raises:
        BadInput: they are not, or values are compared and not bits.
    """
    _require_text(digests.path)
    if checkpoint.format:
        raise no_digests("a quantised release, whose values are compared, not its bits", *_WEIGHTS)
    if asked.nan is not Nan.PAYLOAD:
        raise no_digests("NaNs that count as others", *_WEIGHTS)
    digests.require_of(checkpoint, reference_parts(checkpoint, asked=()), asked.parts)


#: Which option asked for digests, and what to do without.
_WEIGHTS = "--reference", "without a digest file: the weights are compared then"


def digests_used(file: str | os.PathLike[str]) -> DigestsUsed:
    """What a report says of a digest file that is the reference.

    Raises:
        BadInput: it is none.
    """
    return _used(read_digest_file(file))


def _used(digests: DigestFile, *, kept: bool = False) -> DigestsUsed:
    return DigestsUsed(
        file=digests.path, definition=DEFINITION, revision=digests.revision,
        checksum=digests.checksum, kept=kept,
    )  # fmt: skip


def _require_text(location: str) -> None:
    """Refuse a path that is no text: neither JSON nor the stack under test could name it."""
    try:
        location.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            "a path that is not UTF-8",
            where=location,
            expected="a path in valid UTF-8, because it goes into requests and reports",
            hint="rename the directory, or make a link to it",
        ) from error


def _require_described(checkpoint: ModelCheckpoint, target: Target) -> None:
    """What the target makes of a quantised release is described."""
    on_host = target.backend in (Backend.XLA_TP, Backend.XLA_EP)
    if checkpoint.format and not checkpoint.fp8 and on_host:
        raise BadInput(
            f"a release in {checkpoint.format.name} on {target.name}",
            where=checkpoint.path,
            expected="a target that loads through tpu-inference: what vLLM's own methods make of "
            "these formats on a host is not covered",
            hint="--target emulated",
        )


def _require_known_grids(checkpoint: ModelCheckpoint, environment: Mapping[str, str]) -> None:
    """What quantised weights become is described, with the variables of the load."""
    if checkpoint.format and (asked := [n for n in OWN_GRID if environment.get(n)]):
        raise BadInput(
            f"{asked[0]}={environment[asked[0]]} for a release in {checkpoint.format.name}",
            where=asked[0],
            expected="the type and the blocks that upstream chooses itself, or "
            f"{UNCHANGED}=1: what they are to be is known of those",
            hint=f"unset {asked[0]}",
        )
    if checkpoint.fp8 and not checkpoint.experts_only and unchanged(environment):
        raise BadInput(
            f"{UNCHANGED} for an FP8 release with a scale for each block",
            where=checkpoint.path,
            expected="linear layers that are quantised anew, per channel",
            hint="--experts-only, which compares experts bit for bit then",
        )


def _repeat(prepared: Prepared, timeout: float) -> str:
    """The command line that repeats a verification."""
    request, overlay = prepared.request, prepared.overlay
    words = [f"{name}={value}" for name, value in request.stream_options.items()]
    words += ["harness", "verify", request.checkpoint]
    words += [word for file in request.families for word in ("--family", file)]
    words += [f"--stack={overlay.option}"] if overlay.option else []
    words += _target_options(request.target)
    if request.digests or request.reference != request.checkpoint:
        words += ["--reference", request.digests or request.reference]
    words += ["--experts-only"] if request.experts_only else []
    words += ["--nan", request.nan] if request.nan is not Nan.PAYLOAD else []
    words += ["--compare", request.method] if request.method is not Method.AUTO else []
    words += [word for part in request.parts for word in ("--only", part)] if prepared.some else []
    words += request.selection.options()
    words += ["--storage", request.storage] if request.storage else []
    words += ["--num-layers", str(request.num_layers)] if request.num_layers else []
    words += ["--timeout", f"{timeout:g}"] if timeout != TIMEOUT else []
    return shlex.join(words)


def _target_options(target: Target) -> list[str]:
    words = ["--target", target.name]
    words += ["--mesh", target.mesh] if target.mesh else ["--devices", str(target.devices)]
    words += ["--hosts", str(target.hosts)] if target.hosts > 1 else []
    words += ["--on", target.on] if target.on else []
    if target.parallelism is not Parallelism.TENSOR:
        words += ["--parallelism", target.parallelism]
    chosen = target.impl is Implementation.AUTO or not driver_of(target).can(Capability.OWN_MODELS)
    return words if chosen else [*words, "--impl", target.impl]
