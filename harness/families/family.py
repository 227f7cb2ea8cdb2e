"""Where each model family keeps its experts, as published.

A family is data: which architecture, and for each part of the model the names and the storage of
its expert tensors. Sources: the index files of the published checkpoints; for the MTP layouts
also NeMo Automodel #2778 (per expert, Qwen3.5) and vLLM #42716 (fused, Qwen3.6).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Projection(StrEnum):
    """One of an expert's three matrices; ``gate`` is w1, ``up`` is w3, ``down`` is w2."""

    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


class Part(StrEnum):
    """The part of the stack a layer belongs to: the target model or the draft model."""

    DECODER = "decoder"
    MTP = "mtp"


class Storage(StrEnum):
    """How a layer's experts stand in the file. E experts, D hidden, F intermediate.

    - ``fused``: ``gate_up_proj`` [E, 2F, D] (gate rows first), ``down_proj`` [E, D, F].
    - ``fused-transposed``: ``gate_up_proj`` [E, D, 2F], ``down_proj`` [E, F, D].
    - ``per-expert``: ``{e}.gate_proj.weight`` and ``{e}.up_proj.weight`` [F, D],
      ``{e}.down_proj.weight`` [D, F].
    """

    FUSED = "fused"
    FUSED_TRANSPOSED = "fused-transposed"
    PER_EXPERT = "per-expert"


@dataclass(frozen=True)
class ExpertNaming:
    """The expert tensors of one part: ``prefix`` holds ``{layer}``, ``storage`` how they lie."""

    part: Part
    prefix: str
    storage: Storage

    def fused_name(self, layer: int, tensor: str) -> str:
        """The name of a layer's fused tensor; ``tensor`` is ``gate_up_proj`` or ``down_proj``."""
        return f"{self.prefix.format(layer=layer)}.{tensor}"

    def expert_name(self, layer: int, expert: int, projection: Projection) -> str:
        """The name of one expert's own tensor."""
        return f"{self.prefix.format(layer=layer)}.{expert}.{projection}.weight"

    def layers_in(self, names: Iterable[str]) -> tuple[int, ...]:
        """The layers, ascending, for which ``names`` holds any expert tensor of this naming."""
        before, after = self.prefix.split("{layer}")
        tensor = (
            r"[0-9]+\.(gate|up|down)_proj\.weight"
            if self.storage is Storage.PER_EXPERT
            else r"(gate_up|down)_proj"
        )
        pattern = re.compile(rf"{re.escape(before)}([0-9]+){re.escape(after)}\.{tensor}")
        return tuple(sorted({int(m[1]) for name in names if (m := pattern.fullmatch(name))}))


@dataclass(frozen=True)
class Family:
    """One model family: its architecture and every published way to store its experts."""

    name: str
    architecture: str
    namings: tuple[ExpertNaming, ...]
    examples: tuple[str, ...]

    @property
    def fp8_namings(self) -> tuple[ExpertNaming, ...]:
        """Those of its FP8 releases: every expert's matrices are tensors of their own."""
        prefixes = {naming.part: naming.prefix for naming in self.namings}
        return tuple(
            ExpertNaming(part, prefix, Storage.PER_EXPERT) for part, prefix in prefixes.items()
        )


_DECODER = "model.language_model.layers.{layer}.mlp.experts"
_MTP = "mtp.layers.{layer}.mlp.experts"

QWEN3_VL_MOE = Family(
    name="qwen3-vl-moe",
    architecture="Qwen3VLMoeForConditionalGeneration",
    namings=(ExpertNaming(Part.DECODER, _DECODER, Storage.FUSED_TRANSPOSED),),
    examples=("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
)
QWEN3_5_MOE = Family(
    name="qwen3.5-moe",
    architecture="Qwen3_5MoeForConditionalGeneration",
    namings=(
        ExpertNaming(Part.DECODER, _DECODER, Storage.FUSED),
        ExpertNaming(Part.MTP, _MTP, Storage.PER_EXPERT),
        ExpertNaming(Part.MTP, _MTP, Storage.FUSED),
    ),
    examples=("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B"),
)

FAMILIES: tuple[Family, ...] = (QWEN3_VL_MOE, QWEN3_5_MOE)


def family_of_architecture(architecture: str) -> Family | None:
    """The family whose ``config.json`` names ``architecture``, or None."""
    return next((f for f in FAMILIES if f.architecture == architecture), None)
