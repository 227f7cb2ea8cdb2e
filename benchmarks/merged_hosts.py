"""Merging what the hosts of a big slice recorded: seconds, memory, and the size of what comes out.

``PYTHONPATH=. python benchmarks/merged_hosts.py [--hosts 8 16 64] [--keep DIR]``. Each host's part
is of a load of Qwen3.5-397B-A17B's shape (60 layers of 512 experts): its maps, its tallies, what
its loaders were called with, and, in one case of three, a fault that every host sees of its own
experts. ``harness merge`` and ``harness report`` read them as they would read a slice's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.compare.difference import BitsDiffer, Difference, ParameterTally, Tally
from harness.explain.causes import Cause, Diagnosis
from harness.families.family import Part, Projection
from harness.families.known_families import family_named
from harness.load.call_rows import Calls
from harness.report.maps import map_of
from harness.report.report import (
    Delivery,
    Environment,
    HostPart,
    Report,
    Session,
    SessionRow,
    Status,
    Timings,
)

_CHIPS = 4
_SHAPE = family_named("qwen3.5-moe").shape_named("published:qwen3.5-397b-a17b")
_LAYERS = range(_SHAPE.layers)
#: What each host's part is like: experts whole or divided, and every which one of its own differs.
CASES = {"experts whole": (False, 0), "experts divided": (True, 0), "every 8th differs": (False, 8)}


def recorded(host: int, hosts: int, *, divided: bool, every: int) -> Session:
    """What one host left."""
    share = _SHAPE.experts // hosts
    own = range(_SHAPE.experts) if divided else range(host * share, (host + 1) * share)
    devices = tuple(f"tpu:{host * _CHIPS + chip}" for chip in range(_CHIPS))
    differences = list(_differences(own[::every] if every else (), devices))
    status = Status.DIFFERENT if differences else Status.EQUAL
    nbytes = len(own) * 6 * _SHAPE.hidden * _SHAPE.intermediate
    report = Report(
        checkpoint="gs://bucket/model", reference="gs://bucket/model", family="qwen3.5-moe",
        status=status,
        environment=Environment(
            stack="0.32", python="3.12", versions={},
            target=f"tpu, {hosts * _CHIPS} devices on {hosts} hosts",
            mesh=tuple(f"tpu:{number}" for number in range(hosts * _CHIPS)),
        ),
        tallies=[
            Tally(
                part=Part.DECODER, layers=_SHAPE.layers, experts=_SHAPE.layers * _SHAPE.experts,
                experts_compared=_SHAPE.layers * len(own), divided=divided,
                bytes_compared=_SHAPE.layers * nbytes // (hosts if divided else 1),
            )
        ],
        parameters=[ParameterTally(part=Part.DECODER, parameters=1500, compared=1500)],
        deliveries=[
            Delivery(part=Part.DECODER, calls=92160, sites={"vllm/model.py:1": 92160},
                     streamed=1700, delivered=1700, unused=0, unread=0)
        ],
        calls=[
            Calls(part=Part.DECODER, projection=projection, layers=f"0-{_SHAPE.layers - 1}",
                  experts=f"0-{_SHAPE.experts - 1}", call="weight_loader(param, loaded_weight)",
                  source="model.layers.{layer}.mlp.experts", site="vllm/model.py:1")
            for projection in Projection
        ],
        maps=[map_of(Part.DECODER, list(_LAYERS), _SHAPE.experts, lambda layer: own, differences)],
        differences=differences,
        diagnoses=_diagnoses(host, differences),
        timings=Timings(load=400.0, compare=12.0, peak_rss=64 << 30),
        hosts=[
            HostPart(number=host, of=hosts, devices=devices, status=status,
                     differences=len(differences), seconds=420.0)
        ],
    )  # fmt: skip
    return Session(complete=True, rows=[SessionRow(scenario="checkpoint", report=report)])


def _differences(experts: Sequence[int], devices: Sequence[str]) -> Iterator[Difference]:
    for layer in _LAYERS:
        for expert in experts:
            for projection in Projection:
                yield BitsDiffer(
                    part=Part.DECODER, layer=layer, expert=expert, projection=projection,
                    parameter=f"layers.{layer}.mlp.experts.w13_weight", shard=0,
                    device_name=devices[expert % len(devices)], reference=0x3F80, device=0x3F81,
                    itemsize=2, index=(0, 0), count=_SHAPE.hidden * _SHAPE.intermediate,
                    total=_SHAPE.hidden * _SHAPE.intermediate,
                )  # fmt: skip


def _diagnoses(host: int, differences: list[Difference]) -> list[Diagnosis]:
    if not differences:
        return []
    return [
        Diagnosis(
            cause=Cause.OTHER_BYTES, summary=f"{len(differences)} matrices hold other bytes",
            evidence=f"seen on host {host}", next_step=Cause.OTHER_BYTES.next_step,
            covers=len(differences), members=f"0-{len(differences) - 1}",
        )
    ]  # fmt: skip


def run(*words: str) -> tuple[float, float]:
    """Seconds of a core and GB of peak memory that a command takes, start-up and all."""
    command = [sys.executable, "-c", "from harness.app.cli import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(told)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--keep", type=Path, help="leave the files here")
    options = parser.parse_args()
    print(
        "| hosts | each host's part | a part, MB | merging, core s | peak, GB | merged, MB "
        "| the page, core s | page, MB |\n" + "|---:|---|" + "---:|" * 6
    )
    with tempfile.TemporaryDirectory() as scratch:
        for hosts in options.hosts:
            for case, (divided, every) in CASES.items():
                at = Path(options.keep or scratch, f"{hosts}-{case.replace(' ', '-')}")
                at.mkdir(parents=True)
                print(row(at, hosts, case, divided=divided, every=every), flush=True)


def row(at: Path, hosts: int, case: str, *, divided: bool, every: int) -> str:
    """Write the parts of a slice's hosts, merge them, and make the page."""
    parts = [at / f"host-{host}.json" for host in range(hosts)]
    for host, path in enumerate(parts):
        recorded(host, hosts, divided=divided, every=every).write(path)
    merged, page = at / "session.json", at / "report.html"
    seconds, peak = run("merge", *map(str, parts), "--output", str(merged))
    paging, _ = run("report", str(merged), "--html", str(page))
    sizes = [path.stat().st_size / 1e6 for path in (parts[0], merged, page)]
    return (
        f"| {hosts} | {case} | {sizes[0]:.2f} | {seconds:.1f} | {peak:.2f} | {sizes[1]:.2f} "
        f"| {paging:.1f} | {sizes[2]:.2f} |"
    )


if __name__ == "__main__":
    main()
