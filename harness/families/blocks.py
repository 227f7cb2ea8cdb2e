"""Blocks: the modules that models are built of, each as the checkpoint has it and as the device
does.

A row of a block names one parameter on the device, the tensors of the checkpoint it is made of in
the order of its rows, their shapes, and what upstream does on the way. Everything else follows
from these rows: what a checkpoint must hold, what a synthetic one is written with, where each row
of a tensor lies on the mesh, which parameters and tensors nobody accounts for.

Sources are vLLM's model files (``model_executor/models/{qwen3_vl,qwen3_moe,qwen3_next,qwen3_5,
qwen3_5_mtp}.py``) and tpu-inference's, releases 0.21 to 0.32; all was measured, too. The
transforms themselves are in :mod:`harness.devices.parameter_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from harness.families.sizes import ModelShape

Shape = tuple[int, ...]
#: The shape of a tensor in a model of some sizes; ``number`` is that of its layer.
ShapeOf = Callable[[ModelShape], Shape]

#: Mesh axes that attention heads, and with them all linear layers, are cut over (tpu-inference
#: ``layers/common/sharding.py``, ``ATTN_HEAD``; the same from 0.21 to 0.32).
HEADS = ("model", "expert", "dcp")
#: Mesh axes that the vocabulary, the intermediate size of experts, and, by expert, experts are cut
#: over (``MLP_TENSOR`` and ``EXPERT``; ``pcp`` from 0.26 on).
TENSOR = ("attn_dp", "attn_dp_expert", "expert", "model", "dcp", "pcp")

_LINEAR, _REORDER, _TILED = "linear", "linear, reorder", "linear, reorder, tile"
_REPLICATED, _WIDENED, _VOCABULARY = "replicate", "widen, replicate", "vocabulary"

#: Where upstream does what: file and function, the same from 0.22 to 0.32.
UPSTREAM: dict[str, str] = {
    "linear": "tpu_inference/layers/vllm/quantization/unquantized.py, "
    "VllmUnquantizedLinearMethod.process_weights_after_loading; placement in configs.py there, "
    "VllmQuantLinearConfig",
    "reorder": "tpu_inference/layers/common/utils.py, reorder_concatenated_tensor_for_sharding",
    "tile": "tpu_inference/layers/vllm/custom_ops/linear.py, VllmQKVParallelLinear._tile_kv",
    "replicate": "tpu_inference/layers/vllm/process_weights/cleanup_sharding.py, "
    "_shard_tensor_to_tpu_replicated",
    "widen": "vllm/model_executor/layers/mamba/gdn, A_log is made as float32 (0.26)",
    "vocabulary": "vllm/model_executor/layers/vocab_parallel_embedding.py, pad_vocab_size; "
    "tpu_inference/layers/vllm/quantization/unquantized.py, VllmUnquantizedEmbeddingMethod",
    "rope": "vllm/model_executor/layers/rotary_embedding, _compute_cos_sin_cache",
    "scale": "vllm/model_executor/layers/attention/attention.py, the scales' buffers",
}


class Cut(StrEnum):
    """Which side of a parameter is divided among devices: its output features, inputs, neither."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    NONE = "replicated"


class Pieces(StrEnum):
    """What the rows of a parameter's tensors are, each piece being cut for itself.

    - ``whole``: each tensor is a piece.
    - ``qkv``: tensors q, k, v; heads of k and v are repeated when there are more shards than
      heads.
    - ``qkv-fused``: one tensor holds q, k and v, of equal size.
    - ``qkvz``: tensors qkv and z of linear attention; the first holds q, k and v.
    - ``rows``: whole, and padded with rows of zeros to a multiple of 64 (the vocabulary).
    """

    WHOLE = "whole"
    QKV = "qkv"
    QKV_FUSED = "qkv-fused"
    QKVZ = "qkvz"
    ROWS = "rows"


