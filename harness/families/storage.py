"""How the experts of a layer stand in a checkpoint's files: which tensors, and where in them.

A naming says what a family calls the tensors of one part, and a storage how experts lie in them.
From the two follow the tensors a layer has, with their shapes, and the place of each expert's
matrix; the reader, the account of tensors and the synthetic writer all ask here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

Index = tuple[int | slice, ...]


class Projection(StrEnum):
    """One of an expert's three matrices; ``gate`` is w1, ``up`` is w3, ``down`` is w2."""

    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


class Part(StrEnum):
    """The part of the stack a layer belongs to: the target model or the draft model."""

    DECODER = "decoder"
    MTP = "mtp"


class Storage(StrEnum):
    """How a layer's experts stand in the file. E experts, D hidden, F intermediate.

    - ``fused``: gate and up [E, 2F, D] (gate's rows first), down [E, D, F].
    - ``fused-transposed``: gate and up [E, D, 2F] (gate's columns first), down [E, F, D].
    - ``interleaved``: as fused-transposed, but gate's and up's columns alternate.
    - ``alternating``: as fused, but gate's and up's rows alternate.
    - ``stacked``: gate [E, F, D], up [E, F, D], down [E, D, F].
    - ``per-expert``: for each expert gate [F, D], up [F, D], down [D, F].
    """

    FUSED = "fused"
    FUSED_TRANSPOSED = "fused-transposed"
    INTERLEAVED = "interleaved"
    ALTERNATING = "alternating"
    STACKED = "stacked"
    PER_EXPERT = "per-expert"

    @property
    def layout(self) -> str:
        """What a storage's tensors are, for a report: ``fused [E, 2F, D], [E, D, F]``."""
        return f"{self.value} {_LAYOUT[self]}"

    @property
    def is_fused(self) -> bool:
        """Whether gate and up are one tensor."""
        return self not in (Storage.STACKED, Storage.PER_EXPERT)

    @property
    def is_transposed(self) -> bool:
        """Whether matrices lie [inputs, outputs] in the file."""
        return self in (Storage.FUSED_TRANSPOSED, Storage.INTERLEAVED)


_LAYOUT = {
    Storage.FUSED: "[E, 2F, D], [E, D, F]",
    Storage.FUSED_TRANSPOSED: "[E, D, 2F], [E, F, D]",
    Storage.INTERLEAVED: "[E, D, 2F] with alternating columns, [E, F, D]",
    Storage.ALTERNATING: "[E, 2F, D] with alternating rows, [E, D, F]",
    Storage.STACKED: "[E, F, D] twice, [E, D, F]",
    Storage.PER_EXPERT: "[F, D] twice, [D, F] for each expert",
}
#: What families call an expert's matrices: gate, up and down.
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
W1_W3_W2 = ("w1", "w3", "w2")
#: What they call the two tensors of fused ones.
FUSED_NAMES = ("gate_up_proj", "down_proj")


class ExpertSizes(NamedTuple):
    """E, D and F."""

    experts: int
    hidden: int
    intermediate: int


class ExpertTensor(NamedTuple):
    """A tensor that holds experts: its name, its shape, and whose it is; None: all of them.

    ``dtypes`` are what it may be stored as, in a quantised release; elsewhere nothing is said.
    """

    name: str
    shape: tuple[int, ...]
    expert: int | None = None
    dtypes: tuple[str, ...] = ()


class StoredMatrix(NamedTuple):
    """Where an expert's matrix lies: an index into a tensor, and whether it is [inputs, outputs].

    The index is empty where the tensor is the matrix.
    """

    tensor: str
    at: Index
    transposed: bool


