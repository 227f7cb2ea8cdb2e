"""FP8 with a scale for each block of 128 by 128, as Qwen and DeepSeek publish it.

``quant_method: fp8``, ``weight_block_size: [128, 128]``: a ``weight`` of e4m3 codes and a
``weight_scale_inv`` beside it, of bf16 or f32; a value is code times scale
(:mod:`harness.checkpoint.fp8_blocks`). Linear layers are quantised, too, and compared by
:mod:`harness.compare.fp8_linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness.base.bits import F8_E4M3
from harness.checkpoint.fp8_blocks import BLOCK, SCALE_SUFFIX
from harness.checkpoint.grids import Quantised
from harness.families.formats.format import (
    BF16_SCALES,
    Form,
    Stored,
    TensorKind,
    WeightFormat,
    e4m3_codes,
    unchanged,
)

_CODES, _SCALES = "weight", f"weight{SCALE_SUFFIX}"


def _grid(outputs: int, inputs: int) -> tuple[int, int]:
    return -(-outputs // BLOCK), -(-inputs // BLOCK)


class Fp8Blocks(WeightFormat):
    """FP8 in blocks."""

    name: ClassVar = "fp8"
    summary: ClassVar = "FP8, a scale for each block of 128 by 128"

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Codes, and a scale for each block."""
        return (
            TensorKind(_CODES, F8_E4M3, lambda o, i: (o, i), e4m3_codes),
            TensorKind(_SCALES, "BF16", _grid, BF16_SCALES),
        )

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """``quant_method: fp8`` with blocks of that size."""
        blocks = quantization.get("weight_block_size") == [BLOCK, BLOCK]
        return cls() if quantization.get("quant_method") == "fp8" and blocks else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As the releases have it."""
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": list(plain),
        }

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Code times scale."""
        return Quantised(stored[_CODES].bits, F8_E4M3, stored[_SCALES].f32, (BLOCK, BLOCK))

    @property
    def form(self) -> Form:
        """Per channel, or kept."""
        return Form(F8_E4M3, BLOCK, kept=True) if unchanged() else Form(F8_E4M3, None)


FORMATS = (Fp8Blocks,)
