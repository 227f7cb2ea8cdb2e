"""A part of a tiny checkpoint on a numpy device, to plant faults in and to compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.base.bits import Nan
from harness.compare.authority import WEIGHTS, Authority
from harness.compare.difference import Difference
from harness.compare.digest_comparison import Method
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.pieces import USUAL, PieceSize
from harness.devices.mesh import Mesh
from harness.devices.parameter_layout import Packing
from harness.devices.tensors import DeviceTensor
from harness.explain.causes import Cause, Diagnosis
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.parameter_packing import PackedParameters, line

Paths = dict[str, Path]


@dataclass
class Case:
    """A part of a tiny checkpoint on a numpy device."""

    checkpoint: ModelCheckpoint
    part: Part
    device: PackedParameters
    mesh: Mesh
    size: PieceSize = USUAL
    authority: Authority = WEIGHTS
    method: Method = Method.AUTO

    def compared(
        self, tensors: list[DeviceTensor] | None = None, nan: Nan = Nan.PAYLOAD
    ) -> tuple[list[Difference], list[Diagnosis], ParameterComparison]:
        (reference,) = [p for p in reference_parts(self.checkpoint) if p.part is self.part]
        comparison = ParameterComparison(
            reference,
            tensors or self.device.tensors(),
            self.mesh,
            packing=Packing(),
            nan=nan,
            authority=self.authority,
            method=self.method,
            size=self.size,
        )
        differences = list(comparison.differences())
        return differences, ParameterExplainer(comparison).diagnose(differences), comparison

    def causes(self) -> set[Cause]:
        return {d.cause for d in self.compared()[1]}


def case(paths: Paths, recipe: str, part: Part = Part.DECODER, devices: int = 4) -> Case:
    checkpoint = ModelCheckpoint(paths[recipe])
    device = PackedParameters(checkpoint, part, devices)
    return Case(checkpoint, part, device, line(device.devices))