@dataclass(frozen=True)
class Row:
    """One parameter of a block.

    Attributes:
        kind: in the words of the field.
        parameter: its name on the device, from the block's module on.
        stored: the tensors it is made of, in the order of its rows: name and shape.
        upstream: where upstream does it, keys of :data:`UPSTREAM`.
        cut: the side that is divided.
        transposed: whether the device holds [inputs, outputs] instead of [outputs, inputs].
        pieces: what the rows are.
        axes: the mesh axes it is divided over.
        widened: whether the device holds f32, whatever the model's dtype is.
        casts: whether bf16 goes to the device by way of f32
            (:class:`harness.devices.parameter_layout.ParameterLayout`).
        fp8: whether FP8 releases store it as codes with block scales.
    """

    kind: str
    parameter: str
    stored: tuple[tuple[str, ShapeOf], ...]
    upstream: str = _REPLICATED
    cut: Cut = Cut.NONE
    transposed: bool = False
    pieces: Pieces = Pieces.WHOLE
    axes: tuple[str, ...] = HEADS
    widened: bool = False
    casts: bool = True
    fp8: bool = False


@dataclass(frozen=True)
class Block:
    """Parameters that come together, below one module; ``experts``: those are a layer's, too."""

    rows: tuple[Row, ...] = ()
    experts: bool = False


def _same(kind: str, name: str, shape: ShapeOf, upstream: str, **options: object) -> Row:
    """A parameter that has its tensor's own name."""
    return Row(kind, name, ((name, shape),), upstream, **options)  # type: ignore[arg-type]


def whole(
    kind: str, name: str, shape: ShapeOf, upstream: str = _REPLICATED, **options: object
) -> Row:
    """A parameter that upstream leaves alone, and copies to every device bit by bit."""
    return _same(kind, name, shape, upstream, casts=False, **options)


def by_outputs(kind: str, name: str, shape: ShapeOf, **options: object) -> Row:
    """A linear layer divided by its output features."""
    return _same(kind, name, shape, _LINEAR, cut=Cut.OUTPUTS, transposed=True, **options)


def by_inputs(kind: str, name: str, shape: ShapeOf, **options: object) -> Row:
    """A linear layer divided by its input features."""
    return _same(kind, name, shape, _LINEAR, cut=Cut.INPUTS, transposed=True, **options)


def _with_bias(row: Callable[..., Row], kind: str, name: str, shape: ShapeOf) -> Iterator[Row]:
    yield row(kind, f"{name}.weight", shape)
    yield row(kind, f"{name}.bias", lambda s: shape(s)[:1])


def norm(kind: str, name: str) -> Row:
    """A norm over the hidden size."""
    return whole(kind, f"{name}.weight", lambda s: (s.hidden,))


EMBEDDING = Block((
    _same(
        "embedding", "embed_tokens.weight", lambda s: (s.vocabulary, s.hidden), _VOCABULARY,
        cut=Cut.OUTPUTS, pieces=Pieces.ROWS, axes=TENSOR,
    ),
))  # fmt: skip
HEAD = Block((
    _same(
        "head", "lm_head.weight", lambda s: (s.vocabulary, s.hidden), _VOCABULARY,
        cut=Cut.OUTPUTS, pieces=Pieces.ROWS, axes=TENSOR,
    ),
))  # fmt: skip
FINAL_NORM = Block((norm("final norm", "norm"),))
LAYER_NORMS = Block((
    norm("layer norms", "input_layernorm"), norm("layer norms", "post_attention_layernorm"),
))  # fmt: skip


#: Norms of q and k: one for the width of a head, or over all heads at once (OLMoE, MiniMax-M2).
OF_A_HEAD: tuple[ShapeOf, ShapeOf] = (lambda s: (s.head_dim,), lambda s: (s.head_dim,))
OVER_HEADS: tuple[ShapeOf, ShapeOf] = (
    lambda s: (s.heads * s.head_dim,), lambda s: (s.kv_heads * s.head_dim,)
)  # fmt: skip


