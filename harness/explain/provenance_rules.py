"""Rules that find where the bytes of a slice come from: another slice, an order, another tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from harness.base.bits import Bits
from harness.base.scanning import equal, stretches
from harness.explain.causes import Cause, Finding
from harness.explain.evidence import Evidence, Granule, Lines, Need, Slice, rule
from harness.explain.provenance import digest, needle
from harness.families.family import Part

_MOST = 0.9  # the share of unequal rows whose origin must be known before they explain a slice
_TELLING = 16  # bytes; a shorter row may be alike by chance, so that all must be known
_SHOWN = 3


@rule(Cause.TIED, Need.TIE)
def tied(e: Evidence) -> Finding | None:
    """The head where the embedding should be, or the embedding where the head should be."""
    if (text := e.tied()) is None:
        return None
    return e.finding_of_all(Cause.TIED, TIED, text)


#: What is said of a head and an embedding that are one, or two, against config.json.
TIED = "head and embedding are tied otherwise than config.json says"


@rule(Cause.EXPERT_GROUPS, Need.EXPERTS)
def expert_groups(e: Evidence) -> Finding | None:
    """All experts of its layer stand as if one of each group came in turn, or the reverse."""
    if (other := e.around.whose()) is None or other.layer != e.slice.layer:
        return None
    count, order = e.around.experts(), e.around.order()
    for groups in (n for n in range(2, count // 2 + 1) if not count % n):
        size = count // groups
        dealt = {expert: expert % groups * size + expert // groups for expert in order}
        if dealt == order and sum(e != o for e, o in dealt.items()) > 2:  # two are an exchange
            return e.finding(
                Cause.EXPERT_GROUPS,
                f"{e.words.they} {{are}} mixed: one of each of {groups} groups of {size} in turn",
                f"{e.name} holds the bytes of {other.name}, as that order has it",
            )
    return None


@rule(Cause.EXPERTS_EXCHANGED, Cause.EXPERTS_PERMUTED, Need.EXPERTS)
def another_expert(e: Evidence) -> Finding | None:
    """It holds the same matrix of another expert of its layer."""
    own, other = e.slice, e.around.whose()
    if other is None or (other.layer, other.matrix) != (own.layer, own.matrix):
        return None
    if own.expert is None or other.expert is None:
        return None
    evidence = f"{own.name} holds the bytes of {other.name}"
    if _is_mutual(e, other):
        first, second = sorted((own.expert, other.expert))
        return e.finding(
            Cause.EXPERTS_EXCHANGED,
            f"experts {first} and {second} of {e.words.place} are exchanged",
            evidence,
            f"{first} {second}",
        )
    return e.finding(Cause.EXPERTS_PERMUTED, f"{e.words.they} {{stand}} in another order", evidence)


@rule(Cause.PROJECTIONS_EXCHANGED, Cause.OTHER_SLICE, Need.FELLOWS)
def another_of_its_array(e: Evidence) -> Finding | None:
    """It holds another slice of its own array: another matrix of the expert, q, k or v."""
    own, other = e.slice, e.around.whose()
    if other is None:
        return None
    of_layer = None not in (own.expert, other.expert) and other.layer == own.layer
    if not of_layer and other not in e.around.fellows():
        return None
    evidence = f"{own.name} holds the bytes of {other.name}"
    if own.expert == other.expert and _is_mutual(e, other):
        names = (own.name, other.name) if own.expert is None else (own.matrix, other.matrix)
        first, second = sorted(names)
        place = "" if own.expert is None else f" in {e.words.place}"
        return e.finding(
            Cause.PROJECTIONS_EXCHANGED,
            f"{first} and {second} are exchanged{place}{e.words.tail}",
            evidence,
            f"{first} {second}",
        )
    return e.finding(
        Cause.OTHER_SLICE,
        f"{e.words.they} {{hold}} the bytes of others in the same array",
        evidence,
    )


@rule(Cause.DRAFT_LAYER, Need.LAYERS)
def draft_layer(e: Evidence) -> Finding | None:
    """A layer of the draft model holds the one before or after it, or the decoder's last does."""
    own, other = e.slice, e.around.whose()
    if other is None or own.layer is None or other.layer is None:
        return None
    here, there = e.around.depth(own), e.around.depth(other)
    if Part.MTP not in (own.layer[0], other.layer[0]) or here is None or there is None:
        return None
    if abs(here - there) != 1:
        return None
    return e.finding(
        Cause.DRAFT_LAYER,
        f"{e.words.they} {{hold}} what belongs to {other.place}, one layer off",
        f"{own.name} holds the bytes of {other.name}",
        other.place,
    )


