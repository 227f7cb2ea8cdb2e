"""Quantised releases: which tensors are stored otherwise than in bf16, and their values.

Experts stand as their format says (:mod:`harness.families.formats`). In FP8 blocks, as Qwen
publishes them, every linear layer of attention and of shared experts is quantised, too; embeddings,
head, norms, routers, gates, the vision tower and the small projections of linear attention stay
bf16. What stays is named in the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.families.family import TensorSpec
from harness.families.formats.block_fp8 import Fp8Blocks
from harness.families.formats.format import WeightFormat
from harness.synthetic.values import Bf16Bits

_WEIGHT = "weight"


def quantised_specs(specs: Sequence[TensorSpec], form: WeightFormat) -> Iterator[TensorSpec]:
    """The tensors of the release of a bf16 checkpoint's in a format."""
    for spec in specs:
        for single in [spec] if form.fused else _single(spec):
            if single.routed or (single.fp8 and isinstance(form, Fp8Blocks)):
                yield from _stored_as(single, form)
            else:
                yield single


def quantised_config(specs: Sequence[TensorSpec], form: WeightFormat) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint of these tensors."""
    modules = [s.name.removesuffix(".weight") for s in specs if s.name.endswith(".weight")]
    codes = {s.name.removesuffix(".weight") for s in specs if s.fill}
    return form.config([name for name in modules if name not in codes])


def stored(spec: TensorSpec, chunk: Bf16Bits) -> Bf16Bits:
    """Random bits made into what ``spec`` may hold."""
    if spec.fill is None:
        return chunk
    filled: Bf16Bits = spec.fill(chunk)
    return filled


def _stored_as(spec: TensorSpec, form: WeightFormat) -> Iterator[TensorSpec]:
    """The tensors of a matrix, or of all experts' where they are fused."""
    *experts, one, other = spec.shape
    outputs, inputs = (other, one) if spec.transposed and experts else (one, other)
    before = f"{spec.name}_" if form.fused else spec.name.removesuffix(_WEIGHT)
    for kind in form.tensors:
        shape = (*experts, *kind.shape(outputs, inputs))
        yield TensorSpec(
            before + kind.suffix, shape, spec.experts if experts else None,
            dtype=kind.dtype, fill=kind.content(outputs, inputs),
        )  # fmt: skip


def _single(spec: TensorSpec) -> Iterator[TensorSpec]:
    """A fused expert tensor's experts, [outputs, inputs]; any other tensor itself."""
    if spec.experts is None:
        yield spec
        return
    prefix, _, tensor = spec.name.rpartition(".")
    one, other = spec.shape[1:]
    for expert in range(spec.experts):
        if tensor == "down_proj":
            yield TensorSpec(
                f"{prefix}.{expert}.down_proj.weight", _outputs_first(spec, one, other), routed=True
            )
            continue
        rows, columns = _outputs_first(spec, one, other)
        for half in ("gate_proj", "up_proj"):
            name = f"{prefix}.{expert}.{half}.weight"
            yield TensorSpec(name, (rows // 2, columns), routed=True)


def _outputs_first(spec: TensorSpec, one: int, other: int) -> tuple[int, int]:
    return (other, one) if spec.transposed else (one, other)
