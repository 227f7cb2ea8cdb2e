"""Why a quantised matrix departs: what its codes and scales were taken for instead.

The device holds what upstream made of some codes and some scales. Each cause is a way to come by
wrong ones; whether the device holds what they make is decided by the rule that the comparison goes
by (:mod:`harness.checkpoint.grids`), so that no cause is named that does not explain the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harness.base.bits import F4_E2M1, I4, U4, Bits
from harness.checkpoint.grids import Departed, Quantised, grid_of
from harness.compare.difference import ValuesDiffer
from harness.compare.quantised_experts import QuantisedPartComparison
from harness.explain.causes import Cause, Finding
from harness.explain.metadata import SCALE
from harness.families.experts import ExpertKey
from harness.families.family import Projection

SCALE_LOST = Cause.declared(
    "scale-lost", "look for scales that are never loaded: the name they are looked up by, and the "
    "parameter that was to hold them"
)  # fmt: skip
SCALE_OF_ANOTHER = Cause.declared(
    "scale-of-another",
    "look at the slot each scale is loaded into: expert, shard id, and where a half of w13 starts",
)
ZERO_POINT = Cause.declared(
    "zero-point", "look at what is subtracted from codes before they are multiplied"
)
NIBBLES_EXCHANGED = Cause.declared(
    "nibbles-exchanged", "look at the order in which codes of four bits are taken out of a word"
)
GROUP_ORDER = Cause.declared(
    "group-order", "look at the order of groups: how scales are transposed, repeated and cut"
)
WRONG_GRID = Cause.declared("wrong-grid", "look at the type that codes are taken for")
DEQUANTISED_TWICE = Cause.declared(
    "dequantised-twice", "look for a second multiplication by the scales"
)
CODE = Cause.declared(
    "code", "read the file and the device again: storage, memory or link corruption"
)

#: Of a departure a cause may leave one part in so many unexplained.
_LEFT = 20
#: Experts whose scales are tried, on either side.
_NEAR = 2
_PAIR_LIMIT = 128  # blocks of a row that are tried in pairs


class _Reading(NamedTuple):
    """What may have been taken for the matrix."""

    cause: Cause
    words: str
    quantised: Quantised


def explain_quantised(difference: ValuesDiffer, comparison: QuantisedPartComparison) -> Finding:
    """The cause of a quantised matrix' departure.

    Args:
        difference: of an expert's codes and scales.
        comparison: that found it.
    """
    key = difference.key
    assert key
    wanted = comparison.reference.quantised(key)
    departed = comparison.departure(key, wanted)
    for reading in _readings(comparison, key, wanted):
        if _explains(comparison.departure(key, reading.quantised), departed):
            return _finding(difference, reading.cause, reading.words)
    return (
        _groups_exchanged(difference, comparison, wanted, departed)
        or _outputs_exchanged(difference, comparison, wanted, departed)
        or _of_all_outputs(difference, comparison, wanted, departed)
        or _of_one_output(difference, comparison, wanted, departed)
        or _unnamed(difference, departed)
    )


def _explains(left: Departed, departed: Departed) -> bool:
    """Whether a reading leaves next to nothing of a departure."""
    pairs = zip(left, departed, strict=True)
    return all(int(now.sum()) * _LEFT <= int(then.sum()) for now, then in pairs)


def _count(departed: Departed) -> int:
    return int(departed.codes.sum()) + int(departed.scales.sum())


def _readings(
    comparison: QuantisedPartComparison, key: ExpertKey, wanted: Quantised
) -> Iterator[_Reading]:
    """Everything that concerns the whole matrix, the plainest first."""
    scales = wanted.scales
    ones = np.ones_like(scales)
    yield _Reading(SCALE_LOST, "the scales are lost: codes stand for themselves",
                   wanted.with_scales(ones))  # fmt: skip
    yield _Reading(SCALE_LOST, "the scales are zero", wanted.with_scales(0 * ones))
    yield _Reading(DEQUANTISED_TWICE, "the scales are multiplied in twice",
                   wanted.with_scales(scales * scales))  # fmt: skip
    assert comparison.reference.format
    yield from _misread(comparison, key)
    yield from _group_orders(wanted)
    for words, other in _others(comparison, key):
        if other.scales.shape == scales.shape:
            yield _Reading(SCALE_OF_ANOTHER, f"the scales are those of {words}",
                           wanted.with_scales(other.scales))  # fmt: skip
    yield from _code_orders(wanted)
    yield from _grids(wanted)


def _misread(comparison: QuantisedPartComparison, key: ExpertKey) -> Iterator[_Reading]:
    """What the format itself says may be mistaken in it."""
    causes = {"scale": SCALE_LOST, "zero": ZERO_POINT, "order": NIBBLES_EXCHANGED}
    for kind, words, other in comparison.reference.misread(key):
        yield _Reading(causes[kind], words, other)


def _group_orders(wanted: Quantised) -> Iterator[_Reading]:
    scales = wanted.scales
    rows, columns = scales.shape
    if columns > 1:
        backwards = np.ascontiguousarray(scales[:, ::-1])
        yield _Reading(GROUP_ORDER, "groups come in reverse", wanted.with_scales(backwards))
    if rows > 1 and columns > 1:
        turned = np.ascontiguousarray(scales.T).reshape(rows, columns)
        yield _Reading(GROUP_ORDER, "the scales' grid is transposed", wanted.with_scales(turned))
        turned = np.ascontiguousarray(scales.reshape(columns, rows).T)
        yield _Reading(GROUP_ORDER, "the scales' grid is transposed", wanted.with_scales(turned))
    for axis, noun in ((1, "group"), (0, "output")):
        for step in (1, -1):
            if scales.shape[axis] > 1:
                moved = np.roll(scales, step, axis=axis)
                which = "before" if step > 0 else "after"
                yield _Reading(SCALE_OF_ANOTHER, f"each scale is that of the {noun} {which} it",
                               wanted.with_scales(moved))  # fmt: skip


def _others(comparison: QuantisedPartComparison, key: ExpertKey) -> Iterator[tuple[str, Quantised]]:
    """Matrices whose scales may have come in its scales' place."""
    reference = comparison.reference
    if key.projection is not Projection.DOWN:
        fellow = Projection.UP if key.projection is Projection.GATE else Projection.GATE
        yield f"{fellow} of the same expert", reference.quantised(key._replace(projection=fellow))
    count = reference.shape.experts
    near = [key.expert + step * far for far in range(1, _NEAR + 1) for step in (-1, 1)]
    for expert in dict.fromkeys([*near, 0, count - 1, count - 1 - key.expert]):
        if 0 <= expert < count and expert != key.expert:
            yield f"expert {expert}", reference.quantised(key._replace(expert=expert))
    for layer in reference.layers:
        if abs(layer - key.layer) == 1:
            yield f"layer {layer}", reference.quantised(key._replace(layer=layer))


