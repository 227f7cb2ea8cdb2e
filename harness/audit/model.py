"""What a recorded model is made of: a tiny configuration and the names of its tensors.

Hidden size 64, experts 40 wide, 4 of them, 2 layers, unless a model asks for more. 2 · 40 is not
64: vLLM 0.26 guesses a fused tensor's orientation from its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from harness.audit.feeding import ModelSource

D, F, E, LAYERS, TOP_K, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 40, 4, 2, 2, 4, 2, 16, 128

Shape = tuple[int, ...]

GATE, UP, DOWN = (F, D), (F, D), (D, F)


@dataclass(frozen=True)
class Model:
    """A row.

    Attributes:
        architecture: as ``config.json`` and vLLM's registry call it.
        model_type: as transformers calls it.
        config: what is not common to all.
        tensors: name and shape; ``{layer}`` and ``{expert}`` run.
        first_layer: the first layer with experts.
        layers: how many layers there are.
        environment: what the stack needs to build it here.
    """

    architecture: str
    model_type: str
    tensors: dict[str, Shape]
    config: dict[str, Any] = field(default_factory=dict)
    first_layer: int = 0
    layers: int = LAYERS
    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name the row goes by: the architecture, with a word where it has several rows."""
        return " ".join(filter(None, [self.architecture, self.name]))

    def source(self) -> ModelSource:
        """What the recorder builds and feeds."""
        return ModelSource(
            config=self._config(), tensors=tuple(self._expanded()), environment=self.environment
        )

    def _config(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "bfloat16",
            "hidden_size": D,
            "intermediate_size": 2 * F,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
        } | self.config

    def _expanded(self) -> list[tuple[str, Shape]]:
        out = []
        for name, shape in self.tensors.items():
            experts = range(E) if "{expert}" in name else range(1)
            for layer, expert in product(range(self.first_layer, self.layers), experts):
                out.append((name.format(layer=layer, expert=expert), shape))
        return list(dict.fromkeys(out))


def per_expert(
    prefix: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, Shape]:
    """Three matrices an expert: gate, up, down."""
    return {
        f"{prefix}.{{expert}}.{name}.weight": shape
        for name, shape in zip(names, (GATE, UP, DOWN), strict=True)
    }
