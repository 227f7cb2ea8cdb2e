"""One unequal slice, with all that a rule may look at: an expert's matrix, or any other tensor.

Rules know no other. What provides it, :mod:`harness.explain.diagnosis` for experts and
:mod:`harness.explain.parameter_diagnosis` for everything else, says what the slice has
(:class:`Need`); a rule that needs more is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property

import numpy as np

from harness.base.bits import Bits, bits_dtype, converted
from harness.base.scanning import Mask, stretches
from harness.explain.causes import Cause, Finding
from harness.explain.provenance import Occurrence, lines_of
from harness.load.ledger import POISON, Ledger, LoaderCall

#: Types that weights are converted to, as safetensors and as numpy name them.
NUMBERS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


class Need(StrEnum):
    """What a slice may have; the value says why a rule that needs it cannot apply without."""

    TWO_AXES = "it has one axis"
    EXPERTS = "there is only one of it, not one for each expert"
    LAYERS = "there is only one of it, not one for each layer"
    FELLOWS = "no other tensor shares its array"
    HEADS = "it has no heads"
    SHARDS = "every device holds all of it"
    REPLICAS = "each device holds a different part"
    TIE = "only a head and an embedding can be tied"
    BF16 = "it is not held as bf16, the one type whose NaNs are rewritten on the way"


@dataclass(frozen=True)
class Slice:
    """A slice of the reference, told from all others by its ``key``.

    Attributes:
        key: an expert's key, or the name of a tensor.
        name: in full.
        place: the part and the layer it belongs to, in words.
        layer: the same, to be compared; None for what belongs to no layer.
        expert: whose it is; None besides experts.
        matrix: which matrix of the expert, or the tensor's name.
    """

    key: Hashable
    name: str
    place: str
    layer: tuple[str, int] | None = None
    expert: int | None = None
    matrix: str = ""


@dataclass(frozen=True)
class Words:
    """How sentences name a slice, so that one sentence may stand for many.

    Attributes:
        they: the subject, ``{experts} of decoder layer 1`` or ``{names}``.
        it: the matrix, ``up_proj of decoder layer 1`` or ``{names}``.
        place: ``decoder layer 1`` or ``{names}``.
        tail: what a sentence about ``it`` ends with: whose.
        kind: what a summary ends with.
        group: slices of one group may share a sentence.
        part: alike, of sentences that are the same everywhere.
    """

    they: str
    it: str
    place: str
    tail: str
    kind: str
    group: str
    part: str


@dataclass(frozen=True)
class Granule:
    """A size to cut a slice into: pieces of ``length`` along ``axis`` that may change places."""

    noun: str
    axis: int
    length: int


@dataclass(frozen=True)
class Deliveries:
    """What the ledger knows of a slice.

    Attributes:
        tensor: that was to bring it.
        ledger: of the part; where no recorder was there, what is not in it may have happened.
        calls: those that named it.
        never: whether nothing was ever written to the whole parameter.
    """

    tensor: str
    ledger: Ledger = field(default_factory=Ledger)
    calls: Sequence[LoaderCall] = ()
    never: bool = False


class Around:
    """What of the reference could have come in a slice's place, and what the devices hold of it.

    The provider of evidence says how to read them.
    """

    def fellows(self) -> Sequence[Slice]:
        """The slices that share one array with it, itself among them, in order."""
        raise NotImplementedError

    def depth(self, other: Slice) -> int | None:
        """The place of its layer in the stack, the draft model's after the decoder's."""
        raise NotImplementedError

    def order(self) -> dict[int, int | None]:
        """For each expert of its layer that is held here, whose such matrix stands in its place."""
        raise NotImplementedError

    def experts(self) -> int:
        """How many experts its layer has."""
        raise NotImplementedError

    def line(self, axis: int, digest: bytes) -> tuple[Slice, int] | None:
        """Whose row (axis 0) or column (axis 1) has this digest, and which of them it is."""
        raise NotImplementedError

    def expected(self, other: Slice) -> Bits:
        """What the devices are to hold for another slice."""
        raise NotImplementedError

    def held(self, other: Slice) -> Bits:
        """What they hold for it."""
        raise NotImplementedError

    def whose(self) -> Slice | None:
        """The other slice whose bits all of it is."""
        raise NotImplementedError

    def bytes_at(self, run: bytes) -> Occurrence | None:
        """Where a run of its bytes stands in the checkpoint's files."""
        raise NotImplementedError

    @property
    def unsearched(self) -> bool:
        """Whether its bytes were not looked for in the files, since searches were spent."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pattern:
    """Where a slice departs.

    Attributes:
        count: unequal elements.
        rows: a span of the first axis that holds all of them.
        columns: the same of the others, taken as one.
        parts: the stretches of the first axis that hold any.
    """

    count: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    parts: tuple[slice, ...]

    def __str__(self) -> str:
        return f"[{self.rows[0]}:{self.rows[1]}, {self.columns[0]}:{self.columns[1]}]"


class Lines:
    """Digests of a slice's rows or columns: as they should be, as they are, and whose those are.

    Args:
        e: the slice.
        axis: 0 for rows, 1 for columns.
    """

    def __init__(self, e: Evidence, axis: int) -> None:
        self.own = list(lines_of(e.reference, axis))
        self.held = list(lines_of(e.device, axis))
        self._e, self._axis = e, axis

    @cached_property
    def origins(self) -> list[tuple[Slice, int] | None]:
        """For each line that is held, whose it is and which."""
        own = {digest: (self._e.slice, at) for at, digest in enumerate(self.own)}
        around = self._e.around
        return [own.get(digest) or around.line(self._axis, digest) for digest in self.held]

    @cached_property
    def moved(self) -> list[int]:
        """The lines that are not what they should be."""
        pairs = zip(self.own, self.held, strict=True)
        return [at for at, (own, held) in enumerate(pairs) if own != held]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """One unequal slice.

    Attributes:
        slice: which.
        words: how sentences name it.
        wanted: gives what it should hold, [outputs, …], read when a rule first asks for it.
        device: what it holds, as far as the devices of this process do; elsewhere the reference.
        dtype: of both.
        made_in: the dtype that their parameter is made in on the host, where that is another.
        stored: its bits and their dtype in the files, in this orientation, before any conversion.
        around: what could have come in its place.
        held: which elements the devices of this process hold; None for all.
        stored_transposed: the files hold it as [inputs, outputs].
        granules: heads and shards to cut it into.
        repeated: whether its heads are held several times.
        deliveries: what the ledger knows.
        replicas: the devices that hold it wrong, and those that hold the same part right.
        tied: where the other of head and embedding is held instead, the words for it.
        has: what rules may need.
    """

    slice: Slice
    words: Words
    wanted: Callable[[], Bits]
    device: Bits
    dtype: str
    stored: Callable[[], tuple[Bits, str]]
    around: Around
    made_in: str = ""
    held: Mask | None = None
    stored_transposed: bool = False
    granules: tuple[Granule, ...] = ()
    repeated: bool = False
    deliveries: Callable[[], Deliveries] = field(default=lambda: Deliveries(""))
    replicas: Callable[[], tuple[list[str], list[str]] | None] = field(default=lambda: None)
    tied: Callable[[], str | None] = field(default=lambda: None)
    has: frozenset[Need]

    @cached_property
    def reference(self) -> Bits:
        """What it should hold, [outputs, …]."""
        return self.wanted()

    @property
    def name(self) -> str:
        """The slice, in full."""
        return self.slice.name

    @property
    def tensor(self) -> str:
        """What ``{names}`` in a summary stands for: whichever copy is meant."""
        return str(self.slice.key)

    @property
    def poison(self) -> int | None:
        """What an element holds before it is written, as the device is then to hold it."""
        if not self.made_in:
            return POISON.get(self.device.itemsize)
        bits = bits_dtype(self.made_in)
        poison = np.array([POISON[bits.itemsize]], dtype=bits)
        return int(converted(poison, self.made_in, self.dtype)[0])

    @cached_property
    def pattern(self) -> Pattern:
        """Where it departs, from one pass over it."""
        columns = np.zeros(max(1, self.reference[:1].size), bool)
        count, parts, rows = 0, [], []
        for part in stretches(self.reference.shape):
            unequal = self.reference[part] != self.device[part]
            if not (here := int(np.count_nonzero(unequal))):
                continue
            folded = unequal.reshape(len(unequal), -1)
            lines = part.start + np.flatnonzero(folded.any(axis=1))
            rows += [int(lines[0]), int(lines[-1]) + 1]
            columns |= folded.any(axis=0)
            count += here
            parts.append(part)
        assert count, "what is equal needs no explanation"
        across = np.flatnonzero(columns)
        return Pattern(
            count=count, rows=(rows[0], rows[-1]),
            columns=(int(across[0]), int(across[-1]) + 1), parts=tuple(parts),
        )  # fmt: skip

    def only(self, is_meant: Callable[[Bits, Bits], Mask]) -> bool:
        """Whether all elements that differ are meant; the function gets them before and after."""
        for part in self.pattern.parts:
            before, after = self.reference[part], self.device[part]
            unequal = before != after
            if not is_meant(before[unequal], after[unequal]).all():
                return False
        return True

    def all_held(self, is_meant: Callable[[Bits], Mask]) -> bool:
        """Whether all elements that the devices hold are meant, equal or not."""
        return all(
            bool(is_meant(device).all()) for device in self._held_parts(self.device) if device.size
        )

    def becomes(self, made: Callable[[Bits], Bits], is_number: Callable[[Bits], Mask]) -> bool:
        """Whether the devices hold what ``made`` makes of the stored bits; NaNs count for nothing.

        Args:
            made: of stored elements, what would be held.
            is_number: which elements of that are no NaN; there has to be one.
        """
        some = False
        stored = self._held_parts(self.stored()[0])
        for bits, device in zip(stored, self._held_parts(self.device), strict=True):
            would = made(bits)
            number = is_number(would)
            some = some or bool(number.any())
            if not np.array_equal(would[number], device[number]):
                return False
        return some

    def lines(self, axis: int) -> Lines:
        """Its rows (axis 0), or its columns (axis 1)."""
        if axis not in self._lines:
            self._lines[axis] = Lines(self, axis)
        return self._lines[axis]

    @cached_property
    def _lines(self) -> dict[int, Lines]:
        return {}

    def finding(self, cause: Cause, summary: str, evidence: str, group: str = "") -> Finding:
        """A finding about this slice; ``group`` tells it from others of its cause."""
        apart = f"{cause} {self.words.group} {group}".strip()
        return Finding(cause, apart, f"{summary}{self.words.kind}", evidence, self.tensor)

    def finding_of_all(self, cause: Cause, summary: str, evidence: str, group: str = "") -> Finding:
        """A finding whose sentence is the same for every slice of the part."""
        apart = f"{cause} {self.words.part} {group}".strip()
        return Finding(cause, apart, summary, evidence, self.tensor)

    def _held_parts(self, bits: Bits) -> Iterator[Bits]:
        for part in stretches(bits.shape):
            yield bits[part] if self.held is None else bits[part][self.held[part]]


class Turn(IntEnum):
    """When the rules of a file are tried.

    What a slice tells by itself comes first, for to find its bytes elsewhere the reference has to
    be read; whole slices come before their pieces.
    """

    DELIVERIES = 1  # what the ledger knows
    ELEMENTS = 2  # what its elements tell
    ORIGINS = 3  # it is another one
    REMADE = 4  # it is itself, made otherwise
    PIECES = 5  # it is made of pieces


Look = Callable[[Evidence], Finding | None]


@dataclass(frozen=True)
class Rule:
    """A rule: what it looks for, the causes it can name, and what a slice must have for that."""

    look: Look
    causes: tuple[Cause, ...]
    needs: frozenset[Need]


def rule(*told: Cause | Need) -> Callable[[Look], Rule]:
    """Make a rule of a function: the causes it can name, and what it needs."""
    causes = tuple(each for each in told if isinstance(each, Cause))
    needs = frozenset(each for each in told if isinstance(each, Need))
    return lambda look: Rule(look, causes, needs)
