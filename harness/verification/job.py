"""The job of a loading process: load, compare and explain, where the tensors are."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from harness.base import progress
from harness.base.bits import Nan
from harness.base.errors import HarnessError, InternalError
from harness.base.progress import COMPARE, STREAM
from harness.compare.difference import Difference
from harness.compare.digest_comparison import Method
from harness.compare.equality import warm_up
from harness.compare.fp8_experts import part_comparison
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.selection import Chosen, Selection, choose, expert_bytes
from harness.devices.tensors import DevicePart, DeviceTensor, device_part
from harness.explain.diagnosis import Explainer
from harness.explain.load_failure import diagnose_failure, never_arrived
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.blocks import TENSOR
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model import ModelCheckpoint
from harness.families.registry import bring
from harness.load import engine
from harness.load.deliveries import calls_of
from harness.load.hook import Hook
from harness.load.ledger import Ledger
from harness.load.loaded import Adapt, Ledgers, Loaded
from harness.load.target import Target
from harness.load.targets.registry import driver_of
from harness.report.maps import map_of, with_missing
from harness.report.report import (
    Delivery,
    HostPart,
    Report,
    Status,
    Timings,
    require_covered,
)
from harness.verification.coverage import (
    Counts,
    Scope,
    account_of_checkpoint,
    account_of_reference,
    coverage,
    diagnosed,
    expert_sources,
    named,
    require_recorded,
    require_streamed,
)
from harness.verification.upstream_frames import failure_of, name_sites


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a loading process is asked to verify.

    ``parts`` are those that were asked for and that both sides have, ``asked`` all that were, there
    or not; ``parts`` where it says none. ``families`` are files that describe families, by their
    absolute paths.
    """

    checkpoint: str
    reference: str
    target: Target
    parts: tuple[Part, ...]
    asked: tuple[Part, ...] = ()
    nan: Nan = Nan.PAYLOAD
    method: Method = Method.AUTO
    hook: Hook = Hook.UPSTREAM
    stream_options: dict[str, str] = {}
    selection: Selection = Selection()
    num_layers: int | None = None
    families: tuple[str, ...] = ()


def prepare() -> None:
    """Have what compares compiled, once for all loads that are forked from this process."""
    warm_up()


def verify_job(argument: bytes) -> bytes:
    """The job of a loading process: a request and an unfinished report in, the report out.

    Raises:
        HarnessError: the target is not to be had; or, :class:`InternalError`, not the load under
            test failed, but what judges it.
    """
    request, report = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    os.environ.update(request.stream_options)
    try:
        bring(request.families)
        return msgspec.json.encode(run(request, report))
    except HarnessError:
        raise
    except Exception as error:
        raise InternalError.of(error) from error


def run(request: VerifyRequest, report: Report, adapt: Adapt = lambda loader: loader) -> Report:
    """Load, compare and explain, in this process; completes and returns ``report``.

    Args:
        request: what to verify.
        report: names the checkpoint, the target and what there is to compare.
        adapt: changes the loader class under test, for tests that plant faults in it.
    """
    reference = ModelCheckpoint(request.reference)
    same = request.checkpoint == request.reference
    checkpoint = reference if same else ModelCheckpoint(request.checkpoint)
    parts = reference_parts(reference, request.num_layers)
    parts = tuple(part for part in parts if part.part in request.parts)
    ledgers: Ledgers = {}
    progress.begin(STREAM, len(parts) * checkpoint.nbytes)
    loaded = _load(request, report, parts, ledgers, adapt)
    if loaded is None:
        return report
    started = time.perf_counter()
    _compare(request, report, parts, ledgers, loaded, checkpoint)
    _leave(request, report)
    report.timings = _timings(loaded, ledgers, time.perf_counter() - started)
    return report


def _load(
    request: VerifyRequest,
    report: Report,
    parts: Sequence[ReferencePart],
    ledgers: Ledgers,
    adapt: Adapt,
) -> Loaded | None:
    """Load, and tell where; None when the stack raised, which ``report`` then says and explains."""
    try:
        loaded = engine.load(
            request.checkpoint, parts[0].checkpoint.family, request.target, request.parts,
            hook=request.hook, num_layers=request.num_layers, ledgers=ledgers, adapt=adapt,
        )  # fmt: skip
    except HarnessError:
        raise
    except Exception as error:
        for name, ledger in ledgers.items():
            name_sites(ledger)
            report.calls += calls_of(name, ledger)
        report.failure = failure_of(error)
        _explain_failure(report, parts, ledgers)
        return None
    report.environment = msgspec.structs.replace(
        report.environment, mesh=loaded.mesh, entry=loaded.entry
    )
    if loaded.local is not None:
        report.hosts = [_host_part(request.target, loaded.local)]
    return loaded


