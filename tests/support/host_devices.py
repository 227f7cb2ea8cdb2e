"""A packed device as each of several hosts sees it."""

from __future__ import annotations

from dataclasses import replace

from harness.devices.tensors import DevicePart
from tests.support.packing import PackedDevice

#: Which devices of four each host has; in the last row one's are not neighbours.
HOSTS = [((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0, 3), (1, 2))]


def of_host(device: PackedDevice, numbers: tuple[int, ...]) -> DevicePart:
    """The device as a host sees it that addresses these of its devices."""
    part = device.part()
    local = frozenset(part.mesh[number] for number in numbers)
    layers = {
        layer: {
            parameter: replace(t, shards=tuple(s for s in t.shards if s.device in local))
            for parameter, t in tensors.items()
        }
        for layer, tensors in part.layers.items()
    }
    return replace(part, layers=layers, local=local)
