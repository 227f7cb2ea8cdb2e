"""Jobs that verify with a digest file, in a loading process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.checkpoint.stores.directory import LocalFile
from harness.load.loaded import Loaded
from harness.report.report import Report, Status
from harness.verification.job import Verification, VerifyRequest, run
from harness.verification.verify import digests_used
from tests.support.fault_catalogue import FAULTS
from tests.support.reports import a_report


def verify_by_digests(argument: bytes, _: Meter) -> bytes:
    """Verify with a digest file, and a fault of the table planted where one is named.

    Returns:
        The report, and the bytes of weights that the independent reader read, as JSON.
    """
    request, fault = msgspec.json.decode(argument, type=tuple[VerifyRequest, str])
    read, bits, stream = [0], LocalFile.bits, LocalFile.stream

    def counted(self: LocalFile, *given: Any) -> Bits:
        array = bits(self, *given)
        read[0] += array.nbytes
        return array

    def counted_stream(self: LocalFile, offset: int, nbytes: int, *given: Any) -> Iterator[Bits]:
        read[0] += nbytes
        return stream(self, offset, nbytes, *given)

    def counted_by_descriptor(self: LocalFile, offset: int, nbytes: int, *given: Any) -> int:
        read[0] += nbytes
        return by_descriptor(self, offset, nbytes, *given)

    by_descriptor = LocalFile.by_descriptor
    LocalFile.by_descriptor = counted_by_descriptor  # type: ignore[assignment,method-assign]
    LocalFile.bits = counted  # type: ignore[assignment,method-assign]
    LocalFile.stream = counted_stream  # type: ignore[assignment,method-assign]
    planted = next((row.layers for row in FAULTS if row.name == fault), ())
    return msgspec.json.encode((run(request, _unfinished(request), planted=planted), read[0]))


def verify_twice_by_digests(argument: bytes, meter: Meter) -> bytes:
    """Load once with a fault of the table; compare while no weights can be read, and once more.

    Returns:
        Both reports, as JSON; of a load that failed the second alone, twice.
    """
    request, fault = msgspec.json.decode(argument, type=tuple[VerifyRequest, str])
    (planted,) = (row.layers for row in FAULTS if row.name == fault)
    job = _ComparedTwice(request, _unfinished(request), meter, planted)
    report = job.run()
    return msgspec.json.encode((job.alone or report, report))


def _unfinished(request: VerifyRequest) -> Report:
    return a_report(
        checkpoint=request.checkpoint, reference=request.digests, status=Status.LOAD_FAILED,
        tallies=[], digests=digests_used(request.digests),
    )  # fmt: skip


class _ComparedTwice(Verification):
    """Compares with digests alone first."""

    alone: Report | None = None

    def compared(self, loaded: Loaded) -> Report:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("bits", "stream", "by_descriptor"):
                patch.setattr(LocalFile, name, _unreadable)
            self.alone = super().compared(loaded)
        return super().compared(loaded)


def _unreadable(self: LocalFile, *_: Any) -> Bits:
    raise BadInput("gone", where=str(self), expected="weights", hint="another day")
