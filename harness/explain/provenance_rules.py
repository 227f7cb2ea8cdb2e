"""Rules that find where the bytes of a slice come from: another slice, an order, another tensor."""

from __future__ import annotations

import numpy as np

from harness.explain.causes import Cause, Finding
from harness.explain.evidence import Evidence
from harness.explain.provenance import Line, needle
from harness.families.family import Projection
from harness.load.ledger import POISON

_MOST = 0.9  # the share of unequal rows whose origin must be known before they explain a slice


def another_slice(slice_: Evidence) -> Finding | None:
    """It holds the bytes of another slice."""
    key, other = slice_.key, slice_.others.slice(slice_.key, slice_.device)
    if other is None or other == key:
        return None
    evidence = f"{key} holds the bytes of {other}"
    if (other.part, other.layer) != (key.part, key.layer):
        return slice_.finding(
            Cause.OTHER_LAYER,
            f"{key.layer} {other.part} {other.layer}",
            f"slices of {slice_.where} hold those of {other.part} layer {other.layer}",
            evidence,
        )
    mutual = slice_.others.slice(other, slice_.bits_of(other)) == key
    if key.expert == other.expert and mutual:
        pair = sorted((key.projection, other.projection))
        return slice_.finding(
            Cause.PROJECTIONS_EXCHANGED,
            f"{key.layer} {pair}",
            f"{pair[0]} and {pair[1]} are exchanged in {slice_.where}, {{experts}}",
            evidence,
        )
    if key.projection is other.projection and mutual:
        first, second = sorted((key.expert, other.expert))
        return slice_.finding(
            Cause.EXPERTS_EXCHANGED,
            f"{key.layer} {first} {second}",
            f"experts {first} and {second} of {slice_.where} are exchanged",
            evidence,
        )
    if key.projection is other.projection:
        return slice_.finding(
            Cause.EXPERTS_PERMUTED,
            key.layer,
            f"{{experts}} of {slice_.where} {{stand}} in another order",
            evidence,
        )
    return slice_.finding(
        Cause.OTHER_SLICE,
        key.layer,
        f"slices of {slice_.where} hold the bytes of other experts or projections",
        evidence,
    )


def transposed(slice_: Evidence) -> Finding | None:
    """It holds its own numbers in the order of its transpose, alone or gate and up as one."""
    key, reference, device = slice_.key, slice_.reference, slice_.device
    alone = np.array_equal(device.ravel(), reference.T.ravel()) or np.array_equal(
        device.T.ravel(), reference.ravel()
    )
    if not alone and not _fused_transposed(slice_):
        return None
    what = key.projection if alone else "gate and up as one tensor"
    return slice_.finding(
        Cause.TRANSPOSED,
        f"{key.layer} {what}",
        f"{what} of {slice_.where} is transposed, {{experts}}"
        if alone
        else f"{what} are transposed in {slice_.where}, {{experts}}",
        f"{key} holds the reference's numbers in the order of its transpose",
    )


def _fused_transposed(slice_: Evidence) -> bool:
    if slice_.key.projection is Projection.DOWN:
        return False
    halves = [slice_.key._replace(projection=p) for p in (Projection.GATE, Projection.UP)]
    fused = np.concatenate([slice_.others.bits_of(key) for key in halves])
    held = np.concatenate([slice_.bits_of(key) for key in halves])
    return np.array_equal(held.ravel(), fused.T.ravel()) or np.array_equal(
        held.T.ravel(), fused.ravel()
    )


def wrong_corner(slice_: Evidence) -> Finding | None:
    """A corner was written with the numbers of the transpose's corner, the rest was not."""
    device = slice_.device
    written = device != POISON[device.itemsize]
    if written.all() or not written.any():
        return None
    rows, columns = (int(n.max()) + 1 for n in np.nonzero(written))
    corner = device[:rows, :columns]
    gate_up = [slice_.key._replace(projection=p) for p in (Projection.GATE, Projection.UP)]
    fused = np.concatenate([slice_.others.bits_of(key) for key in gate_up])
    for whole in (slice_.reference.T, fused.T, fused.T[fused.shape[1] // 2 :]):
        held = whole[:rows, :columns]
        if held.shape == corner.shape and (held == corner)[written[:rows, :columns]].all():
            return slice_.finding(
                Cause.WRONG_CORNER,
                slice_.key.layer,
                f"corners of transposed slices stand in {slice_.where}, the rest was never "
                "written, {experts}",
                f"{slice_.key}: [0:{rows}, 0:{columns}] is the corner of the transpose, the rest "
                "is poison",
            )
    return None


def reordered(slice_: Evidence) -> Finding | None:
    """Its rows, or its columns, are those of this or of other slices, in another order."""
    for axis, name in enumerate(("rows", "columns")):
        lines = slice_.others.lines(slice_.key, slice_.device, axis)
        (places,) = np.nonzero(slice_.unequal.any(axis=1 - axis))
        unequal = [lines[place] for place in places]
        known = [line for line in unequal if line is not None]
        if len(known) < _MOST * len(unequal):
            continue
        if {line.key for line in known} == {slice_.key}:
            return _rolled(slice_, lines, name)
        origins = _runs(lines)
        return slice_.finding(
            Cause.MIXED,
            f"{slice_.key.layer} {name}",
            f"slices of {slice_.where} are pieced together from {name} of others, {{experts}}",
            f"{slice_.key}: {'; '.join(origins[:4])}{' …' if len(origins) > 4 else ''}",
        )
    return None


def _rolled(slice_: Evidence, lines: list[Line | None], name: str) -> Finding:
    shifts = {(at - line.number) % len(lines) for at, line in enumerate(lines) if line}
    how = f"rolled by {shifts.pop()}" if len(shifts) == 1 else "in another order"
    return slice_.finding(
        Cause.ROLLED,
        f"{slice_.key.layer} {slice_.key.projection} {name} {how}",
        f"the {name} of {slice_.key.projection} in {slice_.where} are {how}, {{experts}}",
        f"{slice_.key}: its own {name}, {how}",
    )


def _runs(lines: list[Line | None]) -> list[str]:
    """Consecutive lines of one origin as one phrase."""
    runs: list[list[tuple[int, Line]]] = []
    for at, line in enumerate(lines):
        if line is None:
            continue
        if runs and runs[-1][-1][0] == at - 1 and runs[-1][-1][1].key == line.key:
            runs[-1].append((at, line))
        else:
            runs.append([(at, line)])
    return [
        f"{run[0][0]}-{run[-1][0]} from expert {run[0][1].key.expert} {run[0][1].key.projection}"
        for run in runs
    ]


def other_bytes(slice_: Evidence) -> Finding | None:
    """A run of its bytes stands elsewhere in the checkpoint's files."""
    for device, unequal in (
        (slice_.device, slice_.unequal),
        (slice_.device.T, slice_.unequal.T),
    ):
        run = needle(device, unequal)
        if run and (place := slice_.others.bytes_at(slice_.key, slice_.checkpoint, run)):
            return slice_.finding(
                Cause.OTHER_BYTES,
                f"{slice_.key.layer} {place[0]}",
                f"slices of {slice_.where} hold bytes of {place[0]}, {{experts}}",
                f"{slice_.key}: {len(run)} bytes of it stand in {place[0]} at byte {place[1]}",
            )
    return None
