"""The report of a verification: what ran, how much was compared, what differs and why.

Plain data that travels as JSON from the process that holds the tensors, and is written as JSON
for other programs. ``schema`` is raised when a field is added or changes its meaning:
2 added maps, calls, the members of a diagnosis, the time spent streaming, and a row's failure.
3 added the hosts of a slice.
4 added what a scenario is there to catch, scenarios that were skipped, the session's options, and
the owner of a known issue and the issue that a checkout mends.
5 added the accounts of tensors.
6 gave each kind of difference fields of its own: bits and shares as numbers, a source by its parts.
7 added reports of experts only, with a status of their own where these are equal.
8 added the parts that config.json announces and no file holds.
9 added digest files as references, and differences from them.
10 added which of upstream's implementations of a model served each part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from harness.base.errors import BadInput, InternalError
from harness.base.foreign import presentable
from harness.base.secrets import redacted
from harness.base.writing import indented, write
from harness.compare.accounting import EXPERTS_ONLY
from harness.compare.difference import Account, Difference, ParameterTally, Tally, Unaccounted
from harness.explain.causes import Diagnosis
from harness.families.family import Part, Projection
from harness.load.call_rows import Calls
from harness.report.maps import PartMap, State, map_of

SCHEMA = 10


class Status(StrEnum):
    """How a verification ended.

    ``experts-equal``: experts only were looked at, and these are equal.
    """

    EQUAL = "equal"
    EXPERTS_EQUAL = "experts-equal"
    DIFFERENT = "different"
    LOAD_FAILED = "load-failed"


#: Nothing that was looked at differs.
EQUAL = (Status.EQUAL, Status.EXPERTS_EQUAL)


def equal(experts_only: bool) -> Status:
    """The status where nothing differs: never plainly equal, where experts only were looked at."""
    return Status.EXPERTS_EQUAL if experts_only else Status.EQUAL


class Frame(msgspec.Struct, frozen=True):
    """One frame of a traceback: file relative to its package's parent, line, function, text."""

    file: str
    line: int
    function: str
    text: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The load under test failed: upstream's error, its frames, and the log's last lines.

    ``host`` is the number of the host it failed on, where there are several.
    """

    error: str
    message: str
    frames: tuple[Frame, ...] = ()
    log_tail: str = ""
    host: int | None = None


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran: stack, interpreter, versions, target, mesh and entry point.

    ``overlay`` names the checkouts that stood in for installed packages, and their commits.
    ``implementations`` has for each part that was loaded whose model it is: ``vllm``, or ``jax``,
    tpu-inference's own.
    """

    stack: str
    python: str
    versions: dict[str, str]
    target: str
    mesh: tuple[str, ...] = ()
    entry: str = ""
    overlay: str = ""
    implementations: dict[Part, str] = {}


class Timings(msgspec.Struct, kw_only=True):
    """Seconds: making the configuration and devices, loading, comparing; peak RSS in bytes.

    ``stream`` of the load's seconds were spent waiting for the streamer's ``stream_bytes``.
    """

    setup: float = 0.0
    load: float = 0.0
    compare: float = 0.0
    peak_rss: int = 0
    stream: float = 0.0
    stream_bytes: int = 0


class Delivery(msgspec.Struct, kw_only=True):
    """How one part of the stack was loaded, as the ledger has it.

    Attributes:
        part: decoder or mtp.
        calls: calls of a ``weight_loader``, and copies into parameters past it.
        sites: callers of experts' loaders, or who copies experts, and how often each did.
        streamed: tensors the streamer gave.
        delivered: of those, the ones a loader was called for, or that were copied.
        unused: those this part leaves alone on purpose.
        unread: those nobody accounts for.
    """

    part: Part
    calls: int
    sites: dict[str, int]
    streamed: int
    delivered: int
    unused: int
    unread: int


