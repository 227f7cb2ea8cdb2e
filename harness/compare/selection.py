"""Which experts are compared, where all would take too long; what is left out is counted.

The load stays whole: a selection says what is read of the reference and of the device after it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

import msgspec

from harness.base.bits import itemsize
from harness.base.errors import BadInput
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection

_RANGE = re.compile(r"(?P<first>-?[0-9]{1,6})(-(?P<last>[0-9]{1,6}))?")


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; all of it by default.

    Attributes:
        layers: of every part, as ranges; negative ones count from a part's last layer.
        experts: of every layer, alike; negative ones count from a layer's last expert.
        sample: so many experts, drawn from what the two above leave.
        max_bytes: of experts to compare at most, drawn alike.
        seed: the draw follows from it, whatever the machine.
    """

    layers: str = ""
    experts: str = ""
    sample: int | None = None
    max_bytes: int | None = None
    seed: int = 0

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection(seed=self.seed)

    def options(self) -> list[str]:
        """The command line's options that ask for it."""
        words = [f"--layers={self.layers}"] if self.layers else []
        words += [f"--experts={self.experts}"] if self.experts else []
        words += [] if self.sample is None else [f"--sample={self.sample}"]
        words += [] if self.max_bytes is None else [f"--max-bytes={self.max_bytes}"]
        drawn = self.sample is not None or self.max_bytes is not None
        return words + ([f"--seed={self.seed}"] if drawn else [])


class Chosen:
    """The experts of one part that are compared.

    Args:
        part: the part's reference.
        pairs: ``(layer, expert)`` of those chosen; all of them by default.
    """

    def __init__(self, part: ReferencePart, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        self._experts: dict[int, list[int]] = {layer: [] for layer in part.layers}
        for layer, expert in sorted(every_expert(part) if pairs is None else pairs):
            self._experts[layer].append(expert)
        self.count = sum(map(len, self._experts.values()))
        self.left_out = len(part.layers) * part.shape.experts - self.count

    def of(self, layer: int) -> list[int]:
        """The chosen experts of a layer, ascending."""
        return self._experts[layer]


def every_expert(part: ReferencePart) -> Iterator[tuple[int, int]]:
    """``(layer, expert)`` of a part, ascending."""
    return ((layer, expert) for layer in part.layers for expert in range(part.shape.experts))


def choose(parts: Sequence[ReferencePart], selection: Selection) -> dict[Part, Chosen]:
    """What ``selection`` means for the parts of one checkpoint.

    Raises:
        BadInput: it is malformed, names what is not there, or chooses nothing.
    """
    if selection.everything:
        return {part.part: Chosen(part) for part in parts}
    candidates = [
        (part, layer, expert) for part in parts for layer, expert in _named(part, selection)
    ]
    _require_named(parts, selection, candidates)
    kept = _drawn(candidates, selection)
    if not kept:
        raise _nothing(selection, "at least one expert")
    return {
        part.part: Chosen(part, [(layer, e) for p, layer, e in kept if p is part]) for part in parts
    }


def expert_bytes(part: ReferencePart) -> int:
    """Bytes of one expert's three matrices."""
    shape = part.shape
    return len(Projection) * shape.hidden * shape.intermediate * itemsize(shape.dtype)


def keys_of(part: Part, layer: int, experts: Sequence[int]) -> Iterator[ExpertKey]:
    """The keys of some experts of a layer: experts as given, gate, up, down."""
    return (ExpertKey(part, layer, e, projection) for e in experts for projection in Projection)


_Candidate = tuple[ReferencePart, int, int]


def _named(part: ReferencePart, selection: Selection) -> Iterator[tuple[int, int]]:
    layers = _numbers(selection.layers, len(part.layers), "--layers")
    experts = _numbers(selection.experts, part.shape.experts, "--experts")
    return (
        (layer, expert)
        for place, layer in enumerate(part.layers) if layers is None or place in layers
        for expert in range(part.shape.experts) if experts is None or expert in experts
    )  # fmt: skip


def _numbers(text: str, count: int, option: str) -> set[int] | None:
    """``0,12,-1`` or ``0-3,7`` of ``count``, those beyond it included; None for all."""
    if not text:
        return None
    numbers: set[int] = set()
    for word in text.split(","):
        found = _RANGE.fullmatch(word.strip())
        first = int(found["first"]) if found else 0
        last = int(found["last"]) if found and found["last"] else first
        if not found or last < first or (first < 0 and found["last"]):
            raise BadInput(
                f"not a list of numbers and ranges: {word!r}",
                where=option,
                expected="numbers, ranges and, from the end, negative numbers, with commas",
                hint=f"{option}=0-3,7,-1",
            )
        # One number beyond the last is enough to be told of; a range to a million is not made.
        last = max(first, min(last, count))
        numbers |= set(range(first, last + 1)) if first >= 0 else {count + first}
    return numbers


def _require_named(
    parts: Sequence[ReferencePart], selection: Selection, candidates: list[_Candidate]
) -> None:
    """Every number must be of some part: the draft model has fewer layers than its target."""
    sizes = {"--layers": [len(p.layers) for p in parts],
             "--experts": [p.shape.experts for p in parts]}  # fmt: skip
    for option, text in (("--layers", selection.layers), ("--experts", selection.experts)):
        count = max(sizes[option], default=0)
        beyond = sorted(n for n in _numbers(text, count, option) or () if not 0 <= n < count)
        if beyond:
            raise BadInput(
                f"there is no {option[2:-1]} {beyond[0] if beyond[0] >= 0 else beyond[0] - count}",
                where=option,
                expected=f"0 to {count - 1}, or -1 to {-count} from the end",
                hint=f"{option}=0,-1",
            )
    if not candidates:
        raise _nothing(selection, "layers and experts of the parts that are compared")


def _drawn(candidates: list[_Candidate], selection: Selection) -> list[_Candidate]:
    """A sample within the budget, drawn by the seed alone."""
    if selection.sample is None and selection.max_bytes is None:
        return candidates
    if selection.sample is not None and selection.sample < 1:
        raise _nothing(selection, "--sample of at least 1")
    order = random.Random(selection.seed).sample(range(len(candidates)), len(candidates))
    kept: list[_Candidate] = []
    left = selection.max_bytes
    for place in order[: selection.sample]:
        part, layer, expert = candidates[place]
        nbytes = expert_bytes(part)
        if left is not None and nbytes > left:
            if not kept:
                raise _nothing(selection, f"--max-bytes of one expert at least, {nbytes}")
            break
        left = None if left is None else left - nbytes
        kept.append((part, layer, expert))
    return kept


def _nothing(selection: Selection, expected: str) -> BadInput:
    return BadInput(
        "the selection leaves nothing to compare",
        where=" ".join(selection.options()),
        expected=expected,
        hint="a wider selection",
    )
