"""What the loader was really called with: every ``weight_loader`` call of a load, in order.

Tensors tell that an expert is wrong; the ledger tells what became of it on the way: never
delivered, delivered twice, after its layer was processed, or with its ids where the hook does not
look for them, and from which line of code. Some models, as gpt-oss, copy tensors into parameters
past every ``weight_loader``: such a copy is noted as a call, too. This file holds the facts and
answers from them; it knows neither vllm nor torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.families.family import Projection

_EXPERT_PARAMETER = re.compile(
    r"(?:^|\.)layers\.(\d+)\.(?:\w+\.)*experts\.(?:routed_experts\.)?"
    r"(w13_weight|w2_weight|kernel_(?:gating|up_proj)_EDF|kernel_down_proj_EFD)$"
)

#: The shard ids of vLLM's experts (``fused_moe/layer.py``, ``FusedMoE.weight_loader``).
SHARD_OF: dict[Projection, str] = {
    Projection.GATE: "w1",
    Projection.DOWN: "w2",
    Projection.UP: "w3",
}
SHARDS = tuple(SHARD_OF.values())
#: Those that each parameter of experts holds.
_SHARDS_IN = {
    "w13_weight": (SHARD_OF[Projection.GATE], SHARD_OF[Projection.UP]),
    "w2_weight": (SHARD_OF[Projection.DOWN],),
}

#: What a parameter holds before it is written, by bytes an element takes. All are finite as bf16,
#: f16 and f32, lest casts on the way change them, and none is a value a model holds twice in a row.
POISON: dict[int, int] = {1: 0x5A, 2: 0xDEAD, 4: 0xDEADBEEF}


class Slot(NamedTuple):
    """One shard of one expert: what a single call is to deliver."""

    layer: int
    expert: int
    shard: str


class LoaderCall(NamedTuple):
    """One call of a parameter's ``weight_loader``, or one write to it past that.

    Attributes:
        parameter: the parameter's name in the model.
        layer_type: class of the layer that owns it.
        source: the checkpoint tensor that was being streamed.
        arguments: those after parameter and weight that came by position, as Python writes them.
        keywords: names and values of the others, alike.
        site: the caller, ``file:line``.
        late: the layer had been processed before, and no longer held this parameter.
        operation: of a write past the loader, the tensor's operation, as ``copy_``.
        experts: of such a write to all of a parameter, the size of its first axis.
    """

    parameter: str
    layer_type: str
    source: str
    arguments: tuple[object, ...]
    keywords: dict[str, object]
    site: str
    late: bool
    operation: str = ""
    experts: int = 0

    @property
    def is_of_expert(self) -> bool:
        """Whether the parameter holds experts."""
        return _EXPERT_PARAMETER.search(self.parameter) is not None

    @property
    def ids(self) -> tuple[object, object]:
        """Expert and shard id, wherever they stand.

        By position they are the fourth and the third argument after the parameter
        (``FusedMoE.weight_loader(param, loaded_weight, weight_name, shard_id, expert_id)``).
        """
        by_position = dict(
            zip(("weight_name", "shard_id", "expert_id"), self.arguments, strict=False)
        )
        both = by_position | self.keywords
        return both.get("expert_id"), both.get("shard_id")

    @property
    def slot(self) -> Slot | None:
        """What it names, where it names an expert's shard."""
        match = _EXPERT_PARAMETER.search(self.parameter)
        expert, shard = self.ids
        if match and isinstance(expert, int) and isinstance(shard, str):
            return Slot(int(match[1]), expert, shard)
        return None

    @property
    def slots(self) -> Iterator[Slot]:
        """Every expert's shard that it brings: the one it names, or all that a parameter holds."""
        if slot := self.slot:
            yield slot
        elif self.experts and (match := _EXPERT_PARAMETER.search(self.parameter)):
            for expert in range(self.experts):
                for shard in _SHARDS_IN[match[2]]:
                    yield Slot(int(match[1]), expert, shard)

    @property
    def ids_are_positional(self) -> bool:
        """Whether an expert's ids came by position and neither by keyword."""
        by_keyword = {"expert_id", "shard_id"} & set(self.keywords)
        return len(self.arguments) >= 3 and not by_keyword

    @property
    def as_call(self) -> str:
        """The call as source code would show it."""
        words = ["loaded_weight", *map(repr, self.arguments)]
        words += [f"{name}={value!r}" for name, value in self.keywords.items()]
        if self.operation:
            return f"param.{self.operation}({', '.join(words)})"
        return f"weight_loader({', '.join(['param', *words])})"


