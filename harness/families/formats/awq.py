"""AWQ: INT4 in groups of inputs with zero points, as AutoAWQ writes it.

``quant_method: awq``, ``version: gemm`` (casper-hansen/AutoAWQ, ``awq/modules/linear/gemm.py`` and
``awq/utils/packing_utils.py``). Matrices lie [inputs, outputs]. ``qweight`` [inputs, outputs / 8]
holds words of 32 bits, each eight codes along the outputs, which lie from the lowest bits on in the
order 0, 2, 4, 6, 1, 3, 5, 7; ``qzeros`` [groups, outputs / 8] the zero points, packed alike;
``scales`` [groups, outputs] f16. A value is (code - zero) times scale. vLLM makes the scales'
parameter in the model's type: of bf16 on a TPU, so that f16 scales are rounded on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness.base.bits import I8, Bits
from harness.checkpoint.grids import Quantised
from harness.families.formats.format import (
    Form,
    Stored,
    TensorKind,
    WeightFormat,
    as_they_are,
    masked,
)

#: Where the eight codes of a word lie: code i in place ``_PLACE[i]``, from the lowest bits.
_PLACE = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def _unpacked(words: Stored) -> Bits:
    """Codes [rows, 8 n] of words [rows, n]."""
    codes = words.nibbles()
    return codes.reshape(len(codes), -1, 8)[..., _PLACE].reshape(len(codes), -1)


@dataclass(frozen=True)
class Awq(WeightFormat):
    """AWQ."""

    name: ClassVar = "awq"
    summary: ClassVar = "AWQ: INT4 with zero points, a scale for each group of inputs"
    group: int = 128

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Packed codes and zero points, and scales."""
        return (
            TensorKind("qweight", "I32", lambda o, i: (i, o // 8), as_they_are),
            TensorKind("qzeros", "I32", lambda o, i: (i // self.group, o // 8), as_they_are),
            TensorKind("scales", "F16", lambda o, i: (i // self.group, o), _F16_SCALES),
        )

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """Four bits, packed for GEMM."""
        said = {"zero_point": True, "version": "gemm"} | dict(quantization)
        bits = said.get("bits", said.get("w_bit"))
        size = said.get("group_size", said.get("q_group_size"))
        fits = said.get("quant_method") == "awq" and bits == 4 and said["zero_point"] is True
        if not fits or str(said["version"]).lower() != "gemm":
            return None
        return cls(size) if isinstance(size, int) and size > 0 else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As AutoAWQ has it, and with the names of vLLM's own layers.

        tpu-inference looks for those alone (``awq.py``, ``get_quant_method``, 0.26 and 0.32).
        """
        fused = {name.replace(".q_proj", ".qkv_proj") for name in plain if name.endswith(".q_proj")}
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": [*plain, *sorted(fused)],
        }

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Codes less their zero points, of eight bits; scales as bf16 has them."""
        zeros = np.repeat(_unpacked(stored["qzeros"]), self.group, axis=0)[:inputs]
        codes = (_unpacked(stored["qweight"]).astype(np.int8) - zeros.astype(np.int8)).T
        scales = np.ascontiguousarray(stored["scales"].as_bf16.T)
        turned = np.ascontiguousarray(codes).view(np.uint8)
        return Quantised(turned, I8, scales, (1, self.group))

    def misread(
        self, stored: Mapping[str, Stored], outputs: int, inputs: int
    ) -> Iterator[tuple[str, str, Quantised]]:
        """Zero points that are left out, taken for eight, or one too large; codes as they lie."""
        right = self.decoded(stored, outputs, inputs)
        codes = _unpacked(stored["qweight"]).T.astype(np.int8)
        zeros = np.repeat(_unpacked(stored["qzeros"]), self.group, axis=0)[:inputs].T
        for words, zero in (
            ("zero points are left out", 0),
            ("zero points are taken for eight", 8),
            ("zero points are one too large", zeros.astype(np.int8) + 1),
        ):
            other = np.ascontiguousarray((codes - zero).astype(np.int8)).view(np.uint8)
            yield "zero", words, right.with_codes(other)
        plain = stored["qweight"].nibbles().reshape(inputs, outputs).T.astype(np.int8)
        other = np.ascontiguousarray(plain - zeros.astype(np.int8)).view(np.uint8)
        yield "order", "the eight codes of a word are taken as they lie", right.with_codes(other)

    @property
    def form(self) -> Form:
        """Kept, as eight bits a code."""
        return Form(I8, self.group, kept=True)


#: f16 from 2^-7 to 2^-5.
_F16_SCALES = masked(0x2000, 0x07FF)

FORMATS = (Awq,)
