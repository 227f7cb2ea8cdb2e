"""Which part of an array each device holds, against the part its partition gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from harness.devices.expert_layout import Span
from harness.devices.tensors import DeviceTensor

Part = tuple[Span, ...]
#: The same as plain numbers: start and stop on each axis.
Region = tuple[tuple[int, int], ...]


class Misplaced(TypedDict):
    """One device that holds another part than its own, as fields of a difference."""

    share: Region | None
    held: tuple[Region, ...]
    shard: int | None
    device_name: str


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
            yield _fact(number, device, share, found)
    for device, found in held.items():
        yield _fact(None, device, None, found)


def _fact(shard: int | None, device: str, share: Part | None, found: Sequence[Part]) -> Misplaced:
    return Misplaced(
        share=None if share is None else _region(share), held=tuple(map(_region, found)),
        shard=shard, device_name=device,
    )  # fmt: skip


def _region(part: Part) -> Region:
    return tuple((span.start, span.stop) for span in part)
