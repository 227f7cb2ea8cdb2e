"""The report of a verification: what ran, how much was compared, what differs and why.

Plain data that travels as JSON from the process that holds the tensors, and is written as JSON
for other programs. ``schema`` is raised when a field is added or changes its meaning:
2 added maps, calls, the members of a diagnosis, the time spent streaming, and a row's failure.
3 added the hosts of a slice.
4 added what a scenario is there to catch, scenarios that were skipped, the session's options, and
the owner of a known issue and the issue that a checkout mends.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from harness.causes import Diagnosis
from harness.deliveries import Calls
from harness.difference import Difference, ParameterTally, Tally
from harness.family import Part
from harness.foreign import presentable
from harness.maps import PartMap
from harness.secrets import redacted
from harness.writing import indented, write

SCHEMA = 4


class Status(StrEnum):
    """How a verification ended."""

    EQUAL = "equal"
    DIFFERENT = "different"
    LOAD_FAILED = "load-failed"


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
    """

    stack: str
    python: str
    versions: dict[str, str]
    target: str
    mesh: tuple[str, ...] = ()
    entry: str = ""
    overlay: str = ""


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
        calls: calls of a ``weight_loader``.
        sites: callers of experts' loaders and how often each called.
        streamed: tensors the streamer gave.
        delivered: of those, the ones a loader was called for.
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


class Report(msgspec.Struct, kw_only=True):
    """One verification of one checkpoint on one target.

    ``known_issue`` is the id of the row that describes the failure, where one does, and
    ``mended_issue`` that of the row whose failure does not happen with the overlay;
    ``issue_owner`` is who has to mend it.
    ``files_checked`` are the files whose store's checksum was compared, where that was asked for;
    ``maps`` have the state of every expert's matrices and ``calls`` what their loaders were called
    with. ``hosts`` are there where the mesh is one of several hosts: all of them in a merged
    report, its own in one host's.
    """

    checkpoint: str
    reference: str
    family: str
    status: Status
    environment: Environment
    tallies: list[Tally] = []
    parameters: list[ParameterTally] = []
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
        return {Status.EQUAL: 0, Status.DIFFERENT: 1, Status.LOAD_FAILED: 3}[self.status]

    def to_json(self) -> bytes:
        """The report as indented JSON, as :func:`harness.foreign.presentable` has it."""
        return indented(presentable(self))

    def write(self, path: Path) -> None:
        """Write the report as JSON; ``path`` appears when it is complete."""
        write(path, self.to_json())


class Row(msgspec.Struct, kw_only=True):
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
    rows: list[Row] = []
    skipped: list[Skipped] = []
    options: list[str] = []
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """The session as indented JSON, as :func:`harness.foreign.presentable` has it."""
        return indented(presentable(self))

    def write(self, path: Path) -> None:
        """Write the session as JSON; ``path`` appears when it is complete."""
        write(path, self.to_json())


def redacted_report(report: Report) -> Report:
    """``report`` with every credential that is known here replaced by its name."""
    return msgspec.convert(redacted(msgspec.to_builtins(report)), Report)


def report_from_json(encoded: bytes) -> Report:
    """Read a report back.

    Raises:
        msgspec.ValidationError: it is no report of this schema.
    """
    return msgspec.json.decode(encoded, type=Report)