@dataclass
class Ledger:
    """The calls of one model's load.

    Attributes:
        calls: in order.
        streamed: names of the checkpoint's tensors, in the order the streamer gave them.
        parameters: names of the model's parameters before the load.
        unwritten: those that were never written: no element of theirs lost its poison.
        unassigned: of a model whose parameters have no memory until something is assigned to them
            (:mod:`harness.load.nnx_models`), those that have none; the load fails for them.
        bypassed: those that something wrote that nobody saw: no loader, and no copy.
        processed: when the load ended early, the parameters that had been processed: their layer
            no longer held them.
        failed: the last call raised.
        finished: the load ended as it should.
        stream_seconds: waited for the streamer, of the load's time.
        stream_bytes: of the tensors it gave.
    """

    calls: list[LoaderCall] = field(default_factory=list)
    streamed: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
    unassigned: list[str] = field(default_factory=list)
    bypassed: list[str] = field(default_factory=list)
    processed: list[str] = field(default_factory=list)
    failed: bool = False
    finished: bool = False
    stream_seconds: float = 0.0
    stream_bytes: int = 0
    _index: dict[Slot, list[int]] = field(default_factory=dict, init=False, repr=False)
    _indexed: int = field(default=0, init=False, repr=False)  # so many calls are in it

    @property
    def recorded(self) -> bool:
        """Whether a recorder was there: what is not in the ledger did not happen."""
        return self.finished or bool(self.calls)

    def deliveries(self) -> Iterator[tuple[Slot, LoaderCall]]:
        """Every expert's shard that a call brought, with the call."""
        for call in self.calls:
            for slot in call.slots:
                yield slot, call

    def counts(self) -> Counter[Slot]:
        """How often each shard of an expert was delivered."""
        return Counter(slot for slot, _ in self.deliveries())

    def of(self, layer: int, expert: int, projection: Projection) -> list[LoaderCall]:
        """The calls for one matrix of one expert."""
        for number in range(self._indexed, len(self.calls)):
            for slot in self.calls[number].slots:
                self._index.setdefault(slot, []).append(number)
        self._indexed = len(self.calls)
        numbers = self._index.get(self.slot(layer, expert, projection), ())
        return [self.calls[number] for number in numbers]

    @staticmethod
    def slot(layer: int, expert: int, projection: Projection) -> Slot:
        """The slot of one matrix of one expert."""
        return Slot(layer, expert, SHARD_OF[projection])

    def undelivered(self, layers: Iterable[int], experts: int) -> dict[int, tuple[int, ...]]:
        """By layer, the experts that were not delivered whole.

        A call the hook raised at, or that hid its ids from the hook, delivered nothing.
        """
        calls = self.calls[:-1] if self.failed else self.calls
        seen = {
            slot
            for slot, call in Ledger(calls=calls).deliveries()
            if not (call.ids_are_positional or call.late)
        }
        missing = {
            layer: tuple(
                e for e in range(experts) if any(Slot(layer, e, s) not in seen for s in SHARDS)
            )
            for layer in layers
        }
        return {layer: lost for layer, lost in missing.items() if lost}

    def processed_layers(self) -> list[int]:
        """Of the layers of experts, those that had been processed when the load ended early."""
        found = map(_EXPERT_PARAMETER.search, self.processed)
        return sorted({int(match[1]) for match in found if match})

    def gathered(self) -> list[LoaderCall]:
        """Calls for tensors that the model had taken from the stream before.

        Granite-MoE takes all of them first (``models/granitemoe.py``, ``load_weights``, 0.26). What
        was streamed last then seems to be the source of all calls: more than a tensor has, which
        is for one parameter, or two that are tied.
        """
        parameters: dict[str, set[str]] = {}
        for call in self.calls:
            parameters.setdefault(call.source, set()).add(call.parameter)
        return [call for call in self.calls if len(parameters[call.source]) > 2]

    def unread(self) -> list[str]:
        """Streamed tensors that no loader was called for, and that no parameter could hide."""
        called = {call.source for call in self.calls}
        return [name for name in self.streamed if name not in called]