class HostPart(msgspec.Struct, frozen=True, kw_only=True):
    """What one host of several did.

    Attributes:
        number: of the host, from 0.
        of: how many hosts there are.
        devices: those of the mesh whose shards it compared.
        status: its own part's.
        differences: it found.
        seconds: from its start to its end.
        peak_rss: bytes.
    """

    number: int
    of: int
    devices: tuple[str, ...]
    status: Status
    differences: int
    seconds: float = 0.0
    peak_rss: int = 0


class DigestsUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The digest file that stood in for the reference's weights.

    Attributes:
        file: its path.
        definition: the number of the digests' definition.
        revision: the hub's ``org/name@commit`` that was digested; empty where it was none.
        checksum: the file's own.
        read: tensors of the checkpoint that were read all the same, to compare what the devices'
            digests do not tell, or to explain a difference.
        kept: it is an entry of the harness's cache, kept of these very files by a run before.
    """

    file: str
    definition: int
    revision: str
    checksum: str
    read: list[str] = []
    kept: bool = False


class Report(msgspec.Struct, kw_only=True):
    """One verification of one checkpoint on one target.

    ``known_issue`` is the id of the row that describes the failure, if any; ``mended_issue`` that
    of the row whose failure no longer happens with the overlay; ``issue_owner`` who has to fix it.
    ``digests`` names the digest file that was the reference, if any; ``reference`` then holds its
    path, unless an earlier run kept it for the checkpoint itself.
    ``cache`` says what happened to the digests kept between runs, if anything.
    ``experts_only`` says that only experts were compared.
    ``absent`` lists parts that the reference's ``config.json`` announces and no file holds; they
    were neither loaded nor compared.
    ``accounts`` say what happened to every tensor: of the reference, and of the checkpoint if it
    is another one.
    ``files_checked`` lists the files whose store's checksum was compared, if that was asked for;
    ``maps`` hold the state of every expert's matrices and ``calls`` the calls of their loaders.
    ``hosts`` is set for a mesh over several hosts: all of them in a merged report, its own in
    one host's.
    """

    checkpoint: str
    reference: str
    family: str
    status: Status
    environment: Environment
    tallies: list[Tally] = []
    parameters: list[ParameterTally] = []
    accounts: list[Account] = []
    differences: list[Difference] = []
    diagnoses: list[Diagnosis] = []
    deliveries: list[Delivery] = []
    maps: list[PartMap] = []
    calls: list[Calls] = []
    hosts: list[HostPart] = []
    failure: Failure | None = None
    timings: Timings = msgspec.field(default_factory=Timings)
    repeat: str = ""
    known_issue: str = ""
    mended_issue: str = ""
    issue_owner: str = ""
    files_checked: int = 0
    experts_only: bool = False
    absent: list[Part] = []
    digests: DigestsUsed | None = None
    cache: str = ""
    schema: int = SCHEMA

    @property
    def experts_compared(self) -> int:
        """Experts of all layers and parts that were compared."""
        return sum(tally.experts_compared for tally in self.tallies)

    @property
    def bytes_compared(self) -> int:
        """Bytes of experts that were compared."""
        return sum(tally.bytes_compared for tally in self.tallies)

    @property
    def all_bytes_compared(self) -> int:
        """Bytes of the checkpoint that were compared, experts and all else."""
        return self.bytes_compared + sum(tally.bytes_compared for tally in self.parameters)

    @property
    def parameters_compared(self) -> int:
        """Parameters besides experts, of all parts, that were compared."""
        return sum(tally.compared for tally in self.parameters)

    @property
    def exit_code(self) -> int:
        """0 equal, 1 differences, 3 the load under test failed."""
        if self.status in EQUAL:
            return 0
        return {Status.DIFFERENT: 1, Status.LOAD_FAILED: 3}[self.status]

    def to_json(self) -> bytes:
        """The report as indented JSON, as :func:`harness.base.foreign.presentable` has it."""
        return indented(presentable(self))

    def write(self, path: Path) -> None:
        """Write the report as JSON; ``path`` appears when it is complete."""
        write(path, self.to_json())


class SessionRow(msgspec.Struct, kw_only=True):
    """One scenario of a session: its id, its report, and whether that failed its test.

    A known failure fails none where it is expected; ``why`` is the text of a failed test, and
    ``purpose`` what the scenario is there to catch.
    """

    scenario: str
    report: Report
    failed: bool = False
    why: str = ""
    purpose: str = ""


class Broken(msgspec.Struct, kw_only=True, frozen=True):
    """A test that failed for another reason than a report: its id, the phase, and the error.

    ``message`` is the error's own line, ``error`` all that pytest tells.
    """

    test: str
    phase: str
    message: str
    error: str


class Skipped(msgspec.Struct, kw_only=True, frozen=True):
    """A scenario that did not run, and the capability that is missing."""

    scenario: str
    reason: str


class Session(msgspec.Struct, kw_only=True):
    """The reports of one pytest session, of all its workers, in the order of the catalogue.

    ``unfinished`` names the tests that were begun and not ended: the session was interrupted, or
    a worker died. ``complete`` says that there are none. ``broken`` are the tests that failed
    without a report to show for it, ``skipped`` the scenarios that did not run. ``began`` is UTC,
    ISO 8601. ``options`` are those of the harness that were given, as on the command line.
    """

    complete: bool
    unfinished: list[str] = []
    broken: list[Broken] = []
    began: str = ""
    rows: list[SessionRow] = []
    skipped: list[Skipped] = []
    options: list[str] = []
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """The session as indented JSON, as :func:`harness.base.foreign.presentable` has it."""
        return indented(presentable(self))

    def write(self, path: Path) -> None:
        """Write the session as JSON; ``path`` appears when it is complete."""
        write(path, self.to_json())


#: What is read of a report's file at most.
MOST_BYTES = 256 * 2**20


def redacted_report(report: Report) -> Report:
    """``report`` with every credential that is known here replaced by its name."""
    whole: Report = redacted(report)
    return whole


def report_from_json(encoded: bytes) -> Report:
    """Read a report back.

    Raises:
        msgspec.ValidationError: it is no report of this schema.
        BadInput: its status is not what its content says.
    """
    return believed(msgspec.json.decode(encoded, type=Report), "the JSON of a report")


def content_of(path: Path) -> bytes:
    """The content of a report's or a session's file, which may be anything that can be read.

    Raises:
        BadInput: it has more bytes than any report has, or no end.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise BadInput(
            f"more than {MOST_BYTES} bytes",
            where=str(path),
            expected="the JSON that harness verify --json or pytest --reports writes",
            hint="check what this file is; a report in which every expert differs has about 50 MB",
        )
    return content


