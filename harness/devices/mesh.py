"""The mesh: which device holds which shard of an array cut over some of its axes.

tpu-inference names a partition by groups of mesh axes (``layers/common/sharding.py``,
``ShardingAxisNameBase`` and ``ShardingAxisName2D``). The first-named axis counts most, whatever
the order of the mesh: attention is cut over (model, expert, dcp) while the mesh has expert before
model. An axis the mesh does not have counts as one of size 1, so that one table serves the mesh
of two axes (data, model) and the one of seven. This file knows names and numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Devices in an array with named axes.

    Attributes:
        axes: names and sizes, the slowest-running first.
        devices: names of the devices, ``cpu:1``, in that order.
    """

    axes: tuple[tuple[str, int], ...]
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        if math.prod(size for _, size in self.axes) != len(self.devices):
            raise ValueError(f"a mesh of {self.axes} has not {len(self.devices)} devices")

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.axes if size > 1) or "1 device"

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The size of each axis."""
        return dict(self.axes)

    def count(self, names: tuple[str, ...]) -> int:
        """Number of shards of an array whose one axis is cut over ``names``."""
        return math.prod(self.sizes.get(name, 1) for name in names)

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The devices that together hold such an array once, in the order of its shards.

        One group for each place on the other axes: each of them holds a copy.
        """
        order = [name for name, _ in self.axes]
        cut = [order.index(name) for name in names if name in order]
        rest = [axis for axis in range(len(order)) if axis not in cut]
        grid = np.arange(len(self.devices)).reshape([size for _, size in self.axes])
        numbers = grid.transpose([*rest, *cut]).reshape(-1, self.count(names))
        return tuple(tuple(self.devices[i] for i in group) for group in numbers)

    def shards(self, names: tuple[str, ...]) -> dict[str, int]:
        """Each device's number of shard of such an array."""
        return {
            device: number for group in self.groups(names) for number, device in enumerate(group)
        }
