"""MXFP4, as gpt-oss is published: all experts of a layer in one tensor of blocks.

``quant_method: mxfp4`` (OCP microscaling formats 1.0, 5.3 and 6; openai/gpt-oss,
``gpt_oss/torch/weights.py``). ``gate_up_proj_blocks`` [E, 2F, D / 32, 16] holds two codes of E2M1 a
byte, the lower bits first, and ``gate_up_proj_scales`` [E, 2F, D / 32] an exponent for each block
of 32 inputs: a value is code times 2^(exponent - 127). Rows of gate and up alternate. ``down_proj``
has [E, D, F / 32, 16] and [E, D, F / 32]. Biases are bf16 and lie beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from harness.base.bits import F4_E2M1
from harness.checkpoint.grids import Quantised
from harness.families.formats.format import (
    Form,
    Stored,
    TensorKind,
    WeightFormat,
    as_they_are,
    masked,
)
from harness.families.storage import ExpertNaming, Storage

_GROUP = 32
#: Inputs that share a scale on the device (``MXFP4_REQUANTIZED_BLOCK_SIZE``).
_BLOCK = 512
_BIAS = 127


@dataclass(frozen=True)
class Mxfp4(WeightFormat):
    """MXFP4."""

    name: ClassVar = "mxfp4"
    fused: ClassVar = True
    summary: ClassVar = "MXFP4: FP4 with an exponent for each block of 32 inputs, as gpt-oss has it"

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Blocks of codes, and exponents."""
        return (
            TensorKind("blocks", "U8", lambda o, i: (o, i // _GROUP, _GROUP // 2), as_they_are),
            TensorKind("scales", "U8", lambda o, i: (o, i // _GROUP), masked(0x7878, 0x0303)),
        )

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """By its name alone: there is nothing to choose."""
        return cls() if quantization.get("quant_method") == "mxfp4" else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As gpt-oss has it, which lists patterns."""
        return {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                "lm_head",
            ],
        }  # fmt: skip

    def naming(self, published: ExpertNaming) -> ExpertNaming:
        """The two fused tensors' names, with what they hold."""
        return replace(published, storage=Storage.ALTERNATING, suffix="blocks")

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Code times a power of two."""
        codes = stored["blocks"].nibbles().reshape(outputs, inputs)
        exponents = stored["scales"].bits.astype(np.int32) - _BIAS
        return Quantised(codes, F4_E2M1, np.ldexp(np.float32(1), exponents), (1, _GROUP))

    @property
    def form(self) -> Form:
        """FP4 again, in longer blocks: this loader asks nobody whether to."""
        return Form(F4_E2M1, _BLOCK, padded=True)


FORMATS = (Mxfp4,)
