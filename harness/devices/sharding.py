"""Which part of an array each device holds, against the part its partition gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from harness.devices.expert_layout import Span
from harness.devices.tensors import DeviceTensor

Part = tuple[Span, ...]


class Misplaced(TypedDict):
    """One device that holds another part than its own, as fields of a difference."""

    reference: str
    device: str
    shard: int | None
    device_name: str
    count: int
    total: int


def misplaced(tensor: DeviceTensor, shares: Mapping[str, tuple[int, Part]]) -> Iterator[Misplaced]:
    """Every device that holds something else than its share, and every one that has none.

    Args:
        tensor: the array.
        shares: by device of the mesh, the number of its shard and the part of the whole it is.
    """
    held: dict[str, list[Part]] = {}
    for shard in tensor.shards:
        held.setdefault(shard.device, []).append(shard.index)
    for device, (number, share) in shares.items():
        found = held.pop(device, [])
        if found != [share]:
            yield _fact(number, device, [share], found)
    for device, found in held.items():
        yield _fact(None, device, [], found)


def _fact(
    shard: int | None, device: str, wanted: Sequence[Part], found: Sequence[Part]
) -> Misplaced:
    return Misplaced(
        reference=_text(wanted), device=_text(found), shard=shard, device_name=device,
        count=_elements(found), total=_elements(wanted),
    )  # fmt: skip


def _text(parts: Sequence[Part]) -> str:
    texts = ["[" + ", ".join(f"{s.start}:{s.stop}" for s in spans) + "]" for spans in parts]
    return " and ".join(texts) or "nothing"


def _elements(parts: Sequence[Part]) -> int:
    return sum(math.prod(map(len, spans)) for spans in parts)
