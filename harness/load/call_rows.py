"""The ledger of experts in a form that stays small: calls alike but for their numbers are one row.

A load of 94 layers x 128 experts makes 36 096 calls from a few lines of code. What differs between
them is layer and expert; rows keep these as ranges and the text with ``{layer}`` and ``{expert}``
in their place.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import partial

import msgspec

from harness.base.number_runs import numbers_of, runs_text
from harness.families.family import Part, Projection
from harness.load.ledger import SHARD_OF, Ledger, LoaderCall, Slot

_PROJECTION = {shard: projection for projection, shard in SHARD_OF.items()}


class Calls(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Calls of ``weight_loader`` that differ by layer and expert alone.

    Attributes:
        part: decoder or mtp.
        projection: the matrix the calls were for.
        layers: ``0-93``; each layer with all of ``experts``.
        experts: ``0-127``.
        call: as source code would show it, with ``{layer}`` and ``{expert}``.
        source: the checkpoint tensor that was being streamed, alike.
        site: the caller, ``file:line``.
        times: how often each was made.
        late: the layer had been processed before.
        positional: the ids came by position, where the hook does not look for them.
        raised: the load failed in this call.
    """

    part: Part
    projection: Projection
    layers: str
    experts: str
    call: str
    source: str
    site: str
    times: int = 1
    late: bool = False
    positional: bool = False
    raised: bool = False

    def concerns(self, layer: int, expert: int) -> bool:
        """Whether one of these calls was for ``expert`` of ``layer``."""
        return layer in numbers_of(self.layers) and expert in numbers_of(self.experts)


_LAYER = re.compile(r"(\blayers\.)(\d+)(?=\.)")
_EXPERT = re.compile(r"(\bexperts\.(?=\d+\.)|\bexpert_id=)(\d+)\b")
_AFTER_SHARD = {shard: re.compile(rf"('{shard}', )(\d+)\b") for shard in _PROJECTION}
_Kind = tuple[Projection, str, str, str, bool, bool, bool, int]


def calls_of(part: Part, ledger: Ledger) -> list[Calls]:
    """The calls for experts of one part, in the order their rows first occur."""
    cells: dict[_Kind, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    repeated: Counter[tuple[Slot, _Kind]] = Counter()
    last = len(ledger.calls) - 1 if ledger.failed else -1
    for number, (slot, call) in enumerate_deliveries(ledger):
        repeated[slot, _kind(slot, call, raised=number == last)] += 1
    for (slot, kind), times in repeated.items():
        cells[(*kind[:-1], times)][slot.layer].add(slot.expert)
    return [row for kind, layers in cells.items() for row in _rows(part, kind, layers)]


def enumerate_deliveries(ledger: Ledger) -> list[tuple[int, tuple[Slot, LoaderCall]]]:
    """Deliveries with the number each has among all calls."""
    return [
        (number, (slot, call)) for number, call in enumerate(ledger.calls) for slot in call.slots
    ]


def _kind(slot: Slot, call: LoaderCall, *, raised: bool) -> _Kind:
    return (
        _PROJECTION[slot.shard], _template(call.as_call, slot), _template(call.source, slot),
        call.site, call.late, call.ids_are_positional, raised, 0,
    )  # fmt: skip


def _template(text: str, slot: Slot) -> str:
    """``text`` with the slot's numbers replaced where names and calls have them."""
    for pattern, number, name in (
        (_LAYER, slot.layer, "{layer}"),
        (_EXPERT, slot.expert, "{expert}"),
        (_AFTER_SHARD[slot.shard], slot.expert, "{expert}"),
    ):
        text = pattern.sub(partial(_renamed, str(number), name), text)
    return text


def _renamed(number: str, name: str, found: re.Match[str]) -> str:
    return found[1] + name if found[2] == number else found[0]


def _rows(part: Part, kind: _Kind, layers: dict[int, set[int]]) -> list[Calls]:
    """Layers with the same experts together."""
    together: dict[str, list[int]] = defaultdict(list)
    for layer, experts in layers.items():
        together[runs_text(experts)].append(layer)
    projection, call, source, site, late, positional, raised, times = kind
    return [
        Calls(
            part=part, projection=projection, layers=runs_text(numbers), experts=experts,
            call=call, source=source, site=site, times=times, late=late, positional=positional,
            raised=raised,
        )
        for experts, numbers in together.items()
    ]  # fmt: skip