def _code_orders(wanted: Quantised) -> Iterator[_Reading]:
    """Codes of four bits that come out of their words in another order."""
    for axis, along in ((1, "inputs"), (0, "outputs")):
        length = wanted.codes.shape[axis]
        for width, words in ((2, "two codes of a byte"), (8, "eight codes of a word")):
            if length % width:
                continue
            each = np.arange(length).reshape(-1, width)[:, ::-1].ravel()
            yield _Reading(NIBBLES_EXCHANGED, f"the {words} are exchanged, along {along}",
                           wanted.with_codes(wanted.codes.take(each, axis=axis)))  # fmt: skip


def _grids(wanted: Quantised) -> Iterator[_Reading]:
    """Codes that are taken for those of another type."""
    others = {F4_E2M1: (I4, U4), I4: (U4, F4_E2M1)}
    if wanted.dtype == I4:
        flipped = (wanted.codes ^ 8).astype(np.uint8)
        yield _Reading(ZERO_POINT, "eight is not subtracted from codes, or twice",
                       wanted.with_codes(flipped))  # fmt: skip
        raw = Quantised(flipped, U4, wanted.scales, wanted.block)
        yield _Reading(ZERO_POINT, "eight is not subtracted from codes", raw)
    for other in others.get(wanted.dtype, ()):
        read = Quantised(wanted.codes, other, wanted.scales, wanted.block)
        yield _Reading(WRONG_GRID, f"codes of {wanted.dtype} are taken for {other}", read)