def believed(report: Report, where: str) -> Report:
    """``report``, once its status and its figures are those that its content comes to.

    Args:
        report: one that was read, or that another process sent.
        where: it came from.

    Raises:
        BadInput: they are not.
    """
    if fault := next(contradictions(report), ""):
        raise BadInput(
            f"a report that contradicts itself: {fault}",
            where=where,
            expected="a status that matches the differences, the failure and the counts in it",
            hint="verify the checkpoint again; this file was edited or damaged",
        )
    return report


def contradictions(report: Report) -> Iterator[str]:
    """What a report says of itself that its content does not bear out; nothing where all agrees.

    A status is derived here from the content alone: a failure, then differences, then whether all
    that there was to compare was compared. One host's report of several is its part of the whole.
    """
    derived = Status.DIFFERENT if report.differences else equal(report.experts_only)
    derived = Status.LOAD_FAILED if report.failure else derived
    if report.status is not derived:
        found = f"{len(report.differences)} differences and {'a' if report.failure else 'no'}"
        yield f"its status is {report.status}, with {found} failure"
    yield from _beyond_their_totals(report)
    yield from _odd_diagnoses(report)
    for part_map in report.maps:
        yield from _odd_map(report, part_map)
    yield from _more_than_experts(report)
    counted = {tally.part for tally in report.tallies} | {Part.DECODER}
    if both := counted & set(report.absent):
        yield f"no file holds {', '.join(sorted(both))}, it says, and has counts of it"
    if report.status in EQUAL:
        yield from _not_equal(report)
    elif report.mended_issue:
        yield f"{report.mended_issue} is mended, and its status is {report.status}"


