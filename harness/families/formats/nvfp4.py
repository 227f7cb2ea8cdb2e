"""NVFP4, as NVIDIA's ModelOpt writes it.

``quant_method: modelopt``, ``quant_algo: NVFP4`` (NVIDIA, "Introducing NVFP4"; ModelOpt's unified
checkpoint). ``weight`` [outputs, inputs / 2] holds two codes of E2M1 a byte, the lower bits first;
``weight_scale`` [outputs, inputs / 16] an e4m3 scale for each block of 16 inputs and
``weight_scale_2`` one f32 scale for the matrix: a value is code times both. ``input_scale`` is of
activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    f32_scales,
    masked,
    unchanged,
)

_GROUP = 16
#: Where ModelOpt up to 0.29 says how it quantised, in the place of config.json.
MODELOPT_FILE = "hf_quant_config.json"


@dataclass(frozen=True)
class Nvfp4(WeightFormat):
    """NVFP4 by ModelOpt."""

    name: ClassVar = "nvfp4"
    can_be_kept: ClassVar = True
    summary: ClassVar = "NVFP4 (ModelOpt): FP4, a scale for each 16 inputs and one for the matrix"

    @property
    def tensors(self) -> tuple[TensorKind, ...]:
        """Packed codes, the two scales, and the one of activations."""
        return (
            TensorKind("weight", "U8", lambda o, i: (o, i // 2), as_they_are),
            TensorKind("weight_scale", "F8_E4M3", lambda o, i: (o, i // _GROUP),
                 masked(0x3838, 0x0F0F)),
            TensorKind("weight_scale_2", "F32", lambda o, i: (), f32_scales, left=True),
            TensorKind("input_scale", "F32", lambda o, i: (), f32_scales, weighs=False,
                       optional=True),
        )  # fmt: skip

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """ModelOpt's NVFP4, in groups of 16; as config.json or a file of its own announces it."""
        if isinstance(own := quantization.get("quantization"), dict):
            quantization = {"quant_method": "modelopt"} | own
        method = quantization.get("quant_method") in ("modelopt", "modelopt_fp4")
        if not method or quantization.get("quant_algo") != "NVFP4":
            return None
        groups = quantization.get("config_groups")
        said = groups.get("group_0") if isinstance(groups, dict) else None
        weights = said.get("weights") if isinstance(said, dict) else None
        size = weights.get("group_size") if isinstance(weights, dict) else _GROUP
        return cls() if size == _GROUP == quantization.get("group_size", _GROUP) else None

    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """As ModelOpt has it in config.json."""
        each = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": _GROUP}
        return {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "producer": {"name": "modelopt", "version": "0.37.0"},
            "group_size": _GROUP,
            "ignore": list(plain),
            "config_groups": {
                "group_0": {"input_activations": each, "weights": each, "targets": ["Linear"]}
            },
        }

    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """Code times both scales, multiplied first."""
        both = stored["weight_scale"].f32 * stored["weight_scale_2"].f32
        return Quantised(stored["weight"].nibbles(), F4_E2M1, both, (1, _GROUP))

    def misread(
        self, stored: Mapping[str, Stored], outputs: int, inputs: int
    ) -> Iterator[tuple[str, str, Quantised]]:
        """One of the two scales is left out, or the matrix's is divided by."""
        right = self.decoded(stored, outputs, inputs)
        blocks, whole = stored["weight_scale"].f32, stored["weight_scale_2"].f32
        yield "scale", "the matrix's own scale is lost", right.with_scales(blocks)
        alone = np.broadcast_to(whole, blocks.shape).astype(np.float32)
        yield "scale", "the blocks' scales are lost", right.with_scales(alone)
        yield "scale", "the matrix's own scale is divided by", right.with_scales(blocks / whole)

    @property
    def form(self) -> Form:
        """Per channel, or kept."""
        return Form(F4_E2M1, _GROUP, kept=True) if unchanged() else Form(F4_E2M1, None)


FORMATS = (Nvfp4,)
