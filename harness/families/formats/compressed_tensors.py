"""compressed-tensors: FP8 per channel or per tensor, and INT4 in groups, symmetric.

What llm-compressor writes (``quant_method: compressed-tensors``; vllm-project/compressed-tensors,
README and ``docs``; the format of each group of layers is in ``config_groups``).

- ``float-quantized``: ``weight`` holds e4m3 codes, ``weight_scale`` one scale for each output,
  [outputs, 1], or one for all, [1]. A value is code times scale.
- ``pack-quantized`` with four bits (Kimi-K2): ``weight_packed`` [outputs, inputs / 8] holds words
  of 32 bits, each eight codes along the inputs, the first in the lowest bits, each of them plus
  eight; ``weight_scale`` [outputs, inputs / group] a scale for each group of inputs,
  ``weight_shape`` the two sizes. A value is (code - 8) times scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.base.bits import F8_E4M3, I4, I8
from harness.checkpoint.grids import Quantised
from harness.families.formats.format import (
    BF16_SCALES,
    Form,
    Stored,
    TensorKind,
    WeightFormat,
    as_they_are,
    e4m3_codes,
    masked,
    unchanged,
)

_METHOD = "compressed-tensors"


def _weights(quantization: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the one group of layers says of its weights, if there is one group."""
    groups = quantization.get("config_groups")
    if quantization.get("quant_method") != _METHOD or not isinstance(groups, dict):
        return None
    (only, *others) = groups.values() if groups else (None,)
    weights = only.get("weights") if isinstance(only, dict) and not others else None
    return weights if isinstance(weights, dict) else None


def _config(
    layout: str, plain: Sequence[str], weights: dict[str, Any], inputs: Any
) -> dict[str, Any]:
    shared = {"dynamic": False, "symmetric": True, "observer": "minmax", "actorder": None}
    return {
        "quant_method": _METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "ignore": list(plain),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": shared | weights,
                "input_activations": inputs,
                "output_activations": None,
            }
        },
    }


