"""Quantised releases that are damaged in their files: scales, codes and groups.

Each kind of damage is planted into many matrices of one copy, at places that follow from a seed, so
that one load shows all of them. A place is taken only if the damage reaches the device: where a
matrix is quantised anew, a small step may leave every code as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.checkpoint.grids import grid_of
from harness.explain.causes import Cause
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
from harness.families.formats.format import TensorKind
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.quantising import upstream_makes

#: Matrices that each kind of damage is planted into.
TIMES = 10
A_STEP, A_BIT, TWO_GROUPS, ANOTHER, ZERO_BIAS = KINDS = (
    "a scale, by one step", "one bit of a code", "two groups exchanged",
    "the scale of another expert", "one bias zeroed",
)  # fmt: skip
_SEED = 30
#: Damages a matrix, as the n-th of its kind.
Change = Callable[[ExpertKey, int], None]
_TRIES = 500

#: By what share the number that becomes a code may be off where a float is made of it.
_NUDGE = 2.0**-10
#: One step of a scale, where it is not one of the last place: of f16 the device holds bf16.
_STEP = {"F16": 8}
#: The axis of scales along which groups lie, where it is not that of inputs, the last one.
_GROUP_AXIS = {"awq": 0, "ct-fp8-channel": 0}


@dataclass(frozen=True)
class Planted:
    """One damage: its kind, the matrix, and what it is to be called."""

    kind: str
    key: ExpertKey
    cause: Cause


class DamagedRelease:
    """A copy of a quantised release, to be damaged.

    Args:
        sound: the release.
        copy: where to; it must not exist.
    """

    def __init__(self, sound: Path, copy: Path) -> None:
        shutil.copytree(sound, copy)
        self.path = copy
        (self.reference,) = reference_parts(ModelCheckpoint(sound))
        assert self.reference.format
        self._format = self.reference.format
        self._scales = next(t.suffix for t in self._format.tensors if "scale" in t.suffix)
        self._axis = _GROUP_AXIS.get(self._format.name, 1)
        self._random = np.random.default_rng(_SEED)

    def damage(self) -> list[Planted]:
        """Damage ``TIMES`` matrices in each way, no matrix twice; what was done."""
        order = self._random.permutation(len(self.reference))
        keys = iter([list(self.reference)[n] for n in order])
        return [
            Planted(kind, key, cause)
            for kind, (cause, change) in self._kinds().items()
            for number in range(TIMES)
            for key in [next(keys)]
            if self._visibly(key, change, number)
        ]

    def zero_biases(self) -> list[str]:
        """Make one number of each tensor of biases zero; the tensors' names."""
        entries = self.reference.checkpoint.entries
        names = [name for name in entries if name.endswith("_proj_bias")]
        for name in names:
            biases = self._mapped(name)
            one = self._random.choice(np.flatnonzero(biases & 0x7FFF))
            biases.reshape(-1)[one] = 0
        return names

    def _kinds(self) -> dict[str, tuple[Cause, Change]]:
        kinds: dict[str, tuple[Cause, Change]] = {
            A_STEP: (Cause.SCALE, self._step_of_a_scale),
            A_BIT: (Cause.CODE, self._bit_of_a_code),
        }
        if self._format.name == "ct-fp8-tensor":  # which has no groups
            return kinds | {ANOTHER: (Cause.SCALE_OF_ANOTHER, self._scale_of_another)}
        return kinds | {TWO_GROUPS: (Cause.GROUP_ORDER, self._groups_exchanged)}

    def _visibly(self, key: ExpertKey, change: Change, number: int) -> bool:
        """Change a matrix, again and again until that reaches the device."""
        for _ in range(_TRIES):
            before = {kind.suffix: self._tensor(key, kind.suffix).copy() for kind in self._weighing}
            change(key, number)
            if self._reaches(key):
                return True
            for suffix, bits in before.items():
                self._tensor(key, suffix)[...] = bits
        raise AssertionError(f"no place in {key} where {change} would show")

    def _reaches(self, key: ExpertKey) -> bool:
        """Whether the device is to hold other values than of the sound release.

        A code of a value between two that rounding may make of it is either: what it is does not
        tell of damage.
        """
        codes, scales = upstream_makes(self.reference, key, self._written.quantised(key))
        known = grid_of(self._format.form.dtype).values
        off = ~np.isnan(known[codes])
        if not off.all():
            return False
        for nudged in (0, _NUDGE, -_NUDGE):
            right = upstream_makes(self.reference, key, self.reference.quantised(key), nudged)
            off &= known[codes] != known[right[0]]
        return bool(off.any()) or not np.array_equal(scales, right[1])

    @property
    def _written(self) -> ReferencePart:
        """The copy as it is now; a reader keeps what it has read."""
        (part,) = reference_parts(ModelCheckpoint(self.path))
        return part

    @property
    def _weighing(self) -> list[TensorKind]:
        return [kind for kind in self._format.tensors if kind.weighs]

    def _tensor(self, key: ExpertKey, suffix: str) -> Bits:
        """The copy's tensor of a matrix, or its part of it, to be written to."""
        name, index, _ = self.reference.stored_matrix(key)
        bits = self._mapped(self.reference.naming.beside(name, suffix))
        return bits[index] if index else bits

    def _mapped(self, name: str) -> Bits:
        entry = self.reference.checkpoint.entries[name]
        dtype = f"<u{ITEMSIZE[entry.dtype]}"
        file = self.path / entry.file.name
        bits: Bits = np.memmap(file, dtype, "r+", entry.offset, entry.shape)
        return bits

    def _somewhere(self, bits: Bits) -> tuple[int, ...]:
        return tuple(int(self._random.integers(size)) for size in bits.shape)

    def _step_of_a_scale(self, key: ExpertKey, number: int) -> None:
        scales = self._tensor(key, self._scales)
        kind = next(t for t in self._format.tensors if t.suffix == self._scales)
        scales[self._somewhere(scales)] += _STEP.get(kind.dtype, 1)

    def _bit_of_a_code(self, key: ExpertKey, number: int) -> None:
        codes = self._tensor(key, self._format.tensors[0].suffix)
        bit = int(self._random.integers(8 * codes.itemsize))
        codes[self._somewhere(codes)] ^= codes.dtype.type(1 << bit)

    def _groups_exchanged(self, key: ExpertKey, number: int) -> None:
        """Two groups' scales, of all outputs or of one; or all there is of the two groups."""
        scales = self._tensor(key, self._scales)
        count = scales.shape[self._axis]
        two = [int(n) for n in self._random.choice(count, 2, replace=False)]
        outputs = slice(None)
        if number % 3 == 1:
            output = int(self._random.integers(scales.shape[1 - self._axis]))
            outputs = slice(output, output + 1)
        moved = self._weighing if number % 3 == 2 and self._format.name != "ct-fp8-channel" else []
        for suffix in [kind.suffix for kind in moved] or [self._scales]:
            bits = self._tensor(key, suffix)
            if bits.ndim > 1:
                along = np.moveaxis(bits, self._axis, 0)
                wide = len(along) // count
                one, other = (along[n * wide : (n + 1) * wide, outputs] for n in two)
                kept = one.copy()
                one[...], other[...] = other.copy(), kept

    def _scale_of_another(self, key: ExpertKey, number: int) -> None:
        expert = int(self._random.integers(self.reference.shape.experts))
        name = self.reference.stored_matrix(key._replace(expert=expert))[0]
        entry = self.reference.checkpoint.entries[self.reference.naming.beside(name, self._scales)]
        self._tensor(key, self._scales)[...] = entry.bits()
