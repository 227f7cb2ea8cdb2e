"""A target of someone else's package, in one file: the emulated devices in another order."""

from __future__ import annotations

from harness.load.targets.emulated import Emulated


class Toy(Emulated):
    """Two emulated devices by default, the last one first."""

    name = "toy"
    default_devices = 2

    def device_indexes(self, devices: int) -> tuple[int, ...]:
        return tuple(range(devices, 0, -1))


TARGET = Toy()
