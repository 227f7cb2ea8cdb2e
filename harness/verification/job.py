"""The job of a loading process: load, compare and explain, where the tensors are."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import msgspec

from harness.base.bits import Nan
from harness.base.errors import BadInput, HarnessError, InternalError
from harness.base.progress import COMPARE, STREAM, Meter
from harness.base.writing import write
from harness.compare import equality
from harness.compare.authority import WEIGHTS, Authority, DigestedWeights
from harness.compare.difference import Account
from harness.compare.digest_comparison import Method
from harness.compare.digest_file import DigestFile, read_digest_file
from harness.compare.digesting import Digesting
from harness.compare.selection import Selection, choose, expert_bytes
from harness.devices import digest
from harness.explain.causes import Diagnosis
from harness.explain.load_failure import config_lacks, diagnose_failure, never_arrived
from harness.explain.rules import UNEXPLAINED
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part, Storage
from harness.families.known_families import bring
from harness.families.misread import Misread, misread_by
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.call_rows import calls_of
from harness.load.ledger import Ledger
from harness.load.loaded import Ledgers, Loaded
from harness.load.loader_layers import LoaderLayer
from harness.load.target import Implementation, Target
from harness.load.targets.driver import Capability
from harness.load.targets.known_targets import driver_of
from harness.report.maps import with_missing
from harness.report.report import (
    EQUAL,
    DigestsUsed,
    HostPart,
    Report,
    Status,
    Timings,
    equal,
    require_covered,
)
from harness.verification import reading_along
from harness.verification.coverage import (
    ComparedTensors,
    account_of_checkpoint,
    account_of_reference,
    beside_the_index,
    diagnosed,
    named,
    require_recorded,
    require_streamed,
)
from harness.verification.digest_cache import entry_name
from harness.verification.findings import Findings, PartFindings
from harness.verification.part_verification import How, PartVerification
from harness.verification.reading_along import Along, ReadingAlong, threads_along
from harness.verification.upstream_frames import failure_of, name_sites

#: Of a checkpoint, the share that is read once more, at most, so that its digests are kept.
_REST = 16


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a loading process is asked to verify.

    ``parts`` are those that were asked for and that both sides have, ``asked`` all that were, there
    or not; ``parts`` where it says none. ``families`` are files that describe families, by their
    absolute paths. ``digests`` is a digest file to compare with; the reference, which is the
    checkpoint itself then, is asked for its headers, and for weights only to explain. ``identity``
    is what the checkpoint's entry in the cache of digests is called, where one is used or to be
    made; digests that came about go to the file ``keep``. ``recorded`` says that the
    load is the harness's own, so that its ledgers tell what came and what did not.
    """

    checkpoint: str
    reference: str
    digests: str = ""
    identity: str = ""
    keep: str = ""
    target: Target
    parts: tuple[Part, ...]
    asked: tuple[Part, ...] = ()
    nan: Nan = Nan.PAYLOAD
    method: Method = Method.AUTO
    stream_options: dict[str, str] = {}
    selection: Selection = Selection()
    num_layers: int | None = None
    families: tuple[str, ...] = ()
    experts_only: bool = False
    storage: Storage | None = None
    recorded: bool = True


def prepare() -> None:
    """Have what compares compiled, once for all loads that are forked from this process."""
    equality.warm_up()
    digest.warm_up()


def verify_job(argument: bytes, meter: Meter) -> bytes:
    """The job of a loading process: a request and an unfinished report in, the report out.

    Raises:
        HarnessError: the target is not to be had; or, :class:`InternalError`, not the load under
            test failed, but what judges it.
    """
    request, report = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    os.environ.update(request.stream_options)
    try:
        bring(request.families)
        if request.target.on:
            from harness.verification import over_ray  # which compares as this does

            return msgspec.json.encode(over_ray.run(request, report, meter))
        return msgspec.json.encode(run(request, report, meter))
    except HarnessError:
        raise
    except Exception as error:
        raise InternalError.of(error) from error


def run(
    request: VerifyRequest,
    unfinished: Report,
    meter: Meter | None = None,
    planted: Sequence[LoaderLayer] = (),
) -> Report:
    """Load, compare and explain, in this process; the report.

    Args:
        request: what to verify.
        unfinished: names the checkpoint, the target and what there is to compare.
        meter: counts what is streamed and what is compared.
        planted: layers around the loader under test, for tests that plant faults in it.
    """
    return Verification(request, unfinished, meter or Meter(), planted).run()