@cache
def attention(
    gated: bool = False,
    *,
    biased: bool = False,
    norms: tuple[ShapeOf, ShapeOf] | None = OF_A_HEAD,
    output: str = "o_proj",
    norm: str = "norm",
) -> Block:
    """Attention of q, k, v and an output.

    Args:
        gated: q_proj carries the output gate, too (Qwen3-Next, Qwen3.5).
        biased: q, k and v have biases.
        norms: the shapes of the norms of q and k; None where there are none.
        output: what the output projection is called.
        norm: what the norms are called, after ``q_`` and ``k_``.
    """
    kind = "attention q, k, v" + (" (with the output gate in q)" if gated else "")
    keys = lambda s: (s.kv_heads * s.head_dim, s.hidden)  # noqa: E731
    shapes: tuple[ShapeOf, ...] = (
        lambda s: ((2 if gated else 1) * s.heads * s.head_dim, s.hidden), keys, keys,
    )  # fmt: skip
    return Block((
        _qkv(kind, "weight", shapes, fp8=True),
        *([_qkv(f"{kind}: biases", "bias", tuple(map(_bias_of, shapes)))] if biased else []),
        by_inputs(
            "attention output", f"{output}.weight", lambda s: (s.hidden, s.heads * s.head_dim),
            fp8=True,
        ),
        *(
            whole("attention q and k norms", f"{letter}_{norm}.weight", shape)
            for letter, shape in zip("qk", norms or (), strict=False)
        ),
    ))  # fmt: skip


def _qkv(kind: str, suffix: str, shapes: tuple[ShapeOf, ...], **options: bool) -> Row:
    return Row(
        kind, f"qkv_proj.{suffix}",
        tuple((f"{letter}_proj.{suffix}", shape)
              for letter, shape in zip("qkv", shapes, strict=True)),
        _TILED, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKV, **options,
    )  # fmt: skip


def _bias_of(shape: ShapeOf) -> ShapeOf:
    return lambda s: shape(s)[:1]


def _mixed(s: ModelShape) -> int:
    return 2 * s.delta.keys + s.delta.values


#: Gated delta net layers (Qwen3-Next, Qwen3.5).
LINEAR_ATTENTION = Block((
    whole(
        "linear attention decay", "A_log", lambda s: (s.delta.value_heads,), _WIDENED, widened=True
    ),
    whole(
        "linear attention convolution", "conv1d.weight",
        lambda s: (_mixed(s), 1, s.delta.conv_kernel),
    ),
    whole("linear attention step bias", "dt_bias", lambda s: (s.delta.value_heads,)),
    Row(
        "linear attention b, a", "in_proj_ba.weight",
        (
            ("in_proj_b.weight", lambda s: (s.delta.value_heads, s.hidden)),
            ("in_proj_a.weight", lambda s: (s.delta.value_heads, s.hidden)),
        ),
        _REORDER, cut=Cut.OUTPUTS, transposed=True,
    ),
    Row(
        "linear attention q, k, v, z", "in_proj_qkvz.weight",
        (
            ("in_proj_qkv.weight", lambda s: (_mixed(s), s.hidden)),
            ("in_proj_z.weight", lambda s: (s.delta.values, s.hidden)),
        ),
        _REORDER, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKVZ, fp8=True,
    ),
    whole("linear attention norm", "norm.weight", lambda s: (s.delta.value_dim,)),
    by_inputs(
        "linear attention output", "out_proj.weight", lambda s: (s.hidden, s.delta.values), fp8=True
    ),
))  # fmt: skip

#: A router that is a linear layer of vLLM's, and one that upstream leaves alone.
ROUTER = Block((
    _same("router", "weight", lambda s: (s.experts, s.hidden), _LINEAR, transposed=True),
))  # fmt: skip
PLAIN_ROUTER = Block((whole("router", "weight", lambda s: (s.experts, s.hidden)),))
EXPERTS = Block(experts=True)
SHARED_EXPERT = Block((
    Row(
        "shared expert gate and up", "gate_up_proj.weight",
        (
            ("gate_proj.weight", lambda s: (s.shared_intermediate, s.hidden)),
            ("up_proj.weight", lambda s: (s.shared_intermediate, s.hidden)),
        ),
        _REORDER, cut=Cut.OUTPUTS, transposed=True, fp8=True,
    ),
    by_inputs(
        "shared expert down", "down_proj.weight", lambda s: (s.hidden, s.shared_intermediate),
        fp8=True,
    ),
))  # fmt: skip
SHARED_EXPERT_GATE = Block((
    whole("shared expert's gate", "weight", lambda s: (1, s.hidden)),
))  # fmt: skip

