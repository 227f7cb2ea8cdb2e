"""Jobs that verify with a digest file, in a loading process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from harness.base.bits import Bits
from harness.base.progress import Meter
from harness.checkpoint.stores.directory import LocalFile
from harness.report.report import Status
from harness.verification.job import VerifyRequest, run
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
    report = a_report(
        checkpoint=request.checkpoint, reference=request.digests, status=Status.LOAD_FAILED,
        tallies=[], digests=digests_used(request.digests),
    )  # fmt: skip
    planted = next((row.layers for row in FAULTS if row.name == fault), ())
    return msgspec.json.encode((run(request, report, planted=planted), read[0]))
