"""Compares one part of a model that is on the devices: its experts, their copies, all else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.base.bits import Nan
from harness.base.progress import Meter
from harness.compare.authority import WEIGHTS, Authority
from harness.compare.difference import ParameterTally
from harness.compare.digest_comparison import Method
from harness.compare.expert_comparison import PartComparison
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.quantised_experts import part_comparison
from harness.compare.selection import Chosen, Selection
from harness.devices.expert_layout import Backend
from harness.devices.parameter_layout import Packing
from harness.devices.tensors import DevicePart, DeviceTensor, device_part, is_of_experts
from harness.explain.diagnosis import Explainer
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.blocks import TENSOR
from harness.families.experts import ReferencePart
from harness.families.family import Part
from harness.load.call_rows import calls_of
from harness.load.ledger import Ledger
from harness.load.loaded import Loaded
from harness.report.maps import map_of
from harness.report.report import Delivery
from harness.verification.coverage import Counts, coverage, expert_sources
from harness.verification.findings import Findings, PartFindings

_EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class How:
    """How parts are compared.

    Attributes:
        backend: the packing experts are to have on the devices.
        packing: what the release does to other parameters.
        nan: how NaNs in the reference count.
        method: how bits are compared.
        selection: what was chosen of experts, which chooses layers of other parameters.
        authority: settles which bits are right.
    """

    backend: Backend
    packing: Packing
    nan: Nan = Nan.PAYLOAD
    method: Method = Method.AUTO
    selection: Selection = _EVERYTHING
    authority: Authority = WEIGHTS


@dataclass(frozen=True, kw_only=True)
class PartVerification:
    """One part of a model, as the reference has it and as a load left it.

    Attributes:
        part: its experts, and through them the reference.
        parts: all parts of the reference, where bytes may have come from.
        loaded: what is on the devices.
        ledger: the part's load.
        chosen: the experts to compare.
        how: how they are.
        present: the parts that the model has.
        others: tensors that the reference lacks.
        meter: counts the bytes of experts that were compared.
    """

    part: ReferencePart
    parts: Sequence[ReferencePart]
    loaded: Loaded
    ledger: Ledger
    chosen: Chosen
    how: How
    present: Collection[Part]
    others: Collection[str] = ()
    meter: Meter

    def findings(self) -> PartFindings:
        """Compare all of it, and explain what differs."""
        device, *copies = expert_copies(self.loaded, self.part)
        comparison = self._comparison(device)
        counts, uncovered = coverage(self.part, self.ledger, self.present, self.others)
        experts = Findings.of(
            [*comparison.differences(), *uncovered],
            Explainer(comparison, self.parts, self.ledger).diagnose,
        )
        for copy in copies:
            experts += self.of_copy(copy)
        tally, others, sources = self.of_parameters() if self._all else (None, Findings(), {})
        return PartFindings(
            found=experts + others,
            tally=comparison.tally,
            parameters=tally,
            delivery=_delivery(self.part.part, self.ledger, counts),
            calls=calls_of(self.part.part, self.ledger),
            map=map_of(
                self.part.part, self.part.layers, self.part.shape.experts,
                lambda layer: comparison.held.experts(self.chosen.of(layer)),
                experts.differences, experts.diagnoses,
            ),
            sources={**sources, **expert_sources(self.part, self.chosen)},
        )  # fmt: skip

    def of_copy(self, copy: DevicePart) -> Findings:
        """What differs in a further copy of the part's experts."""
        comparison = self._comparison(copy)
        return Findings.of(
            comparison.differences(), Explainer(comparison, (), self.ledger).diagnose
        )

    def of_parameters(self) -> tuple[ParameterTally, Findings, Mapping[str, bool]]:
        """Compare the part's parameters besides experts.

        A selection of experts selects the layers it names something of; what belongs to no layer
        is left out where ``max_bytes`` limits what is read.

        Returns:
            How many were compared, what differs, and the tensors that they are made of, with
            whether these were to be compared.
        """
        comparison = ParameterComparison(
            self.part, self.loaded.tensors[self.part.part], self.loaded.grid,
            packing=self.how.packing, backend=self.how.backend, nan=self.how.nan,
            chosen=self._is_wanted, local=self.loaded.local, authority=self.how.authority,
            method=self.how.method,
        )  # fmt: skip
        explain = ParameterExplainer(comparison, self.ledger).diagnose
        found = Findings.of(comparison.differences(), explain)
        return comparison.tally, found, comparison.sources

    def _comparison(self, device: DevicePart) -> PartComparison:
        return part_comparison(
            self.part, device, backend=self.how.backend, nan=self.how.nan, chosen=self.chosen,
            method=self.how.method, authority=self.how.authority, meter=self.meter,
        )  # fmt: skip

    @property
    def _all(self) -> bool:
        """Whether more than experts is looked at."""
        return not self.part.checkpoint.experts_only

    def _is_wanted(self, layer: int | None) -> bool:
        """Whether parameters of a layer, or None for those of no layer, are to be compared."""
        if self.how.selection.everything:
            return True
        if layer is None:
            return self.how.selection.max_bytes is None
        return layer in self.part.layers and bool(self.chosen.of(layer))


def _delivery(part: Part, ledger: Ledger, counts: Counts) -> Delivery:
    sites = Counter(call.site for call in ledger.calls if call.is_of_expert)
    return Delivery(part=part, calls=len(ledger.calls), sites=dict(sites), **counts._asdict())


def expert_copies(loaded: Loaded, part: ReferencePart) -> list[DevicePart]:
    """A part's experts, once for each group of devices that together hold all of them.

    An array's shards outside the mesh count with the first group: they are no one's share. Of
    several hosts each looks at the groups it has devices of, and at the first, which is counted.
    """
    family, groups = part.checkpoint.family, loaded.grid.groups(TENSOR)
    tensors = [t for t in loaded.tensors[part.part] if is_of_experts(t.name, family, part.part)]
    others = {device for group in groups[1:] for device in group}
    return [
        device_part(
            [_held_by(t, set(group), others if i == 0 else None) for t in tensors],
            group,
            None if loaded.local is None else loaded.local & set(group),
            module=family.experts_module,
        )
        for i, group in enumerate(groups)
        if i == 0 or loaded.local is None or loaded.local & set(group)
    ]


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
