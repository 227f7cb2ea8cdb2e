"""GPTQ: INT4 in groups of inputs, as AutoGPTQ and GPTQModel write it.

``quant_method: gptq`` (ModelCloud/GPTQModel, ``nn_modules/qlinear``). Matrices lie
[inputs, outputs]. ``qweight`` [inputs / 8, outputs] holds words of 32 bits, each eight codes along
the inputs, the first in the lowest bits; ``qzeros`` [groups, outputs / 8] the zero points, each
less one, packed along the outputs; ``scales`` [groups, outputs] f16; ``g_idx`` [inputs] the group
of each input, which is in order where ``desc_act`` is false. A value is (code - zero) times scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness.base.bits import I8
from harness.checkpoint.grids import Quantised
from harness.families.formats.format import (
    Form,
    Stored,
    TensorKind,
    WeightFormat,
    as_they_are,
    masked,
)


@dataclass(frozen=True)
class Gptq(WeightFormat):
    """GPTQ, without reordered inputs."""

    name: ClassVar = "gptq"
    summary: ClassVar = "GPTQ: INT4 with zero points, a scale for each group of inputs"
    group: int = 128

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Packed codes and zero points, scales, and the group of each input."""
        return (
            TensorKind("qweight", "I32", lambda o, i: (i // 8, o), as_they_are),
            TensorKind("qzeros", "I32", lambda o, i: (i // self.group, o // 8), as_they_are),
            TensorKind("scales", "F16", lambda o, i: (i // self.group, o), masked(0x2000, 0x07FF)),
            TensorKind(
                "g_idx", "I32", lambda o, i: (i,), masked(0, 0), weighs=False, optional=True
            ),
        )

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """Four bits, inputs in their order."""
        said, size = quantization.get("quant_method"), quantization.get("group_size")
        if said != "gptq" or quantization.get("bits") != 4 or quantization.get("desc_act"):
            return None
        return cls(size) if isinstance(size, int) and size > 0 else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As GPTQModel has it; modules that are not quantised are named by what is absent."""
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": self.group,
            "desc_act": False,
            "sym": True,
            "modules_in_block_to_quantize": ["mlp.experts"],
        }

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Codes less their zero points, of eight bits."""
        words = Stored(np.ascontiguousarray(stored["qweight"].bits.T), "I32")
        zeros = stored["qzeros"].nibbles().T.astype(np.int8) + 1
        each = np.repeat(zeros, self.group, axis=1)[:, :inputs]
        codes = np.ascontiguousarray((words.nibbles() - each).astype(np.int8)).view(np.uint8)
        scales = np.ascontiguousarray(stored["scales"].as_bf16.T)
        return Quantised(codes, I8, scales, (1, self.group))

    @property
    def form(self) -> Form:
        """What AWQ's is: no release has got as far."""
        return Form(I8, self.group, kept=True)


FORMATS = (Gptq,)
