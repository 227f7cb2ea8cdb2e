"""Whether devices that hold the same part of an array hold the same bits of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TypedDict

import numpy as np

from harness.base.bits import ITEMSIZE, Bits
from harness.base.scanning import unequal
from harness.devices.expert_layout import Span
from harness.devices.programs import FeatureSums, ask
from harness.devices.tensors import DeviceShard, DeviceTensor


class OddReplica(TypedDict):
    """One device that holds a part otherwise than the first that holds it, as fields."""

    reference: int
    reference_device: str
    device: int
    itemsize: int
    index: tuple[int, ...]
    count: int
    total: int
    device_name: str


def odd_replicas(tensor: DeviceTensor) -> Iterator[OddReplica]:
    """Every device whose bits are not those of the first device with the same part.

    Args:
        tensor: of any shape; shards that have replicas are read whole, but for devices with memory
            of their own that say they digest alike.

    Yields:
        Fields of a difference; ``index`` is the first unequal element in the whole array.
    """
    for alike in _by_part(tensor).values():
        if len(alike) < 2 or _digest_alike(alike):
            continue
        first = np.asarray(alike[0].fetch(...))
        for shard in alike[1:]:
            bits = np.asarray(shard.fetch(...))
            if not np.array_equal(bits, first):
                yield _odd(tensor, alike[0], first, shard, bits)


def _digest_alike(shards: Sequence[DeviceShard]) -> bool:
    """Whether devices were asked, and digest the same part of an array alike."""
    first, *others = map(len, shards[0].index) if shards[0].index else (1,)
    question = FeatureSums((first, prod(others)), 0, 0)
    asked = [(s.device, s.held, question) for s in shards if s.held and not s.in_host_memory]
    if len(asked) < len(shards):
        return False
    words = [answer.words for answer in ask(asked)]
    return all(np.array_equal(each, words[0]) for each in words)


def _by_part(tensor: DeviceTensor) -> dict[tuple[Span, ...], list[DeviceShard]]:
    parts: dict[tuple[Span, ...], list[DeviceShard]] = {}
    for shard in tensor.shards:
        parts.setdefault(shard.index, []).append(shard)
    return parts


def _odd(
    tensor: DeviceTensor, first: DeviceShard, wanted: Bits, shard: DeviceShard, found: Bits
) -> OddReplica:
    odd = unequal(found, wanted)
    assert odd, "only what differs comes here"
    at = odd.first
    return OddReplica(
        reference=int(wanted[at]), reference_device=first.device, device=int(found[at]),
        itemsize=ITEMSIZE[tensor.dtype],
        index=tuple(i + span.start for i, span in zip(at, shard.index, strict=True)),
        count=odd.count, total=found.size,
        device_name=shard.device,
    )  # fmt: skip