@rule(Cause.OTHER_LAYER, Need.LAYERS)
def another_layer(e: Evidence) -> Finding | None:
    """It holds a slice of another layer."""
    own, other = e.slice, e.around.whose()
    if other is None or other.layer is None or other.layer == own.layer:
        return None
    return e.finding(
        Cause.OTHER_LAYER,
        f"{e.words.they} {{hold}} what belongs to {other.place}",
        f"{own.name} holds the bytes of {other.name}",
        other.place,
    )


@rule(Cause.OTHER_BYTES)
def another_tensor(e: Evidence) -> Finding | None:
    """It holds a tensor of the checkpoint that has nothing to do with it."""
    if (other := e.around.whose()) is None:
        return None
    return e.finding(
        Cause.OTHER_BYTES,
        f"{e.words.they} {{hold}} other tensors of the checkpoint",
        f"{e.name} holds the bytes of {other.name}",
    )


def _is_mutual(e: Evidence, other: Slice) -> bool:
    """Whether the other slice holds this one's bits."""
    return equal(e.around.held(other), e.reference)


@rule(Cause.TRANSPOSED, Need.TWO_AXES)
def transposed(e: Evidence) -> Finding | None:
    """It holds its own numbers in the order of its transpose, alone or with its fellows as one."""
    evidence = f"{e.name} holds the reference's numbers in the order of its transpose"
    if _is_transposed(e.reference, e.device):
        return e.finding(
            Cause.TRANSPOSED, f"{e.words.it} is transposed{e.words.tail}", evidence, e.slice.matrix
        )
    fellows = e.around.fellows()
    expected = [e.around.expected(each) for each in fellows]
    if len(fellows) != 2 or expected[0].shape != expected[1].shape:
        return None
    held = np.concatenate([e.around.held(each) for each in fellows])
    if not _is_transposed(np.concatenate(expected), held):
        return None
    what = "gate and up" if e.slice.expert is not None else " and ".join(f.name for f in fellows)
    place = f" in {e.words.place}" if e.slice.expert is not None else ""
    return e.finding(
        Cause.TRANSPOSED,
        f"{what} as one tensor are transposed{place}{e.words.tail}",
        evidence,
        "as one",
    )


def _is_transposed(reference: Bits, device: Bits) -> bool:
    """Whether either is the other's transpose, taken for a tensor of the shape it has."""
    wanted, found = (bits.reshape(len(bits), -1) for bits in (reference, device))
    return _runs_like(found, wanted.T) or _runs_like(wanted, found.T)


def _runs_like(whole: Bits, turned: Bits) -> bool:
    """Whether two matrices hold the same numbers in the same order, whatever their shapes."""
    flat, at = whole.ravel(), 0
    for part in stretches(turned.shape):
        run = turned[part].ravel()
        if not np.array_equal(flat[at : at + run.size], run):
            return False
        at += run.size
    return True


@rule(Cause.WRONG_CORNER, Need.TWO_AXES)
def wrong_corner(e: Evidence) -> Finding | None:
    """A corner was written with the numbers of the transpose's corner, the rest was not."""
    poison = e.poison
    if poison is None or e.all_held(lambda device: device != poison):
        return None
    device = e.device.reshape(len(e.device), -1)
    rows, columns = _written(device, poison)
    for whole in _transposes(e):
        held = whole[:rows, :columns]
        if held.shape == (rows, columns) and _agree(device, held, poison):
            return e.finding(
                Cause.WRONG_CORNER,
                f"corners of transposed slices stand in {e.words.place}, the rest was never "
                f"written{e.words.tail}",
                f"{e.name}: [0:{rows}, 0:{columns}] is the corner of the transpose, the rest is "
                "poison",
            )
    return None