def _beyond_their_totals(report: Report) -> Iterator[str]:
    """Counts that are negative, or larger than what they are a part of."""
    for tally in report.tallies:
        if min(tally.experts_compared, tally.left_out, tally.bytes_compared) < 0 or (
            tally.experts_compared + tally.left_out > tally.experts
        ):
            yield f"{tally.experts_compared} experts of {tally.experts} compared in {tally.part}"
    for other in report.parameters:
        if min(other.compared, other.left_out, other.bytes_compared) < 0 or (
            other.compared + other.left_out > other.parameters
        ):
            yield f"{other.compared} parameters of {other.parameters} compared in {other.part}"
    for account in report.accounts:
        counts = [account.compared, account.unaccounted, *account.left_alone.values()]
        if min(counts) < 0 or sum(counts) != account.tensors:
            yield f"{sum(counts)} of {account.tensors} tensors of the {account.side} are counted"
    for name, tallies in (("experts", report.tallies), ("parameters", report.parameters)):
        parts = [tally.part for tally in tallies]
        if len(parts) != len(set(parts)):
            yield f"a part has two counts of its {name}"


_MEMBERS = re.compile(r"(\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*)?")


def _odd_diagnoses(report: Report) -> Iterator[str]:
    """Diagnoses that name differences which are not there."""
    count = len(report.differences)
    for diagnosis in report.diagnoses:
        if not _MEMBERS.fullmatch(diagnosis.members):
            yield f"a diagnosis, {diagnosis.cause}, whose members are not numbers"
            continue
        ends = [int(number) for number in re.findall(r"\d+", diagnosis.members)]
        first_of_none = not report.failure and not 0 <= diagnosis.first < count
        if first_of_none or any(number >= count for number in ends):
            yield f"a diagnosis, {diagnosis.cause}, of a difference that is not there"


#: Matrices that a map of one part may have: some hundred times those of the largest release.
_MOST_CELLS = 10_000_000
_RUN_LENGTHS = re.compile(rf"(\d{{1,8}}[{''.join(State)}])*")


def _odd_map(report: Report, part_map: PartMap) -> Iterator[str]:
    """A map of another size than the tally's, or one whose states are not the differences'."""
    name = f"the map of {part_map.part}"
    rows = [row for encoded in part_map.states.values() for row in encoded]
    cells = len(part_map.layers) * part_map.experts
    tallies = [tally for tally in report.tallies if tally.part is part_map.part]
    sizes = [(len(part_map.layers), cells)] * len(tallies)
    if not 0 <= cells <= _MOST_CELLS or [(t.layers, t.experts) for t in tallies] != sizes:
        yield f"{name} has {cells} experts, its count others"
    elif any(len(encoded) != len(part_map.layers) for encoded in part_map.states.values()) or any(
        not _RUN_LENGTHS.fullmatch(row) or _length(row) != part_map.experts for row in rows
    ):
        yield f"{name} is not of {len(part_map.layers)} layers and {part_map.experts} experts"
    elif not tallies:
        yield f"{name} is of a part that has no count"
    else:
        yield from _odd_states(report, part_map, tallies[0])


def _length(row: str) -> int:
    return sum(int(number) for number in re.findall(r"\d+", row))


def _odd_states(report: Report, part_map: PartMap, tally: Tally) -> Iterator[str]:
    name = f"the map of {part_map.part}"
    known = len(Projection) * part_map.experts * len(part_map.layers)
    known -= part_map.count(State.NOT_COMPARED)
    if len(Projection) * tally.experts_compared > known:
        yield f"{name} knows of {known} matrices, {tally.experts_compared} experts were compared"
    if report.status in EQUAL and len(Projection) * tally.experts_compared != known:
        yield f"{name} knows of {known} matrices, {tally.experts_compared} experts are equal"
    if report.failure is None and _bad(part_map) != _differing(report, part_map):
        yield f"{name} marks other matrices than the differences name"


