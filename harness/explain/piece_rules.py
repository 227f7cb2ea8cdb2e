"""Rules that find the pieces of a slice: rows, columns, heads, shards and runs of bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import equal, stretches
from harness.explain.causes import Cause, Finding, Suspect
from harness.explain.evidence import Evidence, Granule, Lines, Need, Slice, Turn, rule
from harness.explain.origin_rules import OTHER_BYTES
from harness.explain.provenance import digest, needle

TURN = Turn.PIECES
_MOST = 0.9  # the share of unequal rows whose origin must be known before they explain a slice
_TELLING = 16  # bytes; a shorter row may be alike by chance, so that all must be known
_SHOWN = 3
_DAMAGED = 2048  # elements; a longer run is more than a broken sector

INTERLEAVED = Cause.declared(
    "interleaved",
    "look at how the model tells gate and up of a fused tensor apart: as halves, or as every "
    "other row; and at the layout this release takes the file for",
)


@rule(INTERLEAVED, Need.FELLOWS)
def interleaved(e: Evidence) -> Finding | None:
    """Alternating rows of it and of its fellow were taken for halves, or halves for such rows."""
    fellows = e.around.fellows()
    halves = [e.around.expected(each) for each in fellows]
    if e.slice not in fellows or len(halves) != 2 or halves[0].shape != halves[1].shape:
        return None
    number, rows = fellows.index(e.slice), len(e.reference)
    both = np.concatenate(halves)
    alternating = np.stack(halves, axis=1).reshape(both.shape)
    ways = {
        "alternating rows are taken for halves": alternating[number * rows :][:rows],
        "halves are taken for alternating rows": both[number::2],
    }
    for way, wanted in ways.items():
        if equal(wanted, e.device):
            first, second = (each.matrix for each in fellows)
            return e.finding(
                INTERLEAVED,
                f"{e.words.they} {{hold}} rows of {first} and {second} in turn: {way}",
                f"all {rows} rows of {e.name} are as if {way}",
                way,
            )
    return None


HEADS_EXCHANGED = Cause.declared(
    "heads-exchanged",
    "look at the order of q, k and v and of their heads: the shard_id each is loaded "
    "under, reorder_concatenated_tensor_for_sharding and its split sizes",
)
HEADS_REPEATED_WRONGLY = Cause.declared(
    "heads-repeated-wrongly",
    "look at how k and v heads are repeated for more devices than heads: each r times "
    "in a row (_tile_kv)",
)


@rule(HEADS_EXCHANGED, HEADS_REPEATED_WRONGLY, Need.HEADS)
def heads_exchanged(e: Evidence) -> Finding | None:
    """Its heads are those of it and of its fellows, in other places; whole shards are not heads."""
    heads = [g.length for g in e.granules if g.noun == "head"]
    for shard in (g for g in e.granules if (g.noun, g.axis) == ("shard", 0)):
        if all(shard.length > head for head in heads) and _moved(e, shard):
            return None
    return _pieces_exchanged(e, "head", HEADS_EXCHANGED)


ROLLED = Cause.declared("rolled", "look at the offset a shard of this tensor starts from")


@rule(ROLLED)
def rows_rolled(e: Evidence) -> Finding | None:
    """Its rows are its own, all as many places further on."""
    return _rolled(e, 0, "rows" if e.reference.ndim > 1 else "elements")


@rule(ROLLED, Need.TWO_AXES)
def columns_rolled(e: Evidence) -> Finding | None:
    """Its columns are its own, all as many places further on."""
    return _rolled(e, 1, "columns")


def _rolled(e: Evidence, axis: int, name: str) -> Finding | None:
    lines = e.lines(axis)
    count = len(lines.own)
    shift = _shift(lines)
    shards = [g.length for g in e.granules if (g.noun, g.axis) == ("shard", axis)]
    if shift is None or len(lines.moved) * 2 < count or [2 * shift, shift] == [count, *shards]:
        return None  # few that moved are an exchange, and so are two halves that are shards
    known = [at for at in lines.moved if lines.own[(at - shift) % count] == lines.held[at]]
    if len(known) < _share(e, axis) * len(lines.moved):
        return None
    by = f"rolled by {shift}"
    of_shards = shards and not shift % shards[0]
    far = f", which is {shift // shards[0]} of {count // shards[0]} shards" if of_shards else ""
    return e.finding(
        ROLLED,
        f"the {name} of {e.words.it} are {by}{e.words.tail}",
        f"{e.name}: its own {name}, {by}" + far,
        f"{e.slice.matrix} {name} {by}",
    )


def _shift(lines: Lines) -> int | None:
    """How far most lines are from where they belong, told by those that there is one of."""
    count = len(lines.own)
    once = {key for key, number in Counter(lines.own).items() if number == 1}
    places = {key: at for at, key in enumerate(lines.own) if key in once}
    shifts = Counter(
        (at - places[key]) % count for at, key in enumerate(lines.held) if key in places
    )
    del shifts[0]
    return shifts.most_common(1)[0][0] if shifts else None


def _share(e: Evidence, axis: int) -> float:
    """The share of lines whose origin must be known."""
    across = e.reference.size // len(e.lines(axis).own)
    return _MOST if across * e.reference.itemsize >= _TELLING else 1


SHARDS_EXCHANGED = Cause.declared(
    "shards-exchanged",
    "look at the mesh's device order, the partition spec, and the number of shards "
    "rows were ordered for",
)


@rule(SHARDS_EXCHANGED, Need.SHARDS)
def shards_exchanged(e: Evidence) -> Finding | None:
    """Its shards are those of it and of its fellows, in other places."""
    return _pieces_exchanged(e, "shard", SHARDS_EXCHANGED)


def _pieces_exchanged(e: Evidence, noun: str, cause: Cause) -> Finding | None:
    for granule in e.granules:
        if granule.noun != noun or not (moved := _moved(e, granule)):
            continue
        if noun == "head" and e.repeated and {s for _, s, _ in moved} == {e.slice}:
            cause = HEADS_REPEATED_WRONGLY
        texts = [f"{noun} {to} of {e.name} holds {noun} {of} of {s.name}" for to, s, of in moved]
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return e.finding(
            cause,
            f"{noun}s of {e.words.they} are in other places",
            "; ".join(texts[:_SHOWN]) + more,
        )
    return None


def _moved(e: Evidence, granule: Granule) -> list[tuple[int, Slice, int]] | None:
    """Which granule holds which, of the slices of this array; None unless all are found."""
    if not granule.length or e.reference.shape[granule.axis] % granule.length:
        return None
    known: dict[bytes, list[tuple[Slice, int]]] = {}
    for fellow in dict.fromkeys((e.slice, *e.around.fellows())):
        for number, bits in enumerate(_cut(e.around.expected(fellow), granule)):
            known.setdefault(bits, []).append((fellow, number))
    moved = []
    for number, bits in enumerate(_cut(e.device, granule)):
        places = known.get(bits)
        if places is None:
            return None
        if (e.slice, number) not in places:
            moved.append((number, *places[0]))
    return moved


def _cut(bits: Bits, granule: Granule) -> Iterator[bytes]:
    """A digest of each piece."""
    length = granule.length
    for start in range(0, bits.shape[granule.axis] - length + 1, length):
        piece = slice(start, start + length)
        yield digest(bits[piece] if granule.axis == 0 else bits[:, piece])


ROWS_EXCHANGED = Cause.declared(
    "rows-exchanged", "look for an index that permutes rows on the way from the file"
)
MIXED = Cause.declared(
    "mixed",
    "look at how the fused tensor is split: halves, or interleaved rows; per shard, or as a whole",
)


@rule(ROWS_EXCHANGED, MIXED)
def rows_reordered(e: Evidence) -> Finding | None:
    """Its rows are its own, or those of others, in other places."""
    return _reordered(e, 0, "row" if e.reference.ndim > 1 else "element")


@rule(ROWS_EXCHANGED, MIXED, Need.TWO_AXES)
def columns_reordered(e: Evidence) -> Finding | None:
    """Its columns are its own, or those of others, in other places."""
    return _reordered(e, 1, "column")


def _reordered(e: Evidence, axis: int, noun: str) -> Finding | None:
    lines = e.lines(axis)
    if e.reference.ndim == 1 and sorted(lines.own) != sorted(lines.held):
        return None  # single elements do not tell where they come from
    unequal = [lines.origins[at] for at in lines.moved]
    known = [origin for origin in unequal if origin is not None]
    if len(known) < _share(e, axis) * len(unequal):
        return None
    if {origin for origin, _ in known} == {e.slice}:
        moved = zip(lines.moved, unequal, strict=True)
        texts = [f"{noun} {at} of {e.name} holds {noun} {of[1]}" for at, of in moved if of]
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return e.finding(
            ROWS_EXCHANGED,
            f"{noun}s of {e.words.it} are in other places{e.words.tail}",
            "; ".join(texts[:_SHOWN]) + more,
            f"{e.slice.matrix} {noun}",
        )
    origins = _runs(lines.origins)
    return e.finding(
        MIXED,
        f"{e.words.they} {{are}} pieced together from {noun}s of others",
        f"{e.name}: {'; '.join(origins[:4])}{' …' if len(origins) > 4 else ''}",
        noun,
    )


def _runs(lines: list[tuple[Slice, int] | None]) -> list[str]:
    """Consecutive lines of one origin as one phrase."""
    runs: list[tuple[int, int, Slice]] = []
    for at, line in enumerate(lines):
        if line is None:
            continue
        if runs and runs[-1][1:] == (at - 1, line[0]):
            runs[-1] = (runs[-1][0], at, line[0])
        else:
            runs.append((at, at, line[0]))
    return [
        f"{first}-{last} from "
        + (origin.name if origin.expert is None else f"expert {origin.expert} {origin.matrix}")
        for first, last, origin in runs
    ]


@rule(OTHER_BYTES)
def other_bytes(e: Evidence) -> Finding | None:
    """A run of its bytes stands elsewhere in the checkpoint's files."""
    for run in _needles(e):
        if place := e.around.bytes_at(run):
            return e.finding(
                OTHER_BYTES,
                f"{e.words.they} {{hold}} bytes of {place[0]}",
                f"{e.name}: {len(run)} bytes of it stand in {place[0]} at byte {place[1]}",
                place[0],
            )
    return None


