"""The parameters of one part, each beside its rule, its layout and the tensors it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from harness.device import DeviceTensor
from harness.experts import ReferencePart
from harness.mesh import Mesh
from harness.parameter_layout import (
    Packing,
    Sizes,
    Source,
    UnknownParameterLayout,
    parameter_dtype,
    parameter_layout,
    sizes_of,
)
from harness.parameters import Rule, in_checkpoint, rule_for
from harness.placed import Placed
from harness.ties import EMBEDDING, HEAD, is_tied


def is_fp8(placed: Placed | str) -> bool:
    """Whether a parameter is quantised, so that its values are compared and not its bits."""
    return isinstance(placed, Placed) and placed.layout.dtype == "F8_E4M3"


class Placements:
    """Which parameter holds which tensors, and how.

    Args:
        reference: the part's experts, and through them the checkpoint.
        tensors: the part's arrays on the devices besides experts'.
        mesh: the devices.
        packing: what the release under test does to parameters.
    """

    def __init__(
        self,
        reference: ReferencePart,
        tensors: Iterable[DeviceTensor],
        mesh: Mesh,
        packing: Packing,
    ) -> None:
        self._reference = reference
        self._checkpoint = reference.checkpoint
        self._tensors = tuple(tensors)
        self._mesh = mesh
        self._packing = packing
        self._found: dict[str, Placed | str | None] = {}

    @cached_property
    def sizes(self) -> Sizes:
        """What of config.json decides layouts.

        Raises:
            BadInput: it lacks some of that.
        """
        return sizes_of(self._checkpoint.config, self._checkpoint.place.where("config.json"))

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return is_tied(self._checkpoint.config)

    @cached_property
    def placed(self) -> Mapping[str, Placed | str]:
        """By device name, each parameter that has a rule; the reason where that does not fit."""
        found = {tensor.name: self.of(tensor) for tensor in self._tensors}
        return {name: placed for name, placed in found.items() if placed is not None}

    def of(self, tensor: DeviceTensor) -> Placed | str | None:
        """One parameter beside its rule; the reason where that does not fit, None without one."""
        if tensor.name not in self._found:
            rule = self._rule(tensor)
            self._found[tensor.name] = None if rule is None else self._place(tensor, *rule)
        return self._found[tensor.name]

    @cached_property
    def scales(self) -> Mapping[str, DeviceTensor]:
        """By name, the scales of FP8 parameters; they are compared with those."""
        if not self._checkpoint.fp8:
            return {}
        fp8 = {f"{name}_scale" for name, placed in self.placed.items() if is_fp8(placed)}
        return {tensor.name: tensor for tensor in self._tensors if tensor.name in fp8}

    def _rule(self, tensor: DeviceTensor) -> tuple[Rule, tuple[str, ...]] | None:
        name = in_checkpoint(self._reference.part, tensor.name)
        found = rule_for(name, self._checkpoint.family.name)
        if found and name == HEAD and self.tied:
            return found[0], (EMBEDDING,)
        return found

    def _place(self, tensor: DeviceTensor, rule: Rule, names: tuple[str, ...]) -> Placed | str:
        entries = self._checkpoint.entries
        if absent := [name for name in names if name not in entries]:
            return f"no tensor {', '.join(absent)} in the checkpoint"
        sources = [Source(n, tuple(entries[n].shape), entries[n].dtype) for n in names]
        try:
            dtype = parameter_dtype(
                rule, sources, self._reference.model_dtype, fp8=self._checkpoint.fp8
            )
            layout = parameter_layout(rule, sources, self._mesh, self.sizes, self._packing, dtype)
        except UnknownParameterLayout as error:
            return f"no layout: {error}"
        return Placed(tensor, rule, layout, names)
