"""What a load left on the devices, whichever way it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.devices.mesh import Mesh
from harness.devices.tensors import DeviceTensor
from harness.families.family import Part
from harness.load.ledger import Ledger
from harness.load.target import Implementation

Ledgers = dict[Part, Ledger]


@dataclass(frozen=True)
class Loaded:
    """A model on its devices.

    Attributes:
        tensors: each part's parameters.
        mesh: device names in mesh order.
        axes: names and sizes of the mesh's axes; none for a mesh of one axis.
        entry: where the load entered the stack.
        setup_seconds: configuration, devices and mesh.
        load_seconds: streaming and processing.
        local: of ``mesh``, the devices this process addresses; None for all.
        implementations: of each part's model; vLLM's where nothing is said.
    """

    tensors: Mapping[Part, Sequence[DeviceTensor]]
    mesh: tuple[str, ...]
    entry: str
    setup_seconds: float
    load_seconds: float
    axes: tuple[tuple[str, int], ...] = ()
    local: frozenset[str] | None = None
    implementations: Mapping[Part, Implementation] = field(default_factory=dict)

    def implementation(self, part: Part) -> Implementation:
        """Whose model a part is."""
        return self.implementations.get(part, Implementation.VLLM)

    @property
    def grid(self) -> Mesh:
        """The mesh with its axes."""
        return Mesh(self.axes or (("model", len(self.mesh)),), self.mesh)