@dataclass(frozen=True)
class Fp8Channel(WeightFormat):
    """FP8 with a scale for each output."""

    name: ClassVar = "ct-fp8-channel"
    summary: ClassVar = "compressed-tensors FP8, a scale for each output"
    type: ClassVar = "float"
    strategy: ClassVar = "channel"

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Codes and scales."""
        return (self._codes, self._scale)

    @property
    def _codes(self) -> TensorKind:
        return TensorKind("weight", F8_E4M3, lambda o, i: (o, i), e4m3_codes)

    @property
    def _scale(self) -> TensorKind:
        return TensorKind("weight_scale", "BF16", self._scales, BF16_SCALES)

    @staticmethod
    def _scales(outputs: int, inputs: int) -> tuple[int, ...]:
        return (outputs, 1)

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """Of this type, eight bits and strategy."""
        said = _weights(quantization) or {}
        fits = (said.get("type"), said.get("num_bits"), said.get("strategy"))
        return cls() if fits == (cls.type, 8, cls.strategy) else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As ``FP8_DYNAMIC`` of llm-compressor has it."""
        weights = {"num_bits": 8, "type": self.type, "strategy": self.strategy, "group_size": None}
        token = "tensor" if self.strategy == "tensor" else "token"
        inputs = {
            "num_bits": 8, "type": self.type, "strategy": token, "dynamic": True, "symmetric": True,
            "observer": None, "group_size": None, "actorder": None,
        }  # fmt: skip
        return _config(f"{self.type}-quantized", plain, weights, inputs)

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Code times scale."""
        scales = stored["weight_scale"].f32.reshape(-1, 1)
        return Quantised(stored["weight"].bits, F8_E4M3, scales, (outputs // len(scales), inputs))

    @property
    def form(self) -> Form:
        """Per channel, always: the loader has no way to keep what has no blocks."""
        return Form(F8_E4M3, None)


@dataclass(frozen=True)
class Fp8Tensor(Fp8Channel):
    """FP8 with a scale for each matrix."""

    name: ClassVar = "ct-fp8-tensor"
    summary: ClassVar = "compressed-tensors FP8, a scale for each matrix"
    strategy: ClassVar = "tensor"

    @staticmethod
    def _scales(outputs: int, inputs: int) -> tuple[int, ...]:
        return (1,)


@dataclass(frozen=True)
class Int4(WeightFormat):
    """INT4 in groups of inputs, symmetric."""

    name: ClassVar = "ct-int4"
    can_be_kept: ClassVar = True
    symmetric: ClassVar = True
    summary: ClassVar = "compressed-tensors INT4, symmetric, a scale for each group of inputs"
    group: int = 32

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Packed codes, scales, and the sizes of what was packed."""
        return (
            TensorKind("weight_packed", "I32", lambda o, i: (o, i // 8), as_they_are),
            TensorKind("weight_scale", "BF16", self._scales, masked(0x3C00, 0x00FF)),
            TensorKind("weight_shape", "I64", lambda o, i: (2,), as_they_are, weighs=False,
                 sizes=True),
        )  # fmt: skip

    def _scales(self, outputs: int, inputs: int) -> tuple[int, ...]:
        return outputs, inputs // self.group

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """Integers of four bits, in groups."""
        said = _weights(quantization) or {}
        fits = tuple(said.get(key) for key in ("type", "num_bits", "strategy", "symmetric"))
        size = said.get("group_size")
        if fits != ("int", 4, "group", cls.symmetric) or said.get("actorder") == "group":
            return None
        return cls(size) if isinstance(size, int) and size > 0 and size % 8 == 0 else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As ``W4A16`` of llm-compressor has it, and Kimi-K2."""
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": self.group,
                   "symmetric": self.symmetric}  # fmt: skip
        return _config("pack-quantized", plain, weights, None)

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """(code - 8) times scale, which vLLM makes in the model's type: bf16 on a TPU."""
        codes: npt.NDArray[np.uint8] = (stored["weight_packed"].nibbles() ^ 8).astype(np.uint8)
        return Quantised(codes, I4, stored["weight_scale"].as_bf16, (1, self.group))

    @property
    def form(self) -> Form:
        """Per channel, or kept."""
        return Form(I4, self.group, kept=True) if unchanged() else Form(I4, None)


@dataclass(frozen=True)
class Int8(Fp8Channel):
    """INT8 with a scale for each output."""

    name: ClassVar = "ct-int8"
    summary: ClassVar = "compressed-tensors INT8, a scale for each output"
    type: ClassVar = "int"

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Codes and scales."""
        return (replace(self._codes, dtype=I8, fill=as_they_are), self._scale)

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Code times scale."""
        return replace(super().decoded(stored, outputs, inputs), dtype=I8)

    @property
    def form(self) -> Form:
        """As FP8's would be: no release has got as far."""
        return Form(I8, None)


@dataclass(frozen=True)
class Int4Zeros(Int4):
    """INT4 in groups of inputs, with zero points.

    ``weight_zero_point`` [outputs / 8, groups] holds them, eight of a word along the outputs.
    """

    name: ClassVar = "ct-int4-zeros"
    summary: ClassVar = "compressed-tensors INT4 with zero points (asymmetric)"
    can_be_kept: ClassVar = False
    symmetric: ClassVar = False

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Those of the symmetric one, and the zero points."""
        zeros = TensorKind("weight_zero_point", "I32", lambda o, i: (o // 8, i // self.group),
                     as_they_are)  # fmt: skip
        return (*super().tensors, zeros)

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """(code - zero) times scale; codes of eight bits."""
        words = np.ascontiguousarray(stored["weight_zero_point"].bits.T)
        zeros = Stored(words, "I32").nibbles().T.astype(np.int8)
        each = np.repeat(zeros, self.group, axis=1)[:, :inputs]
        codes = (stored["weight_packed"].nibbles().astype(np.int8) - each).astype(np.int8)
        held = np.ascontiguousarray(codes).view(np.uint8)
        return Quantised(held, I8, stored["weight_scale"].as_bf16, (1, self.group))

    @property
    def form(self) -> Form:
        """Per channel: no release has got as far."""
        return Form(I4, None)


FORMATS = (Fp8Channel, Fp8Tensor, Int4, Int8, Int4Zeros)
