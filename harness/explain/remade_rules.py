"""Rules that find a slice to be its own, made otherwise: turned, cut short, of another type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from harness.base.bits import ITEMSIZE, Bits, converted, is_nan
from harness.base.scanning import stretches
from harness.explain.causes import Cause, Finding
from harness.explain.evidence import NUMBERS, Evidence, Need, Turn, rule

TURN = Turn.REMADE

TRANSPOSED = Cause.declared(
    "transposed", "look for a transpose too many or too few on the way from the file"
)


@rule(TRANSPOSED, Need.TWO_AXES)
def transposed(e: Evidence) -> Finding | None:
    """It holds its own numbers in the order of its transpose, alone or with its fellows as one."""
    evidence = f"{e.name} holds the reference's numbers in the order of its transpose"
    if _is_transposed(e.reference, e.device):
        return e.finding(
            TRANSPOSED, f"{e.words.it} is transposed{e.words.tail}", evidence, e.slice.matrix
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
        TRANSPOSED,
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


NARROWED = Cause.declared(
    "narrowed", "look for a narrow() or copy_() with the smaller of two sizes"
)


@rule(NARROWED)
def narrowed(e: Evidence) -> Finding | None:
    """What was written is right; the rest was never written, or is zero."""
    for what, value in (("never written", e.poison), ("zero", 0)):
        if value is None or not _only_became(e, value):
            continue
        return e.finding(
            NARROWED,
            f"a part of {e.words.it} is {what}{e.words.tail}",
            f"{e.name}: {e.pattern} is {what}, all else is equal",
            f"{e.slice.matrix} {what}",
        )
    return None


def _only_became(e: Evidence, value: int) -> bool:
    return e.only(lambda _, after: after == value)


WRONG_CORNER = Cause.declared(
    "wrong-corner",
    "look at the layout the file is taken for: sizes that do not fit are narrowed to "
    "the smaller of the two (_narrow_expert_data_for_padding)",
)


@rule(WRONG_CORNER, Need.TWO_AXES)
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
                WRONG_CORNER,
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


OTHER_DTYPE = Cause.declared(
    "other-dtype",
    "compare the dtypes that the headers of reference and checkpoint give this "
    "tensor; look for a view() on the way",
)


@rule(OTHER_DTYPE)
def other_dtype(e: Evidence) -> Finding | None:
    """Its bytes were taken for those of another type."""
    stored, dtype = e.stored()
    for other in NUMBERS if _are_numbers(e) else ():
        if other == dtype or ITEMSIZE[other] != stored.itemsize:
            continue
        if _becomes(e, partial(converted, dtype=other, target=e.dtype)):
            return e.finding(
                OTHER_DTYPE,
                f"{e.words.they} {{are}} {dtype} in the reference, and came as {other}",
                f"{e.name} is what becomes of its bytes where they are taken for {other}",
                other,
            )
    return None


DTYPE_ROUND_TRIP = Cause.declared(
    "dtype-round-trip", "look for a cast on the way: set_default_torch_dtype, .to()"
)


@rule(DTYPE_ROUND_TRIP)
def dtype_round_trip(e: Evidence) -> Finding | None:
    """It went through another type and back."""
    dtype = e.stored()[1]
    for other, name in NUMBERS.items() if _are_numbers(e) else ():
        if other in (dtype, e.dtype):
            continue

        def there_and_back(bits: Bits, other: str = other) -> Bits:
            return converted(converted(bits, dtype, other), other, e.dtype)

        if _becomes(e, there_and_back):
            return e.finding(
                DTYPE_ROUND_TRIP,
                f"{e.words.they} went through {name}",
                f"{e.name} is the reference cast to {name} and back",
            )
    return None


def _are_numbers(e: Evidence) -> bool:
    """Whether numbers differ, and not NaNs alone or FP8 codes."""
    return e.dtype in NUMBERS and not e.only(lambda before, _: is_nan(before, e.dtype))


def _becomes(e: Evidence, made: Callable[[Bits], Bits]) -> bool:
    return e.becomes(made, lambda bits: ~is_nan(bits, e.dtype))
