"""Model shapes: tiny ones for seconds-long runs, and the published ones.

Sources of the published figures: the ``config.json`` files of Qwen/Qwen3-VL-30B-A3B-Instruct,
Qwen/Qwen3-VL-235B-A22B-Instruct, Qwen/Qwen3.5-35B-A3B and Qwen/Qwen3.5-397B-A17B.

The tiny shape is not square: F != D and 2F != D, because vLLM 0.26 guesses a fused tensor's
orientation from its shape (``routed_experts.load_weights``) and a square hides a transpose. One
that is square is there on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.base.errors import BadInput


@dataclass(frozen=True)
class VisionShape:
    """Sizes of the vision tower; ``deepstack`` are the block indexes tapped for Qwen3-VL."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    positions: int
    deepstack: tuple[int, ...] = ()
    patch: int = 16
    temporal_patch: int = 2
    channels: int = 3
    merge: int = 2


@dataclass(frozen=True)
class LinearAttentionShape:
    """Sizes of Qwen3.5's gated delta net layers."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all value heads together."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model: D ``hidden``, E ``experts``, F ``intermediate``.

    ``full_attention_interval`` n makes every n-th layer a full attention layer and the others
    linear ones; it is unused where ``linear`` is None.
    """

    hidden: int
    layers: int
    experts: int
    intermediate: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    vision: VisionShape
    shared_intermediate: int = 0
    linear: LinearAttentionShape | None = None
    full_attention_interval: int = 4

    def is_full_attention(self, layer: int) -> bool:
        """Whether ``layer`` holds q/k/v/o attention rather than linear attention."""
        return self.linear is None or (layer + 1) % self.full_attention_interval == 0


_TINY_VISION = VisionShape(depth=2, hidden=64, intermediate=96, heads=8, positions=16)
_TINY = ModelShape(
    hidden=128, layers=2, experts=8, intermediate=48, top_k=2, heads=8, kv_heads=2, head_dim=32,
    vocabulary=512, vision=replace(_TINY_VISION, deepstack=(0, 1)),
)  # fmt: skip
#: Sizes that are padded or do not divide: a vocabulary that is no multiple of 64, experts and
#: their width of no even number of devices. Sizes of several whole blocks of 128. And experts whose
#: fused gate and up projection is square, so that nothing but its name tells its orientation.
_VARIANTS: dict[str, dict[str, Any]] = {
    "vocabulary": {"vocabulary": 500},
    "experts": {"experts": 6},
    "intermediate": {"intermediate": 50},
    "square": {"hidden": 64, "intermediate": 32},
    "blocks": {"hidden": 256, "intermediate": 512, "head_dim": 128},
}
_TINY_QWEN3_5 = replace(
    _TINY, vision=_TINY_VISION, shared_intermediate=80, full_attention_interval=2,
    linear=LinearAttentionShape(key_heads=8, value_heads=16, key_dim=16, value_dim=16),
)  # fmt: skip

_VISION = VisionShape(depth=27, hidden=1152, intermediate=4304, heads=16, positions=2304)
_QWEN3_VL_VISION = replace(_VISION, deepstack=(8, 16, 24))
_QWEN3_5_LINEAR = LinearAttentionShape(key_heads=16, value_heads=32, key_dim=128, value_dim=128)

_QWEN3_VL: dict[str, ModelShape] = {
    "qwen3-vl-30b-a3b": ModelShape(
        hidden=2048, layers=48, experts=128, intermediate=768, top_k=8, heads=32, kv_heads=4,
        head_dim=128, vocabulary=151936, vision=_QWEN3_VL_VISION,
    ),
    "qwen3-vl-235b-a22b": ModelShape(
        hidden=4096, layers=94, experts=128, intermediate=1536, top_k=8, heads=64, kv_heads=4,
        head_dim=128, vocabulary=151936, vision=_QWEN3_VL_VISION,
    ),
}  # fmt: skip
_QWEN3_5: dict[str, ModelShape] = {
    "qwen3.5-35b-a3b": ModelShape(
        hidden=2048, layers=40, experts=256, intermediate=512, top_k=8, heads=16, kv_heads=2,
        head_dim=256, vocabulary=248320, vision=_VISION, shared_intermediate=512,
        linear=_QWEN3_5_LINEAR,
    ),
    "qwen3.5-397b-a17b": ModelShape(
        hidden=4096, layers=60, experts=512, intermediate=1024, top_k=10, heads=32, kv_heads=2,
        head_dim=256, vocabulary=248320, vision=_VISION, shared_intermediate=1024,
        linear=replace(_QWEN3_5_LINEAR, value_heads=64),
    ),
}  # fmt: skip

_TINY_OF = {"qwen3-vl-moe": _TINY, "qwen3.5-moe": _TINY_QWEN3_5}
_PUBLISHED_OF = {"qwen3-vl-moe": _QWEN3_VL, "qwen3.5-moe": _QWEN3_5}


def resolve_shape(
    model: str, shapes: str, *, layers: int | None = None, experts: int | None = None
) -> ModelShape:
    """The shape of that name, with layers and experts overridden.

    Args:
        model: the main model's family, ``qwen3-vl-moe`` or ``qwen3.5-moe``.
        shapes: ``tiny``; ``tiny:`` and the size that is uneven, ``vocabulary``, ``experts`` or
            ``intermediate``, or ``blocks``, or ``square`` (2F = D); or ``published:`` and one of
            the models named above.
        layers: number of decoder layers to write instead of the shape's own.
        experts: number of experts a layer to write instead of the shape's own.

    Raises:
        BadInput: an unknown shape, or a count that no router can work with.
    """
    tiny = _TINY_OF[model]
    known = {"tiny": tiny} | {f"tiny:{name}": _variant(tiny, name) for name in _VARIANTS}
    known |= {f"published:{name}": shape for name, shape in _PUBLISHED_OF[model].items()}
    if shapes not in known:
        raise BadInput(
            f"unknown shapes {shapes!r} for {model}",
            where="--shapes",
            expected="one of " + ", ".join(known),
            hint="--shapes tiny",
        )
    shape = known[shapes]
    shape = replace(
        shape,
        layers=shape.layers if layers is None else layers,
        experts=shape.experts if experts is None else experts,
    )
    _require_usable(shape)
    return shape


def _variant(tiny: ModelShape, name: str) -> ModelShape:
    shape = replace(tiny, **_VARIANTS[name])
    if name == "blocks" and shape.shared_intermediate:
        return replace(shape, shared_intermediate=256)
    return shape


def _require_usable(shape: ModelShape) -> None:
    if shape.layers < 1:
        raise BadInput(
            f"{shape.layers} layers", where="--layers", expected="at least 1", hint="--layers 1"
        )
    if shape.experts < shape.top_k:
        raise BadInput(
            f"{shape.experts} experts with {shape.top_k} chosen per token",
            where="--experts",
            expected=f"at least {shape.top_k}, the router's top-k",
            hint=f"--experts {shape.top_k}",
        )