def _compare(
    request: VerifyRequest,
    report: Report,
    parts: Sequence[ReferencePart],
    ledgers: Ledgers,
    loaded: Loaded,
    checkpoint: ModelCheckpoint,
) -> None:
    """Compare all parts and say whether they are equal."""
    reference = parts[0].checkpoint
    asked = request.asked or request.parts
    present = Scope(reference, parts, asked, {}).present(checkpoint)
    others = checkpoint.entries.keys() - reference.entries.keys()
    sources: dict[str, bool] = {}
    experts = choose(parts, request.selection)
    progress.begin(COMPARE, sum(experts[p.part].count * expert_bytes(p) for p in parts))
    for part in parts:
        ledger = ledgers.get(part.part, Ledger())
        require_recorded(part.part, ledger)
        before = len(report.differences)
        covered = coverage(part, ledger, present, others)
        found = compare_part(
            report, part, parts, loaded, ledger, request, experts[part.part], covered
        )
        sources |= {name: found[name] or sources.get(name, False) for name in found}
        require_streamed(part.part, ledger, report.differences[before:])
    _account(report, Scope(reference, parts, asked, sources), checkpoint)
    report.status = Status.DIFFERENT if report.differences else Status.EQUAL
    if report.status is Status.EQUAL and request.target.hosts == 1:
        require_covered(report.tallies, request.parts)  # of several hosts the merged report's


def _account(report: Report, scope: Scope, checkpoint: ModelCheckpoint) -> None:
    """Account for every tensor of the reference, and of a checkpoint that is not its own."""
    accounts = [account_of_reference(scope, named(report.differences))]
    if checkpoint is not scope.reference:
        told = named([*report.differences, *accounts[0][1]])
        accounts.append(account_of_checkpoint(checkpoint, scope, told))
    for account, differences in accounts:
        report.accounts.append(account)
        report.diagnoses += diagnosed(differences, len(report.differences))
        report.differences += differences


def _leave(request: VerifyRequest, report: Report) -> None:
    """Part from the other hosts; one that is gone makes the whole a load that failed."""
    try:
        engine.leave(request.target)
    except Exception as error:
        report.status, report.failure = Status.LOAD_FAILED, failure_of(error)


def _timings(loaded: Loaded, ledgers: Ledgers, compared: float) -> Timings:
    return Timings(
        setup=loaded.setup_seconds,
        load=loaded.load_seconds,
        compare=compared,
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        stream=sum(ledger.stream_seconds for ledger in ledgers.values()),
        stream_bytes=sum(ledger.stream_bytes for ledger in ledgers.values()),
    )


def _host_part(target: Target, local: frozenset[str]) -> HostPart:
    """What this host is about to compare; whoever started it adds how that ended."""
    return HostPart(
        number=target.host, of=target.hosts, devices=tuple(sorted(local)),
        status=Status.LOAD_FAILED, differences=0,
    )  # fmt: skip


def compare_part(
    report: Report,
    part: ReferencePart,
    parts: Sequence[ReferencePart],
    loaded: Loaded,
    ledger: Ledger,
    request: VerifyRequest,
    chosen: Chosen,
    covered: tuple[Counts, list[Difference]],
) -> dict[str, bool]:
    """Compare one part and add its tally, differences and diagnoses to ``report``.

    ``covered`` is what :func:`harness.verification.coverage.coverage` found of its load.

    Returns:
        The tensors its arrays are made of, and whether they were to be compared.
    """
    name_sites(ledger)
    device, *copies = expert_copies(loaded, part)
    options: dict[str, Any] = {
        "backend": request.target.backend, "nan": request.nan, "chosen": chosen,
        "method": request.method,
    }  # fmt: skip
    comparison = part_comparison(part, device, **options)
    counts, uncovered = covered
    differences = [*comparison.differences(), *uncovered]
    offset = len(report.differences)
    report.tallies = [t for t in report.tallies if t.part is not part.part]
    report.tallies.append(comparison.tally)
    report.deliveries.append(_delivery(part.part, ledger, counts))
    report.differences += differences
    explained = len(report.diagnoses)
    report.diagnoses += Explainer(comparison, parts, ledger).diagnose(differences, offset)
    report.calls += calls_of(part.part, ledger)
    add_copies(report, part, copies, ledger, **options)
    report.maps = [m for m in report.maps if m.part is not part.part]
    report.maps.append(
        map_of(
            part.part, part.layers, part.shape.experts,
            lambda layer: comparison.held.experts(chosen.of(layer)),
            report.differences[offset:], report.diagnoses[explained:], offset,
        )
    )  # fmt: skip
    held = add_parameters(
        report, part, loaded, request.target, request.nan, request.selection, chosen
    )
    return {**held, **expert_sources(part, chosen)}


