"""What each of two hosts reports, and differences it found."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from harness.compare.difference import BitsDiffer, Difference, ParameterTally, Tally
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection
from harness.report.maps import map_of
from harness.report.report import HostPart, Report, Status, Timings
from tests.support.reports import a_report, an_environment

MESH = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")


def host(number: int, *, divided: bool = False, **given: Any) -> Report:
    """Host ``number`` of two, equal: it has two of four devices and compared its part."""
    own = range(4) if divided else range(2 * number, 2 * number + 2)  # as a host's job marks it
    report = a_report(
        environment=an_environment(target="emulated, 4 devices on 2 hosts", mesh=MESH),
        tallies=[
            Tally(part=Part.DECODER, layers=1, experts=4, experts_compared=len(own),
                  bytes_compared=100, padding_bytes=10, divided=divided)
        ],
        parameters=[ParameterTally(part=Part.DECODER, parameters=5, compared=5, bytes_compared=7)],
        maps=[map_of(Part.DECODER, [0], 4, lambda layer: own)],
        timings=Timings(load=1.0 + number, compare=0.5, peak_rss=10 - number, stream_bytes=50),
        hosts=[
            HostPart(number=number, of=2, devices=MESH[2 * number : 2 * number + 2],
                     status=Status.EQUAL, differences=0, seconds=3.0 + number)
        ],
    )  # fmt: skip
    return replace(report, **given)


def bits(expert: int, device: str) -> Difference:
    return BitsDiffer(
        part=Part.DECODER, layer=0, expert=expert, projection=Projection.UP,
        parameter="w13_weight", device_name=device, reference=0, device=1, itemsize=2,
        index=(0, 0), count=1, total=9,
    )  # fmt: skip


def different(number: int, *differences: Difference, **given: Any) -> Report:
    diagnosis = Diagnosis(
        cause=Cause.ZEROS, summary="zeros", evidence=f"on host {number}", next_step="n",
        covers=len(differences), members=f"0-{len(differences) - 1}",
    )  # fmt: skip
    maps = [
        map_of(Part.DECODER, [0], 4, lambda layer: range(2 * number, 2 * number + 2), differences)
    ]
    return host(
        number, status=Status.DIFFERENT, differences=list(differences), diagnoses=[diagnosis],
        **({"maps": maps} | given),
    )  # fmt: skip