@dataclass(frozen=True)
class ExpertNaming:
    """The expert tensors of one part, and how experts lie in them.

    Attributes:
        part: of the stack.
        prefix: of their names, with ``{layer}``, as ``model.layers.{layer}.mlp.experts``.
        storage: how experts lie.
        names: what follows the prefix. For ``per-expert`` and ``stacked`` what gate, up and down
            are called, ``GATE_UP_DOWN`` by default; per expert the expert's number comes before it
            and ``.weight`` after. For the fused storages what gate and up together, and down, are
            called, ``FUSED_NAMES`` by default. ``.weight`` is theirs to say.
        suffix: of a quantised release, what the tensor of a matrix's codes is called, in the place
            of ``weight``, or, where experts are fused, after an underscore.
    """

    part: Part
    prefix: str
    storage: Storage
    names: tuple[str, ...] = ()
    suffix: str = ""

    def __post_init__(self) -> None:
        wanted = 2 if self.storage.is_fused else 3
        if not self.names:
            names = FUSED_NAMES if self.storage.is_fused else GATE_UP_DOWN
            object.__setattr__(self, "names", names)
        if len(self.names) != wanted or self.prefix.count("{layer}") != 1:
            raise ValueError(f"{self.storage} has {wanted} names and one {{layer}}: {self}")

    def tensors(self, layer: int, sizes: ExpertSizes) -> Iterator[ExpertTensor]:
        """The tensors of a layer, in the order in which a checkpoint holds them."""
        experts, hidden, width = sizes
        before = self.prefix.format(layer=layer)
        if self.storage is Storage.PER_EXPERT:
            for expert in range(experts):
                for name, matrix in zip(self.names, self._matrices(hidden, width), strict=True):
                    yield ExpertTensor(f"{before}.{expert}.{name}{self._end}", matrix, expert)
            return
        for name, matrix in zip(self.names, self._matrices(hidden, width), strict=True):
            stored = matrix[::-1] if self.storage.is_transposed else matrix
            yield ExpertTensor(f"{before}.{name}{self._end}", (experts, *stored))

    @property
    def _end(self) -> str:
        """What follows a matrix's own name."""
        if self.storage is Storage.PER_EXPERT:
            return f".{self.suffix or 'weight'}"
        return f"_{self.suffix}" if self.suffix else ""

    def beside(self, tensor: str, suffix: str) -> str:
        """The name of another tensor of the same matrices, in a quantised release."""
        return tensor.removesuffix(self.suffix) + suffix

    def _matrices(self, hidden: int, width: int) -> tuple[tuple[int, int], ...]:
        """The shapes, [outputs, inputs], of what :attr:`names` names."""
        if self.storage.is_fused:
            return ((2 * width, hidden), (hidden, width))
        return ((width, hidden), (width, hidden), (hidden, width))

    def matrix(self, layer: int, expert: int, projection: Projection, width: int) -> StoredMatrix:
        """Where one matrix lies; ``width`` is F."""
        before, number = self.prefix.format(layer=layer), tuple(Projection).index(projection)
        if self.storage is Storage.PER_EXPERT:
            name = f"{before}.{expert}.{self.names[number]}{self._end}"
            return StoredMatrix(name, (), False)
        if self.storage is Storage.STACKED:
            return StoredMatrix(f"{before}.{self.names[number]}{self._end}", (expert,), False)
        transposed = self.storage.is_transposed
        if projection is Projection.DOWN:
            return StoredMatrix(f"{before}.{self.names[1]}{self._end}", (expert,), transposed)
        if self.storage in (Storage.INTERLEAVED, Storage.ALTERNATING):
            half = slice(number, None, 2)
        else:
            half = slice(number * width, (number + 1) * width)
        index: Index = (expert, slice(None), half) if transposed else (expert, half)
        return StoredMatrix(f"{before}.{self.names[0]}{self._end}", index, transposed)

    def layer_of(self, tensor: str) -> int | None:
        """The layer of an expert tensor, by its name; None where it has none of this naming's."""
        match = self._pattern.fullmatch(tensor)
        return int(match["layer"]) if match else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        before, after = map(re.escape, self.prefix.split("{layer}"))
        names = "|".join(map(re.escape, self.names))
        number = r"[0-9]+\." if self.storage is Storage.PER_EXPERT else ""
        tensor = rf"{number}(?:{names}){re.escape(self._end)}"
        return re.compile(rf"{before}(?P<layer>[0-9]{{1,9}}){after}\.{tensor}")