class Verification:
    """One request, in the process that holds the tensors. The unfinished report stays as it is.

    Args:
        request: what to verify.
        unfinished: names the checkpoint, the target and what there is to compare.
        meter: counts what is streamed and what is compared.
        planted: layers around the loader under test.
        ledgers: of a load that was recorded before.
    """

    def __init__(
        self,
        request: VerifyRequest,
        unfinished: Report,
        meter: Meter,
        planted: Sequence[LoaderLayer] = (),
        *,
        ledgers: Ledgers | None = None,
    ) -> None:
        self._request = request
        self._unfinished = unfinished
        self._meter = meter
        self._planted = planted
        self._ledgers: Ledgers = {} if ledgers is None else ledgers
        self._reference = self._opened(request.reference)
        same = request.checkpoint == request.reference
        self._checkpoint = self._reference if same else self._opened(request.checkpoint)
        self._require_identity()
        self._digests = self._opened_digests()
        self._authority: Authority = self._digests or WEIGHTS
        self._along: ReadingAlong | None = None
        self._parts = tuple(
            part
            for part in reference_parts(self._reference, request.num_layers, request.parts)
            if part.part in request.parts
        )
        self._digesting = Digesting(self._reference) if request.keep else None
        self._reference.listener = self._digesting

    def _require_identity(self) -> None:
        """See that these are the files which the cache of digests was asked for.

        Raises:
            BadInput: they were replaced since.
        """
        request = self._request
        if request.identity and request.identity != entry_name(self._reference, request.families):
            raise BadInput(
                "the checkpoint changed while it was verified",
                where=self._reference.path,
                expected="files that stay as they are until all is compared",
                hint="again, when whatever writes there has ended",
            )

    def _keep(self) -> None:
        """Hand over the digests that came about, if nearly all did: the rest of them is read."""
        made = self._digesting
        if made is None or made.missing * _REST > self._reference.nbytes:
            return
        try:
            write(Path(self._request.keep), made.completed().encoded(), durable=False)
        except (BadInput, OSError):  # what is not kept is no fault of the load's
            return

    def _opened(self, path: str) -> ModelCheckpoint:
        request = self._request
        return ModelCheckpoint(path, request.storage, experts_only=request.experts_only)

    def _opened_digests(self) -> DigestFile | None:
        """The digest file that was asked for; what it is of was looked at before the load.

        Raises:
            BadInput: it is no longer the one that was.
        """
        if not self._request.digests:
            return None
        found = read_digest_file(self._request.digests)
        told = self._unfinished.digests
        if told is None or told.checksum != found.checksum:
            raise BadInput(
                "the digest file changed while it was used",
                where=self._request.digests,
                expected="a file that does not change until everything is compared",
                hint="run it again when nothing writes to this file any more",
            )
        return found

    def run(self) -> Report:
        """Load; compare what arrived, or explain why nothing did."""
        times = len(self._parts)  # each part is streamed all of it
        entries = self._checkpoint.entries
        self._meter.begin(STREAM, times * self._checkpoint.nbytes, times * len(entries))
        try:
            loaded = self.load()
        except HarnessError:
            raise
        except Exception as error:  # the stack's, whatever it is
            return self._of_failed_load(error)
        started = time.perf_counter()
        report = self.compared(loaded)
        if report.status is Status.EQUAL:
            self._keep()
        if (gone := self._left()) is not None:
            report = msgspec.structs.replace(
                report, status=Status.LOAD_FAILED, failure=failure_of(gone)
            )
        timings = self._timings(loaded, time.perf_counter() - started)
        return msgspec.structs.replace(report, timings=timings)

    def timed(self, loaded: Loaded) -> Report:
        """The report of what is on the devices, with the seconds that it took."""
        started = time.perf_counter()
        report = self.compared(loaded)
        timings = self._timings(loaded, time.perf_counter() - started)
        return msgspec.structs.replace(report, timings=timings)

    def load(self) -> Loaded:
        """Stream the checkpoint onto the target; the reference may be read meanwhile.

        Raises:
            Exception: whatever the stack under test raises, unchanged.
        """
        request = self._request
        self._along = self._reading_along()
        try:
            return engine.load(
                request.checkpoint, self._reference.family, request.target, request.parts,
                num_layers=request.num_layers, ledgers=self._ledgers, meter=self._meter,
                planted=self._planted,
            )  # fmt: skip
        except BaseException:
            if self._along:
                self._along.close()
            raise

    def _reading_along(self) -> ReadingAlong | None:
        """What reads the reference while the load runs; None where nothing does."""
        request = self._request
        own_memory = driver_of(request.target).can(Capability.OWN_MEMORY)
        auto = request.method is Method.AUTO and own_memory
        everything = request.selection.everything and request.num_layers is None
        threads = threads_along(
            self._checkpoint,
            by_digests=auto or request.method is Method.DIGESTS,
            whole=everything and request.nan is Nan.PAYLOAD and request.target.hosts == 1,
            read=self._authority is WEIGHTS and self._checkpoint is self._reference,
        )
        if not threads:
            return None
        asked = Along(
            checkpoint=request.checkpoint, storage=request.storage, families=request.families,
            threads=threads, parent=os.getpid(), idle=reading_along.RULE.idle,
        )  # fmt: skip
        try:
            return ReadingAlong(asked)
        except OSError:  # no room for it: the reference is read after the load
            return None

    def _serve(self, loaded: Loaded) -> None:
        """Look at the devices as the implementation has them that served.

        Raises:
            BadInput: it is tpu-inference's own of a family for which that is not described.
        """
        if Implementation.JAX in map(loaded.implementation, loaded.tensors):
            for checkpoint in {self._reference, self._checkpoint}:
                checkpoint.family = checkpoint.family.served_by_jax()

    def _of_failed_load(self, error: Exception) -> Report:
        """The report of a load that raised, and why: from the ledger of the part it ended in."""
        for ledger in self._ledgers.values():
            name_sites(ledger)
        report = msgspec.structs.replace(
            self._unfinished,
            failure=failure_of(error),
            calls=[call for item in self._ledgers.items() for call in calls_of(*item)],
        )
        failed = next((part for part in self._parts if self._ended_in(part)), None)
        if failed is None:
            (diagnosis,) = diagnose_failure(Ledger(), (), 0)
            diagnoses = [self._or_config(diagnosis, error)]
            return msgspec.structs.replace(report, diagnoses=diagnoses)
        ledger = self._ledgers[failed.part]
        (diagnosis,) = diagnose_failure(
            ledger, failed.layers, failed.shape.experts, self._misread(failed.part)
        )
        diagnosis = self._or_config(diagnosis, error)
        lost = never_arrived(diagnosis, ledger, failed.layers, failed.shape.experts)
        return msgspec.structs.replace(
            report,
            diagnoses=[diagnosis],
            maps=[with_missing(m, lost) if m.part is failed.part else m for m in report.maps],
        )

    def _or_config(self, diagnosis: Diagnosis, error: Exception) -> Diagnosis:
        """What config.json lacks, where nothing else explains the failure."""
        if diagnosis.cause is not UNEXPLAINED:
            return diagnosis
        return config_lacks(error, self._checkpoint) or diagnosis

    def _misread(self, part: Part) -> Misread | None:
        """What the stack takes the storage of the checkpoint's experts for, if for another."""
        versions, family = self._unfinished.environment.versions, self._checkpoint.family
        stored = (naming.storage for naming in self._checkpoint.namings if naming.part is part)
        found = (misread_by(family.misread, storage, versions) for storage in stored)
        return next(filter(None, found), None)

    def _ended_in(self, part: ReferencePart) -> bool:
        ledger = self._ledgers.get(part.part)
        return ledger is not None and (not ledger.finished or bool(ledger.unassigned))

    def compared(self, loaded: Loaded) -> Report:
        """The report of all parts of a load, here put together from what each step found."""
        self._serve(loaded)
        target = self._request.target
        if along := self._along:
            self._along = None
            self._authority = known = along.authority()
            if self._digesting and isinstance(known, DigestedWeights):
                for what, digests in known.by_type().items():
                    self._digesting.digests(what, digests)
        parts = self._of_parts(loaded)
        found = reduce(add, (part.found for part in parts), Findings())
        accounts, unaccounted = self._accounts(parts, found)
        found += unaccounted
        status = Status.DIFFERENT if found.differences else equal(self._request.experts_only)
        tallies = _replaced(self._unfinished.tallies, [part.tally for part in parts])
        if status in EQUAL and target.hosts == 1:
            require_covered(tallies, self._request.parts)  # of several hosts the merged report's
        return msgspec.structs.replace(
            self._unfinished,
            status=status,
            environment=msgspec.structs.replace(
                self._unfinished.environment,
                mesh=loaded.mesh,
                entry=loaded.entry,
                implementations={p: loaded.implementation(p).value for p in loaded.tensors},
            ),
            digests=self._digests_used(),
            hosts=[] if loaded.local is None else [_host_part(target, loaded.local)],
            tallies=tallies,
            parameters=[part.parameters for part in parts if part.parameters],
            deliveries=[part.delivery for part in parts],
            calls=[call for part in parts for call in part.calls],
            maps=_replaced(self._unfinished.maps, [part.map for part in parts]),
            accounts=accounts,
            differences=list(found.differences),
            diagnoses=list(found.diagnoses),
        )

    def _digests_used(self) -> DigestsUsed | None:
        if self._digests is None or self._unfinished.digests is None:
            return None
        return msgspec.structs.replace(self._unfinished.digests, read=sorted(self._digests.read))

    def _of_parts(self, loaded: Loaded) -> list[PartFindings]:
        """Compare one part after the other."""
        request = self._request
        how = How(
            backend=request.target.backend,
            packing=driver_of(request.target).packing(self._unfinished.environment.versions),
            nan=request.nan, method=request.method, selection=request.selection,
            authority=self._authority,
        )  # fmt: skip
        experts = choose(self._parts, request.selection)
        nbytes = sum(experts[p.part].count * expert_bytes(p) for p in self._parts)
        self._meter.begin(COMPARE, nbytes)
        present = self._scope([]).present(self._checkpoint)
        found = []
        for part in self._parts:
            ledger = self._ledgers.get(part.part, Ledger())
            if request.recorded:
                require_recorded(part.part, ledger)
            name_sites(ledger)
            verification = PartVerification(
                part=part, parts=self._parts, loaded=loaded, ledger=ledger,
                chosen=experts[part.part], how=how, present=present,
                others=self._checkpoint.entries.keys() - self._reference.entries.keys(),
                meter=self._meter,
            )  # fmt: skip
            found.append(verification.findings())
            if request.recorded:
                require_streamed(part.part, ledger, found[-1].found.differences)
        return found

    def _scope(self, parts: Sequence[PartFindings]) -> ComparedTensors:
        """What was compared: a tensor that two parts are made of, if it was with either."""
        sources: dict[str, bool] = {}
        for part in parts:
            sources |= {n: wanted or sources.get(n, False) for n, wanted in part.sources.items()}
        asked = self._request.asked or self._request.parts
        return ComparedTensors(self._reference, self._parts, asked, sources)

    def _accounts(
        self, parts: Sequence[PartFindings], found: Findings
    ) -> tuple[list[Account], Findings]:
        """Account for every tensor of the reference, and of a checkpoint that is not its own."""
        scope = self._scope(parts)
        account, differences = account_of_reference(scope, named(found.differences))
        accounts, unaccounted = [account], Findings.of(differences, diagnosed)
        unaccounted += Findings.of(beside_the_index(self._checkpoint), diagnosed)
        if self._checkpoint is not self._reference:
            told = named([*found.differences, *differences])
            account, differences = account_of_checkpoint(self._checkpoint, scope, told)
            accounts.append(account)
            unaccounted += Findings.of(differences, diagnosed)
        return accounts, unaccounted

    def _left(self) -> Exception | None:
        """Part from the other hosts; one that is gone makes the whole a load that failed."""
        try:
            engine.leave(self._request.target)
        except Exception as error:
            return error
        return None

    def _timings(self, loaded: Loaded, compared: float) -> Timings:
        ledgers = self._ledgers.values()
        return Timings(
            setup=loaded.setup_seconds,
            load=loaded.load_seconds,
            compare=compared,
            peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            stream=sum(ledger.stream_seconds for ledger in ledgers),
            stream_bytes=sum(ledger.stream_bytes for ledger in ledgers),
        )


def _replaced(before: Sequence[Any], found: Sequence[Any]) -> list[Any]:
    """Those of parts that were not compared, then those of parts that were."""
    parts = {each.part for each in found}
    return [*(each for each in before if each.part not in parts), *found]


def _host_part(target: Target, local: frozenset[str]) -> HostPart:
    """What this host is about to compare; whoever started it adds how that ended."""
    return HostPart(
        number=target.host, of=target.hosts, devices=tuple(sorted(local)),
        status=Status.LOAD_FAILED, differences=0,
    )  # fmt: skip