MTP_FC = Block((
    _same(
        "MTP's fc", "fc.weight", lambda s: (s.hidden, 2 * s.hidden), _LINEAR, cut=Cut.OUTPUTS,
        transposed=True,
    ),
))  # fmt: skip
MTP_NORMS = Block((
    norm("final norm", "norm"),
    norm("MTP's norms", "pre_fc_norm_embedding"), norm("MTP's norms", "pre_fc_norm_hidden"),
))  # fmt: skip

_BY_OUTPUTS = "vision linear layers divided by outputs, and their biases"
_BY_INPUTS = "vision linear layers divided by inputs, and their biases"
VISION_EMBEDDINGS = Block((
    *_with_bias(
        whole, "vision patch embedding", "patch_embed.proj",
        lambda s: (s.vision.hidden, s.vision.channels, s.vision.temporal_patch,
                   s.vision.patch, s.vision.patch),
    ),
    whole(
        "vision position embedding", "pos_embed.weight",
        lambda s: (s.vision.positions, s.vision.hidden),
    ),
))  # fmt: skip


def _fused_qkv(kind: str, name: str, shape: ShapeOf) -> Row:
    return _same(
        kind, name, shape, _REORDER, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKV_FUSED
    )


VISION_BLOCK = Block((
    *_with_bias(whole, "vision norms", "norm1", lambda s: (s.vision.hidden,)),
    *_with_bias(whole, "vision norms", "norm2", lambda s: (s.vision.hidden,)),
    *_with_bias(
        _fused_qkv, "vision q, k, v", "attn.qkv",
        lambda s: (3 * s.vision.hidden, s.vision.hidden),
    ),
    *_with_bias(by_inputs, _BY_INPUTS, "attn.proj", lambda s: (s.vision.hidden, s.vision.hidden)),
    *_with_bias(
        by_outputs, _BY_OUTPUTS, "mlp.linear_fc1",
        lambda s: (s.vision.intermediate, s.vision.hidden),
    ),
    *_with_bias(
        by_inputs, _BY_INPUTS, "mlp.linear_fc2",
        lambda s: (s.vision.hidden, s.vision.intermediate),
    ),
))  # fmt: skip


def merger(norm_width: Callable[[ModelShape], int]) -> Block:
    """What takes the vision tower's patches, several at a time, to the language model's width."""
    kind = "merger and deepstack"
    return Block((
        *_with_bias(whole, f"{kind} norms", "norm", lambda s: (norm_width(s),)),
        *_with_bias(
            by_outputs, f"{kind} fc1", "linear_fc1", lambda s: (s.vision.merged, s.vision.merged)
        ),
        *_with_bias(
            by_inputs, f"{kind} fc2", "linear_fc2", lambda s: (s.hidden, s.vision.merged)
        ),
    ))  # fmt: skip


MERGER = merger(lambda s: s.vision.hidden)
DEEPSTACK_MERGER = merger(lambda s: s.vision.merged)


@dataclass(frozen=True)
class Derived:
    """Buffers that are made by the model's code, from no tensor.

    ``pattern`` is of the name on the device; ``constant`` is the value every element must have,
    as f32; None where the code computes it.
    """

    kind: str
    pattern: str
    upstream: str
    constant: float | None = None


DERIVED: tuple[Derived, ...] = (
    Derived("rope table", r".+\.(?:rotary_emb|rotary_pos_emb)\.cos_sin_cache", "rope"),
    Derived("attention scale", r".+\.attn\._(?:q|k|v|prob)_scale", "scale", constant=1.0),
)