def _delivery(part: Part, ledger: Ledger, counts: Counts) -> Delivery:
    sites = Counter(call.site for call in ledger.calls if call.is_of_expert)
    return Delivery(part=part, calls=len(ledger.calls), sites=dict(sites), **counts._asdict())


def _explain_failure(report: Report, parts: Sequence[ReferencePart], ledgers: Ledgers) -> None:
    """Why the load ended early, from the ledger of the part it ended in, and what never came."""
    failed = [p for p in parts if p.part in ledgers and not ledgers[p.part].finished]
    if not failed:
        report.diagnoses = diagnose_failure(Ledger(), (), 0)
        return
    part, ledger = failed[0], ledgers[failed[0].part]
    report.diagnoses = diagnose_failure(ledger, part.layers, part.shape.experts)
    (diagnosis,) = report.diagnoses
    lost = never_arrived(diagnosis, ledger, part.layers, part.shape.experts)
    report.maps = [with_missing(m, lost) if m.part is part.part else m for m in report.maps]


def add_parameters(
    report: Report,
    part: ReferencePart,
    loaded: Loaded,
    target: Target,
    nan: Nan,
    selection: Selection,
    chosen: Chosen,
) -> Mapping[str, bool]:
    """Compare a part's parameters besides experts and add tally, differences and diagnoses.

    A selection of experts selects the layers it names something of; what belongs to no layer is
    left out where ``max_bytes`` limits what is read.

    Returns:
        The tensors that the parameters are made of, and whether they were to be compared.
    """

    def wanted(layer: int | None) -> bool:
        if selection.everything:
            return True
        if layer is None:
            return selection.max_bytes is None
        return layer in part.layers and bool(chosen.of(layer))

    comparison = ParameterComparison(
        part, loaded.tensors[part.part], loaded.grid,
        packing=driver_of(target).packing(report.environment.versions), nan=nan, chosen=wanted,
        local=loaded.local,
    )  # fmt: skip
    differences = list(comparison.differences())
    report.diagnoses += ParameterExplainer(comparison).diagnose(
        differences, len(report.differences)
    )
    report.differences += differences
    report.parameters.append(comparison.tally)
    return comparison.sources


def expert_copies(loaded: Loaded, part: ReferencePart) -> list[DevicePart]:
    """A part's experts, once for each group of devices that together hold all of them.

    An array's shards outside the mesh count with the first group: they are no one's share. Of
    several hosts each looks at the groups it has devices of, and at the first, which is counted.
    """
    tensors, groups = loaded.tensors[part.part], loaded.grid.groups(TENSOR)
    others = {device for group in groups[1:] for device in group}
    return [
        device_part(
            [_held_by(t, set(group), others if i == 0 else None) for t in tensors],
            group,
            None if loaded.local is None else loaded.local & set(group),
            module=part.checkpoint.family.experts_module,
        )
        for i, group in enumerate(groups)
        if i == 0 or loaded.local is None or loaded.local & set(group)
    ]


def add_copies(
    report: Report,
    part: ReferencePart,
    copies: Sequence[DevicePart],
    ledger: Ledger,
    **options: Any,
) -> None:
    """Compare the further copies of a part's experts and add differences and diagnoses."""
    for device in copies:
        comparison = part_comparison(part, device, **options)
        differences = list(comparison.differences())
        report.diagnoses += Explainer(comparison, (), ledger).diagnose(
            differences, len(report.differences)
        )
        report.differences += differences


def _held_by(tensor: DeviceTensor, group: set[str], others: set[str] | None) -> DeviceTensor:
    """The tensor's shards on ``group``; where ``others`` is given, on all devices but those."""
    return replace(
        tensor,
        shards=tuple(
            s
            for s in tensor.shards
            if (s.device in group if others is None else s.device not in others)
        ),
    )
