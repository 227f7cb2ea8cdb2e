"""What a load left on the devices, whichever way it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.device import DeviceTensor
from harness.family import Part


@dataclass(frozen=True)
class Loaded:
    """A model on its devices.

    Attributes:
        tensors: each part's parameters.
        mesh: device names in mesh order.
        entry: where the load entered the stack.
        setup_seconds: configuration, devices and mesh.
        load_seconds: streaming and processing.
    """

    tensors: Mapping[Part, Sequence[DeviceTensor]]
    mesh: tuple[str, ...]
    entry: str
    setup_seconds: float
    load_seconds: float
