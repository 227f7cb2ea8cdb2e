"""One unequal slice, with all that a rule may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.base.bits import Bits
from harness.explain.causes import Cause, Finding
from harness.explain.provenance import ReferenceIndex
from harness.families.experts import ExpertKey
from harness.families.model import ModelCheckpoint


class Evidence(NamedTuple):
    """One unequal slice.

    Attributes:
        key: which.
        reference: what it should hold, [output, input].
        device: what it holds.
        others: all reference slices.
        bits_of: what the device holds for any key.
        checkpoint: the files, to look for bytes in.
        stored: the bits and the dtype it has in the files, [output, input], before any conversion.
        dtype: of what the device holds.
        stored_transposed: the files hold it as [input, output].
    """

    key: ExpertKey
    reference: Bits
    device: Bits
    others: ReferenceIndex
    bits_of: Callable[[ExpertKey], Bits]
    checkpoint: ModelCheckpoint
    stored: Callable[[], tuple[Bits, str]]
    dtype: str = "BF16"
    stored_transposed: bool = False

    @property
    def where(self) -> str:
        """Part and layer."""
        return f"{self.key.part} layer {self.key.layer}"

    @property
    def unequal(self) -> Bits:
        """Which elements differ, as booleans."""
        unequal: Bits = self.reference != self.device
        return unequal

    def finding(self, cause: Cause, group: object, summary: str, evidence: str) -> Finding:
        """A finding about this slice; ``group`` tells it from others of its cause."""
        return Finding(cause, f"{cause} {self.key.part} {group}", summary, evidence)


def extent(unequal: Bits) -> tuple[str, str]:
    """Rows and columns of the smallest rectangle around the unequal elements."""
    rows, columns = np.nonzero(unequal)
    return f"{rows.min()}:{rows.max() + 1}", f"{columns.min()}:{columns.max() + 1}"
