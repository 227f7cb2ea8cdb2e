"""Which part of every expert the devices of one process hold.

On one host that is all of it. On several each process sees the shards of its own devices only:
some experts whole, or a part of the intermediate axis of every expert, as the packing cuts them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from harness.base.bits import Bits
from harness.devices.expert_layout import Layout, LayoutBlock, Padding, Parameter, Span
from harness.families.family import Projection


class Held:
    """The part of a packing that lies on some devices.

    Args:
        layout: the packing.
        mesh: the devices it is cut over, in order.
        local: those this process addresses; all by default.
    """

    def __init__(
        self, layout: Layout, mesh: Sequence[str], local: Collection[str] | None = None
    ) -> None:
        self._layout = layout
        self.shards = tuple(n for n, device in enumerate(mesh) if local is None or device in local)
        self.whole = len(self.shards) == len(mesh)

    @property
    def divides_experts(self) -> bool:
        """Whether every device holds a part of every expert, rather than some experts whole."""
        return self._layout.sharded_axis[Parameter.W13] != 0

    def experts(self, experts: Sequence[int]) -> list[int]:
        """Those of ``experts`` of which something is held."""
        spans = self._spans(Parameter.W13)
        if self.divides_experts:
            return list(experts) if spans else []
        return [expert for expert in experts if any(expert in span for span in spans)]

    def holds(self, part: LayoutBlock | Padding) -> bool:
        """Whether a rectangle of an expert of which something is held lies on these devices."""
        axis = self._layout.sharded_axis[part.parameter]
        if self.whole or axis == 0:
            return True
        along = part.rows if axis == 1 else part.columns
        spans = self._spans(part.parameter)
        return any(span.start <= along.start and along.stop <= span.stop for span in spans)

    def blocks(self, projection: Projection) -> list[LayoutBlock]:
        """The blocks of a projection that are held."""
        return [block for block in self._layout.blocks_of(projection) if self.holds(block)]

    def of(self, projection: Projection, matrix: Bits) -> Bits:
        """The part of an expert's matrix [output, input] that is held, in its order."""
        if self.whole or not self.divides_experts:
            return matrix
        axis = _cut_axis(projection)
        return matrix.take(self._columns(matrix.shape[axis]), axis=axis)

    def index(self, projection: Projection, at: tuple[int, int], width: int) -> tuple[int, int]:
        """Where element ``at`` of :meth:`of` stands in the whole matrix; ``width`` is F."""
        if self.whole or not self.divides_experts:
            return at
        output, input_ = at
        columns = self._columns(width)
        if _cut_axis(projection):
            return output, int(columns[input_])
        return int(columns[output]), input_

    def _spans(self, parameter: Parameter) -> list[Span]:
        return [self._layout.shard_span(parameter, shard) for shard in self.shards]

    def _columns(self, width: int) -> Bits:
        """Indexes into the intermediate axis, of ``width`` elements."""
        piece = width // self._layout.shards
        starts = np.array(self.shards, dtype=np.int64)[:, None] * piece
        columns: Bits = (starts + np.arange(piece)).ravel()
        return columns


def _cut_axis(projection: Projection) -> int:
    """The intermediate axis of a matrix [output, input]."""
    return 1 if projection is Projection.DOWN else 0
