"""Adds to a report what is on the devices besides one copy of the experts: the rest of the model.

Experts are compared by :mod:`harness.verification`; here are all other parameters, and the copies
of the experts that a mesh with data-parallel axes holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from packaging.version import Version

from harness.compare_fp8 import part_comparison
from harness.compare_parameters import ParameterComparison
from harness.device import DevicePart, DeviceTensor, device_part
from harness.diagnosis import Explainer
from harness.experts import ReferencePart
from harness.explain_parameters import ParameterExplainer
from harness.family import Part
from harness.ledger import Ledger
from harness.loaded import Loaded
from harness.mesh import TENSOR
from harness.nan import Nan
from harness.parameter_layout import HOST, Packing
from harness.report import Report
from harness.selection import Chosen, Selection
from harness.target import Target

#: What an unknown release is taken for.
_NEWEST = "999"


def packing_of(target: Target, versions: dict[str, str]) -> Packing:
    """What the release under test does to parameters.

    Up to 0.21 tpu-inference keeps linear weights as [outputs, inputs]
    (``layers/vllm/quantization/configs.py``: ``P(ATTN_HEAD, None)`` for columns) and repeats no
    k and v heads (there is no ``_tile_kv``).
    """
    if target.name == "torch-xla":
        return HOST
    if Version(versions.get("tpu-inference", _NEWEST)).release < (0, 22):
        return Packing(transposes=False, repeats=False)
    return Packing()


def add_parameters(
    report: Report,
    part: ReferencePart,
    loaded: Loaded,
    target: Target,
    nan: Nan,
    selection: Selection,
    chosen: Chosen,
) -> Mapping[str, bool]:
    """Compare a part's parameters besides experts and add tally, differences and diagnoses.

    A selection of experts selects the layers it names something of; what belongs to no layer is
    left out where ``max_bytes`` limits what is read.

    Returns:
        The tensors that the parameters are made of, and whether they were to be compared.
    """

    def wanted(layer: int | None) -> bool:
        if selection.everything:
            return True
        if layer is None:
            return selection.max_bytes is None
        return layer in part.layers and bool(chosen.of(layer))

    comparison = ParameterComparison(
        part, loaded.tensors[part.part], loaded.grid,
        packing=packing_of(target, report.environment.versions), nan=nan, chosen=wanted,
        local=loaded.local,
    )  # fmt: skip
    differences = list(comparison.differences())
    report.diagnoses += ParameterExplainer(comparison).diagnose(
        differences, len(report.differences)
    )
    report.differences += differences
    report.parameters.append(comparison.tally)
    return comparison.sources


def expert_copies(loaded: Loaded, part: Part) -> list[DevicePart]:
    """A part's experts, once for each group of devices that together hold all of them.

    An array's shards outside the mesh count with the first group: they are no one's share. Of
    several hosts each looks at the groups it has devices of, and at the first, which is counted.
    """
    tensors, groups = loaded.tensors[part], loaded.grid.groups(TENSOR)
    others = {device for group in groups[1:] for device in group}
    return [
        device_part(
            [_held_by(t, set(group), others if i == 0 else None) for t in tensors],
            group,
            None if loaded.local is None else loaded.local & set(group),
        )
        for i, group in enumerate(groups)
        if i == 0 or loaded.local is None or loaded.local & set(group)
    ]


def add_copies(
    report: Report,
    part: ReferencePart,
    copies: Sequence[DevicePart],
    ledger: Ledger,
    **options: Any,
) -> None:
    """Compare the further copies of a part's experts and add differences and diagnoses."""
    for device in copies:
        comparison = part_comparison(part, device, **options)
        differences = list(comparison.differences())
        report.diagnoses += Explainer(comparison, (), ledger).diagnose(
            differences, len(report.differences)
        )
        report.differences += differences


def _held_by(tensor: DeviceTensor, group: set[str], others: set[str] | None) -> DeviceTensor:
    """The tensor's shards on ``group``; where ``others`` is given, on all devices but those."""
    return replace(
        tensor,
        shards=tuple(
            s
            for s in tensor.shards
            if (s.device in group if others is None else s.device not in others)
        ),
    )