def _bad(part_map: PartMap) -> set[tuple[Projection, int, int]]:
    """The matrices of which a map says that something is wrong."""
    bad = State.DIFFERS, State.MISSING, State.MISPLACED
    if not any(part_map.count(state) for state in bad):
        return set()
    return {
        (projection, layer, expert)
        for projection, layer, row in part_map.rows()
        for expert, state in enumerate(row)
        if state in bad
    }


def _differing(report: Report, part_map: PartMap) -> set[tuple[Projection, int, int]]:
    """The matrices that the differences of a part are about; no parameter that is unaccounted."""
    of_part = [d for d in report.differences if d.part is part_map.part]
    own = [d for d in of_part if d.layer is not None and not isinstance(d, Unaccounted)]
    if not own:
        return set()
    numbers = range(part_map.experts)
    layers = list(part_map.layers)
    own = [d for d in own if d.layer in layers and (d.expert is None or d.expert in numbers)]
    return _bad(map_of(part_map.part, layers, part_map.experts, differences=own))


def _more_than_experts(report: Report) -> Iterator[str]:
    """What a report of experts only says of other things, and another of experts only."""
    only = any(EXPERTS_ONLY in account.left_alone for account in report.accounts)
    if only and not report.experts_only:
        yield "its account is of experts only, it does not say so itself"
    if report.experts_only and report.parameters:
        yield "it is of experts only, and other parameters were compared"


def _not_equal(report: Report) -> Iterator[str]:
    """What keeps a report without differences and failure from being equal."""
    if (
        report.digests
        and (report.checkpoint if report.digests.kept else report.digests.file) != report.reference
    ):
        yield "it is equal, and its digest file is not what it was compared with"
    if report.diagnoses:
        yield f"it is equal, and has a cause: {report.diagnoses[0].cause}"
    if report.known_issue:
        yield f"it is equal, and a known issue, {report.known_issue}, describes its failure"
    if any(part.status is not report.status or part.differences for part in report.hosts):
        yield "it is equal, and one of its hosts is not"
    if any(delivery.unread for delivery in report.deliveries):
        yield "it is equal, and tensors were not read"
    if any(account.unaccounted for account in report.accounts):
        yield "it is equal, and tensors are unaccounted for"
    compared = report.experts_compared + report.parameters_compared
    if not compared:
        yield "it is equal, and nothing was compared"
    if len(report.hosts) == 1 and report.hosts[0].of > 1:
        return  # a part of the whole, which the merged report is to be
    for tally in report.tallies:
        if tally.experts_compared + tally.left_out != tally.experts:
            wanted = tally.experts - tally.left_out
            yield f"it is equal, {tally.experts_compared} of {wanted} experts were compared"
    for other in report.parameters:
        if other.compared + other.left_out != other.parameters:
            wanted = other.parameters - other.left_out
            yield f"it is equal, {other.compared} of {wanted} parameters were compared"


def require_covered(tallies: Sequence[Tally], parts: Collection[Part]) -> None:
    """Of parts that are called equal, every expert was compared or left out by request.

    Raises:
        InternalError: some were not, and no difference says why.
    """
    short = [t for t in tallies if t.experts_compared + t.left_out != t.experts]
    if short or not tallies or {tally.part for tally in tallies} != set(parts):
        counts = [f"{t.part} {t.experts_compared} of {t.experts - t.left_out}" for t in tallies]
        raise InternalError(
            f"nothing differs, but not all was compared: {', '.join(counts) or 'no part'}",
            where="the tallies of the report",
            expected=f"every expert that was asked for, of {', '.join(parts) or 'some part'}",
            hint="report this, with the JSON of the report",
        )