def _rows_of(wanted: Quantised, first: int, count: int) -> Quantised:
    """Some rows of a matrix, from a whole block's first on."""
    high = wanted.block[0]
    return Quantised(
        wanted.codes[first : first + count], wanted.dtype,
        wanted.scales[first // high : -(-(first + count) // high)], wanted.block,
    )  # fmt: skip


def _odd_rows(wanted: Quantised, departed: Departed) -> list[tuple[int, int]]:
    """First row and count of each row of blocks that departs, of those within the matrix."""
    high, rows = wanted.block[0], len(wanted.codes)
    off = np.logical_or(departed.codes.any(axis=1), departed.scales.any(axis=1))
    odd = np.flatnonzero(off[:rows])
    return [(int(r) * high, min(high, rows - int(r) * high)) for r in np.unique(odd // high)]


def _groups_exchanged(
    difference: ValuesDiffer,
    comparison: QuantisedPartComparison,
    wanted: Quantised,
    departed: Departed,
) -> Finding | None:
    """Two groups, or their scales alone, have changed places in every row that departs."""
    key, odd = difference.key, _odd_rows(wanted, departed)
    count = wanted.scales.shape[1]
    if key is None or not odd or not 2 <= count <= _PAIR_LIMIT:
        return None
    if len(odd) == 1 and len(_odd_groups(wanted, departed)) == 1 and not departed.scales.any():
        return None  # which one scale or code explains

    def fits(rows: tuple[int, int], first: int, second: int, codes: bool) -> bool:
        part = _exchanged(wanted, rows, first, second, codes)
        return not _count(_departure_of(comparison, key, part, rows))

    for first, second in combinations(range(count), 2):
        for codes, what in ((False, "scales"), (True, "groups")):
            if all(fits(rows, first, second, codes) for rows in odd):  # as a rule the first is odd
                words = f"{what} {first} and {second} are exchanged, in {len(odd)} rows of scales"
                return _finding(difference, GROUP_ORDER, words)
    return None


def _odd_groups(wanted: Quantised, departed: Departed) -> set[int]:
    """The blocks of inputs that hold a code that departs."""
    columns = np.flatnonzero(departed.codes.any(axis=0)) // wanted.block[1]
    return {int(column) for column in columns}


def _outputs_exchanged(
    difference: ValuesDiffer,
    comparison: QuantisedPartComparison,
    wanted: Quantised,
    departed: Departed,
) -> Finding | None:
    """Two outputs, or rows of blocks, have each other's scales, and all else is right."""
    key, odd = difference.key, _odd_rows(wanted, departed)
    if key is None or len(odd) != 2:
        return None
    first, second = (rows[0] // wanted.block[0] for rows in odd)
    scales = wanted.scales.copy()
    scales[[first, second]] = scales[[second, first]]
    if _count(comparison.departure(key, wanted.with_scales(scales))):
        return None
    words = f"scales of outputs {odd[0][0]} and {odd[1][0]} are exchanged"
    return _finding(difference, GROUP_ORDER, words)


def _of_all_outputs(
    difference: ValuesDiffer,
    comparison: QuantisedPartComparison,
    wanted: Quantised,
    departed: Departed,
) -> Finding | None:
    """Every scale is off by one factor: one number is, that all of the matrix is multiplied by.

    Where each matrix has one scale, it may be that of any expert.
    """
    key, rows = difference.key, -(-len(wanted.codes) // wanted.block[0])
    if key is None or len(_odd_rows(wanted, departed)) < rows:
        return None
    top = np.abs(wanted.values).max(axis=1)
    largest = comparison.holds(key).scales[: len(top)].max(axis=1)
    largest = largest * np.float32(grid_of(comparison.form.dtype).largest)
    factor = np.float32(np.median(largest[top > 0] / top[top > 0]))
    if not np.isfinite(factor) or _count(
        comparison.departure(key, wanted.with_scales(wanted.scales * factor))
    ):
        return None
    if wanted.scales.size == 1:
        for expert in range(comparison.reference.shape.experts):
            other = comparison.reference.quantised(key._replace(expert=expert)).scales
            if other.size == 1 and abs(other / wanted.scales - factor) <= factor * 2.0**-12:
                words = f"the scales are those of expert {expert}"
                return _finding(difference, SCALE_OF_ANOTHER, words)
    return _finding(difference, SCALE, f"every scale, by a factor of {factor:.6g}")


def _exchanged(
    wanted: Quantised, rows: tuple[int, int], first: int, second: int, codes: bool
) -> Quantised:
    """Rows of a matrix with two groups' scales exchanged, or all of the two groups."""
    part, wide = _rows_of(wanted, *rows), wanted.block[1]
    scales = part.scales.copy()
    scales[:, [first, second]] = scales[:, [second, first]]
    if not codes:
        return part.with_scales(scales)
    moved: Bits = part.codes.copy()
    one, other = slice(first * wide, (first + 1) * wide), slice(second * wide, (second + 1) * wide)
    if moved[:, one].shape == moved[:, other].shape:
        moved[:, one], moved[:, other] = part.codes[:, other], part.codes[:, one]
    return part.with_codes(moved).with_scales(scales)


def _departure_of(
    comparison: QuantisedPartComparison, key: ExpertKey, part: Quantised, rows: tuple[int, int]
) -> Departed:
    first, count = rows
    return comparison.departure(key, part, slice(first, first + count))


def _of_one_output(
    difference: ValuesDiffer,
    comparison: QuantisedPartComparison,
    wanted: Quantised,
    departed: Departed,
) -> Finding | None:
    """One code, or one scale, is another: where it was the largest, all of its row departs."""
    key, odd = difference.key, _odd_rows(wanted, departed)
    if key is None or len(odd) != 1:
        return None
    if departed.codes.sum() == 1 and not departed.scales.any():
        return _of_one_code(difference, comparison, wanted, departed)
    rows, wide = odd[0], wanted.block[1]
    part = _rows_of(wanted, *rows)
    for block in range(wanted.scales.shape[1]):
        for factor in _factors(comparison, key, part, rows, block):
            scales = part.scales.copy()
            scales[:, block] *= np.float32(factor)
            if not _count(_departure_of(comparison, key, part.with_scales(scales), rows)):
                words = f"one scale, {[rows[0] // wanted.block[0], block]}, by a factor of"
                return _finding(difference, SCALE, f"{words} {factor:.6g}")
    if code := _one_code(comparison, key, part, rows):
        return _finding(difference, CODE, code)
    columns = np.flatnonzero(departed.codes.any(axis=0)) // wide
    if len(set(columns.tolist())) == 1:
        words = f"one scale, {[rows[0] // wanted.block[0], int(columns[0])]}, or some codes of it"
        return _finding(difference, SCALE, words)
    return None


def _of_one_code(
    difference: ValuesDiffer,
    comparison: QuantisedPartComparison,
    wanted: Quantised,
    departed: Departed,
) -> Finding:
    """One code of the device departs: a bit of one is flipped, or a scale is off by so little."""
    assert difference.key
    row, column = (int(n) for n in np.argwhere(departed.codes)[0])
    if column >= wanted.codes.shape[1]:
        return _finding(difference, CODE, "one code of the padding is another")
    mine, held = wanted.codes[row, column], comparison.holds(difference.key).codes[row, column]
    same_sign = wanted.dtype == comparison.form.dtype == F4_E2M1 and not (mine ^ held) & 8
    for bit in range(3 if same_sign else _bits_of(wanted)):
        codes = wanted.codes.copy()
        codes[row, column] ^= 1 << bit
        if not _count(comparison.departure(difference.key, wanted.with_codes(codes))):
            words = f"bit {bit} of the code at {[row, column]} is flipped"
            return _finding(difference, CODE, words)
    if comparison.form.kept or not _is_next(comparison, difference.key, wanted, (row, column)):
        return _finding(difference, CODE, "one code is another")
    place = [row // wanted.block[0], column // wanted.block[1]]
    return _finding(difference, SCALE, f"one scale, {place}, which alone a code shows")


def _is_next(
    comparison: QuantisedPartComparison, key: ExpertKey, wanted: Quantised, at: tuple[int, int]
) -> bool:
    """Whether the device's code is a neighbour of the one that is wanted: a scale may do that."""
    held, (row, column) = comparison.holds(key), at
    grid = grid_of(comparison.form.dtype).values
    scale = held.scales[row, column // comparison.block_of(key.projection)]
    steps = np.unique(grid[np.isfinite(grid)])
    nearest = np.abs(steps - wanted.values[row, column] / scale).argmin()
    return bool(abs(np.searchsorted(steps, grid[held.codes[row, column]]) - nearest) <= 1)


def _bits_of(wanted: Quantised) -> int:
    """How many bits a stored code has."""
    return 4 if len(grid_of(wanted.dtype).values) == 1 << 4 else 8


def _factors(
    comparison: QuantisedPartComparison,
    key: ExpertKey,
    part: Quantised,
    rows: tuple[int, int],
    block: int,
) -> list[float]:
    """By what a scale may be off: what the device's scale tells, and its values on the median."""
    held, wide = comparison.holds(key), part.block[1]
    there = slice(rows[0], rows[0] + rows[1])
    mine = part.values[:, block * wide : (block + 1) * wide]
    codes = grid_of(comparison.form.dtype).values[held.codes[there]]
    step = comparison.block_of(key.projection)
    spread = np.repeat(held.scales[there], step, axis=1)[:, : codes.shape[1]]
    found = (codes * spread)[:, block * wide : (block + 1) * wide]
    top = np.abs(mine).max()
    if not top > 0:
        return []
    large = np.abs(mine) >= 0.5 * top
    largest = held.scales[there].max() * grid_of(comparison.form.dtype).largest
    factors = [float(largest / top), float(np.median(found[large] / mine[large]))]
    if comparison.form.kept and part.block[0] == 1:
        factors.insert(0, float(held.scales[rows[0], block] / part.scales[0, block]))
    near = [float(f) for f in (1 + 2.0**-7, 1 - 2.0**-7, 1 + 2.0**-8, 1 - 2.0**-8, 2, 0.5)]
    return [f for f in (*factors, *near) if np.isfinite(f)]


def _one_code(
    comparison: QuantisedPartComparison, key: ExpertKey, part: Quantised, rows: tuple[int, int]
) -> str:
    """Which code with one bit flipped makes what the device holds; empty if none."""
    top = comparison.holds(key).scales[rows[0] : rows[0] + rows[1]].max()
    largest, table = top * grid_of(comparison.form.dtype).largest, grid_of(part.dtype).values
    for bit in range(_bits_of(part)):
        other = (part.codes ^ (1 << bit)).astype(np.uint8)
        sizes = np.abs(table[other] * part.spread)
        for at in np.argwhere(np.abs(sizes - largest) <= largest * 2.0**-18)[:16]:
            codes = part.codes.copy()
            codes[tuple(at)] = other[tuple(at)]
            if not _count(_departure_of(comparison, key, part.with_codes(codes), rows)):
                place = [int(at[0]) + rows[0], int(at[1])]
                return f"bit {bit} of the code at {place} is flipped"
    return ""


def _unnamed(difference: ValuesDiffer, departed: Departed) -> Finding:
    """Nothing explains all of it: scales where any is off, else codes."""
    return _finding(difference, SCALE if departed.scales.any() else CODE, "")


def _finding(difference: ValuesDiffer, cause: Cause, words: str) -> Finding:
    where = f"{difference.part} layer {difference.layer}"
    what = "codes" if cause in (CODE, NIBBLES_EXCHANGED, WRONG_GRID, ZERO_POINT) else "scales"
    said = f"{words}; " if words else ""
    evidence = f"{difference.key}: {said}{difference.pattern}"
    summary = f"{what} of {where} are not the checkpoint's"
    return Finding(cause, f"{cause} {where}", summary, evidence)
