"""Faults of tpu-inference's own JAX models: in their stream, in their experts, and upstream's own.

Layers are put into the loader under test, in the one forked process of its load. What tpu-inference
#2683 changed is changed back in a copy of the installed package, which is never edited.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.base.progress import Meter
from harness.explain.causes import Cause
from harness.load.loader_layers import LoaderLayer
from harness.load.overlay import Overlay
from harness.verification.job import VerifyRequest
from tests.support.fault_changes import one_bit
from tests.support.faults import changed, is_down, streaming, verified_with

Rename = Callable[[str, str], tuple[str, str]]


def experts(rename: Rename) -> LoaderLayer:
    """A fault of the experts' module: each matrix goes by another id, or for another matrix.

    ``rename`` is given the id and the matrix, ``("3", "up_proj")``, of each in layer 1.
    """

    def layer(base: type[Any]) -> type[Any]:
        from tpu_inference.layers.jax.moe.moe import JaxRoutedExperts

        load = JaxRoutedExperts._load_weights

        def renamed(weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
            for name, tensor in weights:
                expert, matrix, end = name.split(".")
                yield ".".join((*rename(expert, matrix), end)), tensor

        def changed_load(self: Any, weights: Any, **keywords: Any) -> Any:
            planted = "layers.1." in self.prefix
            return load(self, renamed(weights) if planted else weights, **keywords)

        JaxRoutedExperts._load_weights = changed_load
        return base

    return layer


def two_exchanged(expert: str, matrix: str) -> tuple[str, str]:
    return {"2": "5", "5": "2"}.get(expert, expert), matrix


def gate_as_up(expert: str, matrix: str) -> tuple[str, str]:
    return expert, {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(matrix, matrix)


def two_of_one(expert: str, matrix: str) -> tuple[str, str]:
    """Expert 6 never comes, and its layer's arrays are never made: it is put where 3 is."""
    return "3" if expert == "6" else expert, matrix


@dataclass(frozen=True)
class OwnFault:
    """How one is planted, the cause that is right, and what its diagnosis says."""

    layer: LoaderLayer
    cause: Cause
    says: str


_OF_LAYER = "decoder layer 1"
OWN_FAULTS: dict[str, OwnFault] = {
    "one bit": OwnFault(
        streaming(changed(one_bit, is_down)), Cause.BIT_FLIP,
        f"one bit of {_OF_LAYER} expert 0 down_proj is flipped",
    ),
    "two experts exchanged": OwnFault(
        experts(two_exchanged), Cause.EXPERTS_EXCHANGED,
        f"experts 2 and 5 of {_OF_LAYER} are exchanged",
    ),
    "gate and up swapped": OwnFault(
        experts(gate_as_up), Cause.PROJECTIONS_EXCHANGED,
        f"gate_proj and up_proj are exchanged in {_OF_LAYER}, experts 0-7",
    ),
    "an expert put over another": OwnFault(
        experts(two_of_one), Cause.PARAMETER_UNWRITTEN,
        "nothing was ever assigned to ",
    ),
}  # fmt: skip


def verify_with_own_fault(argument: bytes, _: Meter) -> bytes:
    """Verify a checkpoint with a fault of :data:`OWN_FAULTS` planted; the report."""
    request, fault = msgspec.json.decode(argument, type=tuple[VerifyRequest, str])
    return verified_with(request, [OWN_FAULTS[fault].layer])


_PROCESSING = "layers/common/process_weights/moe_weights.py"
_TURNED = r"\n    (w13|w2)_weight = jnp\.swapaxes\(\1_weight, 1, 2\)(?=\n)"
_PINNED = (
    "\n    {0}_weight = with_layout_constraint(jnp.swapaxes({0}_weight, 1, 2), Layout((0, 1, 2)))"
)
_READ_AS_TURNED = "\n    {0}_weight = {0}_weight.reshape(jnp.swapaxes({0}_weight, 1, 2).shape)"


def with_layouts_pinned(directory: Path) -> Overlay:
    """The installed tpu-inference with the change of #2683 undone.

    The layout of both arrays of experts is pinned again, as it was for jax 0.9.
    """
    return _with_turns_replaced(directory, _PINNED)


def with_pinned_bytes_misread(directory: Path) -> Overlay:
    """The same with what that came to on TPUs (#2665), where the pinned layout is not the default.

    The bytes of one layout are read as those of the other. On CPU devices both are the same.
    """
    return _with_turns_replaced(directory, _READ_AS_TURNED)


def _with_turns_replaced(directory: Path, template: str) -> Overlay:
    spec = importlib.util.find_spec("tpu_inference")
    assert spec is not None
    assert spec.submodule_search_locations
    package = directory / "tpu_inference"
    shutil.copytree(spec.submodule_search_locations[0], package)
    file = package / _PROCESSING
    text = file.read_text()
    text, count = re.subn(_TURNED, lambda match: template.format(match[1]), text)
    assert count == 2, f"{count} arrays are turned in {_PROCESSING}"
    if "with_layout_constraint" in template:
        text, count = re.subn(r"(layout import Layout)\n", r"\1, with_layout_constraint\n", text)
        assert count == 1, f"{count} imports of Layout in {_PROCESSING}"
    file.write_text(text)
    return Overlay({"tpu_inference": package})