def _written(device: Bits, poison: int) -> tuple[int, int]:
    """Rows and columns of the corner that holds all that is no poison."""
    last, across = 0, np.zeros(device.shape[1], bool)
    for part in stretches(device.shape):
        written = device[part] != poison
        lines = np.flatnonzero(written.any(axis=1))
        last = part.start + int(lines[-1]) + 1 if lines.size else last
        across |= written.any(axis=0)
    columns = np.flatnonzero(across)
    return last, int(columns[-1]) + 1 if columns.size else 0


def _agree(device: Bits, corner: Bits, poison: int) -> bool:
    """Whether all of the corner that was written is as it should be."""
    rows, columns = corner.shape
    for part in stretches(corner.shape):
        found = device[:rows, :columns][part]
        if not ((found == corner[part]) | (found == poison)).all():
            return False
    return True


def _transposes(e: Evidence) -> Iterator[Bits]:
    """What a corner may be cut of: the transpose of it, or of it and its fellows as one."""
    yield e.reference.reshape(len(e.reference), -1).T
    fellows = [e.around.expected(each) for each in e.around.fellows()]
    if len(fellows) == 2 and fellows[0].shape == fellows[1].shape:
        fused = np.concatenate([each.reshape(len(each), -1) for each in fellows]).T
        yield fused
        yield fused[len(fused) // 2 :]


@rule(Cause.HEADS_EXCHANGED, Cause.HEADS_REPEATED, Need.HEADS)
def heads_exchanged(e: Evidence) -> Finding | None:
    """Its heads are those of it and of its fellows, in other places; whole shards are not heads."""
    heads = [g.length for g in e.granules if g.noun == "head"]
    for shard in (g for g in e.granules if (g.noun, g.axis) == ("shard", 0)):
        if all(shard.length > head for head in heads) and _moved(e, shard):
            return None
    return _pieces_exchanged(e, "head", Cause.HEADS_EXCHANGED)


@rule(Cause.SHARDS_EXCHANGED, Need.SHARDS)
def shards_exchanged(e: Evidence) -> Finding | None:
    """Its shards are those of it and of its fellows, in other places."""
    return _pieces_exchanged(e, "shard", Cause.SHARDS_EXCHANGED)


def _pieces_exchanged(e: Evidence, noun: str, cause: Cause) -> Finding | None:
    for granule in e.granules:
        if granule.noun != noun or not (moved := _moved(e, granule)):
            continue
        if noun == "head" and e.repeated and {s for _, s, _ in moved} == {e.slice}:
            cause = Cause.HEADS_REPEATED
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


@rule(Cause.INTERLEAVED, Need.FELLOWS)
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
                Cause.INTERLEAVED,
                f"{e.words.they} {{hold}} rows of {first} and {second} in turn: {way}",
                f"all {rows} rows of {e.name} are as if {way}",
                way,
            )
    return None


@rule(Cause.ROLLED)
def rows_rolled(e: Evidence) -> Finding | None:
    """Its rows are its own, all as many places further on."""
    return _rolled(e, 0, "rows" if e.reference.ndim > 1 else "elements")


@rule(Cause.ROLLED, Need.TWO_AXES)
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
        Cause.ROLLED,
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


@rule(Cause.ROWS_EXCHANGED, Cause.MIXED)
def rows_reordered(e: Evidence) -> Finding | None:
    """Its rows are its own, or those of others, in other places."""
    return _reordered(e, 0, "row" if e.reference.ndim > 1 else "element")


@rule(Cause.ROWS_EXCHANGED, Cause.MIXED, Need.TWO_AXES)
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
            Cause.ROWS_EXCHANGED,
            f"{noun}s of {e.words.it} are in other places{e.words.tail}",
            "; ".join(texts[:_SHOWN]) + more,
            f"{e.slice.matrix} {noun}",
        )
    origins = _runs(lines.origins)
    return e.finding(
        Cause.MIXED,
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


@rule(Cause.OTHER_BYTES)
def other_bytes(e: Evidence) -> Finding | None:
    """A run of its bytes stands elsewhere in the checkpoint's files."""
    for run in _needles(e):
        if place := e.around.bytes_at(run):
            return e.finding(
                Cause.OTHER_BYTES,
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
