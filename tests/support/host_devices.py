"""A packed device as each of several hosts sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.devices.expert_layout import Parameter
from harness.devices.tensors import DevicePart, DeviceTensor
from tests.support.packing import PackedDevice

_Layers = Mapping[int, Mapping[Parameter, DeviceTensor]]

#: Which devices of four each host has; in the last row one's are not neighbours.
HOSTS = [((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0, 3), (1, 2))]


def of_host(device: PackedDevice, numbers: tuple[int, ...]) -> DevicePart:
    """The device as a host sees it that addresses these of its devices."""
    return seen_from(device.part(), numbers)


def seen_from(part: DevicePart, numbers: tuple[int, ...]) -> DevicePart:
    """Experts on devices as a host sees them that addresses these of the devices."""
    local = frozenset(part.mesh[number] for number in numbers)

    def seen(layers: _Layers) -> _Layers:
        return {
            layer: {
                parameter: replace(t, shards=tuple(s for s in t.shards if s.device in local))
                for parameter, t in tensors.items()
            }
            for layer, tensors in layers.items()
        }

    return replace(part, layers=seen(part.layers), scales=seen(part.scales), local=local)
