"""Sizes of models, as blocks ask for them, and the few of ``config.json`` that decide a layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.base.bounds import MOST_EXPERTS
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

    @property
    def merged(self) -> int:
        """Width of the patches that become one token."""
        return self.hidden * self.merge**2


@dataclass(frozen=True)
class LinearAttentionShape:
    """Sizes of gated delta net layers."""

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
class LatentAttentionShape:
    """Sizes of multi-head latent attention: ranks, and what a head of q, k and v has.

    ``unrotated`` and ``rotated`` are the parts of q and k without and with rotary positions.
    """

    q_rank: int
    kv_rank: int
    unrotated: int
    rotated: int
    value: int


#: For models without a vision tower.
NO_VISION = VisionShape(depth=0, hidden=0, intermediate=0, heads=1, positions=0)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model: D ``hidden``, E ``experts``, F ``intermediate``.

    ``full_attention_interval`` n makes every n-th layer a full attention layer and the others
    linear ones; it is unused where ``linear`` is None. The first ``dense_first`` layers have a
    dense MLP of ``dense_intermediate`` features instead of experts, and so have all but every
    ``sparse_step``-th layer. ``qk_norms``: whether q and k have norms, in a family where only
    some models have. ``attention_layers`` lists the full attention layers of a model whose
    config.json does. ``full_head_dim`` and ``full_kv_heads`` are those layers' own, where they have
    such.
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
    vision: VisionShape = NO_VISION
    shared_intermediate: int = 0
    linear: LinearAttentionShape | None = None
    full_attention_interval: int = 4
    dense_first: int = 0
    sparse_step: int = 1
    dense_intermediate: int = 0
    qk_norms: bool = False
    latent: LatentAttentionShape | None = None
    short_kernel: int = 0
    attention_layers: tuple[int, ...] = ()
    full_head_dim: int = 0
    full_kv_heads: int = 0

    def has_experts(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` has experts rather than a dense MLP."""
        return layer >= self.dense_first and (layer + 1) % self.sparse_step == 0

    @property
    def delta(self) -> LinearAttentionShape:
        """The sizes of linear attention, in a model that has it."""
        if self.linear is None:
            raise ValueError("a model without linear attention")
        return self.linear

    @property
    def mla(self) -> LatentAttentionShape:
        """The sizes of latent attention, in a model that has it."""
        if self.latent is None:
            raise ValueError("a model without latent attention")
        return self.latent

    def is_full_attention(self, layer: int) -> bool:
        """Whether ``layer`` holds q/k/v/o attention rather than linear attention."""
        if self.attention_layers:
            return layer in self.attention_layers
        return self.linear is None or (layer + 1) % self.full_attention_interval == 0


#: Ten times those of the deepest published model.
_MOST_LAYERS = 1024

#: A vision tower and a language model that load in about a second.
TINY_VISION = VisionShape(depth=2, hidden=64, intermediate=96, heads=8, positions=16)
#: Not square: F != D and 2F != D, because vLLM 0.26 guesses a fused tensor's orientation from its
#: shape (``routed_experts.load_weights``) and a square hides a transpose.
TINY = ModelShape(
    hidden=128, layers=2, experts=8, intermediate=48, top_k=2, heads=8, kv_heads=2, head_dim=32,
    vocabulary=512,
)  # fmt: skip
#: The vision tower of the published Qwen models.
QWEN_VISION = VisionShape(depth=27, hidden=1152, intermediate=4304, heads=16, positions=2304)

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


def named_shapes(tiny: ModelShape, published: dict[str, ModelShape]) -> dict[str, ModelShape]:
    """What a user may ask for: ``tiny``, ``tiny:`` and a variant, ``published:`` and a model."""
    known = {"tiny": tiny} | {f"tiny:{name}": _variant(tiny, name) for name in _VARIANTS}
    return known | {f"published:{name}": shape for name, shape in published.items()}


def resized(shape: ModelShape, layers: int | None, experts: int | None) -> ModelShape:
    """The shape with other counts, where they are given.

    Raises:
        BadInput: a count that no router can work with.
    """
    shape = replace(
        shape,
        layers=shape.layers if layers is None else layers,
        experts=shape.experts if experts is None else experts,
    )
    if not 1 <= shape.layers <= _MOST_LAYERS:
        raise BadInput(
            f"{shape.layers} layers",
            where="--layers",
            expected=f"1 to {_MOST_LAYERS}",
            hint="--layers 1",
        )
    if not shape.top_k <= shape.experts <= MOST_EXPERTS:
        raise BadInput(
            f"{shape.experts} experts with {shape.top_k} chosen per token",
            where="--experts",
            expected=f"{shape.top_k}, the router's top-k, to {MOST_EXPERTS}",
            hint=f"--experts {shape.top_k}",
        )
    return shape


def _variant(tiny: ModelShape, name: str) -> ModelShape:
    shape = replace(tiny, **_VARIANTS[name])
    if tiny.heads * tiny.head_dim == tiny.hidden:  # what nobody writes stays so
        shape = replace(shape, head_dim=shape.hidden // shape.heads)
    if name == "blocks" and shape.shared_intermediate:
        return replace(shape, shared_intermediate=256)
    return shape
