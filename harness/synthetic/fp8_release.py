"""FP8 releases: which tensors are stored as e4m3 codes with block scales, and their values.

As Qwen publishes them (``quant_method: fp8``, ``weight_block_size: [128, 128]``): experts one by
one, every linear layer of attention and of shared experts quantised, with a ``weight_scale_inv``
beside each ``weight``; embeddings, head, norms, routers, gates, the vision tower and the small
projections of linear attention stay bf16 and are named in ``modules_to_not_convert``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.checkpoint.fp8_blocks import BLOCK, SCALE_SUFFIX
from harness.families.family import TensorSpec
from harness.synthetic.values import Bf16Bits

CODES, SCALES = "F8_E4M3", "BF16"


def fp8_specs(specs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """The tensors of the FP8 release of a bf16 checkpoint's; fused experts become single ones."""
    for spec in specs:
        for single in _single(spec):
            if not single.fp8:
                yield single
                continue
            rows, columns = single.shape
            yield single._replace(dtype=CODES)
            grid = (-(-rows // BLOCK), -(-columns // BLOCK))
            yield TensorSpec(f"{single.name}{SCALE_SUFFIX}", grid, dtype=SCALES)


def fp8_config(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint of these tensors."""
    modules = [s.name.removesuffix(".weight") for s in specs if s.name.endswith(".weight")]
    codes = {s.name.removesuffix(".weight") for s in specs if s.dtype == CODES}
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": [name for name in modules if name not in codes],
    }


def stored(spec: TensorSpec, chunk: Bf16Bits) -> Bf16Bits:
    """Random bits made into what ``spec`` may hold: no NaN codes, scales from 2^-7 to 2^-4."""
    if spec.dtype == CODES:
        codes = chunk.view(np.uint8)
        codes[(codes & 0x7F) == 0x7F] ^= 0x08
    elif spec.name.endswith(SCALE_SUFFIX):
        chunk &= np.uint16(0x01FF)
        chunk |= np.uint16(0x3C00)
    return chunk


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
                f"{prefix}.{expert}.down_proj.weight", _outputs_first(spec, one, other), fp8=True
            )
            continue
        rows, columns = _outputs_first(spec, one, other)
        for half in ("gate_proj", "up_proj"):
            yield TensorSpec(f"{prefix}.{expert}.{half}.weight", (rows // 2, columns), fp8=True)


def _outputs_first(spec: TensorSpec, one: int, other: int) -> tuple[int, int]:
    return (other, one) if spec.transposed else (one, other)