def _needles(e: Evidence) -> Iterator[bytes]:
    """The first run that is worth looking for, as it is and as it is transposed."""
    views = [(e.reference, e.device)]
    if e.reference.ndim == 2:
        views.append((e.reference.T, e.device.T))
    else:
        views = [(e.reference.reshape(1, -1), e.device.reshape(1, -1))]
    for reference, device in views:
        runs = (
            needle(device[part], reference[part] != device[part])
            for part in stretches(reference.shape)
        )
        if run := next(filter(None, runs), None):
            yield run


DAMAGED = Cause.declared(
    "damaged",
    "compare the file with its checksum (--checksums), then read it and the device again",
    suspect=Suspect.MACHINE,
)


@rule(DAMAGED)
def damaged(e: Evidence) -> Finding | None:
    """One short run of the file's bytes differs, the slice around it is right."""
    reference, device = e.reference, e.device
    pattern, lines = e.pattern, e.pattern.rows
    if e.stored_transposed:
        reference, device, lines = reference.T, device.T, pattern.columns
    width = max(1, reference[:1].size)
    if lines[1] - lines[0] > _DAMAGED // width + 2:
        return None
    near = slice(*lines)
    (places,) = np.nonzero((reference[near] != device[near]).ravel())
    places += lines[0] * width
    length = int(places[-1] - places[0]) + 1
    if length > min(_DAMAGED, reference.size // 4) or places.size < length // 2:
        return None
    return e.finding(
        DAMAGED,
        f"a run of {length * reference.itemsize} bytes of {e.name} is damaged",
        f"elements {places[0]} to {places[-1]} of it in the file's order differ, the other "
        f"{reference.size - length} are equal, and their bytes "
        + (
            "were not looked for elsewhere"
            if e.around.unsearched
            else "stand nowhere else in the checkpoint"
        ),
        e.name,
    )
