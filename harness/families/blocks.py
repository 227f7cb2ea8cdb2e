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

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

from harness.families.sizes import ModelShape
from harness.families.storage import Projection

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
_FLOAT = "float, replicate"
_OF_EXPERTS = "expert-bias"

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
    "float": "vllm/model_executor/models, where the router or its bias is made: glm4_moe.py, "
    "ernie45_moe.py, lfm2_moe.py, deepseek_v2.py, minimax_m2.py",
    "expert-bias": "tpu_inference/layers/common/process_weights/moe_weights.py, "
    "process_moe_weights and _get_moe_weight_shardings",
    "vocabulary": "vllm/model_executor/layers/vocab_parallel_embedding.py, pad_vocab_size; "
    "tpu_inference/layers/vllm/quantization/unquantized.py, VllmUnquantizedEmbeddingMethod",
    "own": "tpu_inference/models/jax/utils/weight_utils.py, JaxAutoWeightsLoader and "
    "load_nnx_param_from_reshaped_torch; placement where the model makes the parameter",
    "rope": "vllm/model_executor/layers/rotary_embedding, _compute_cos_sin_cache",
    "gemma4": "vllm/model_executor/models/gemma4.py, the buffers root_size and normalizer",
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
    - ``qkv-rotary``: the same, and of each head of q and k the even rows come first.
    - ``qkv-fused``: one tensor holds q, k and v, of equal size.
    - ``thirds``: one tensor holds three parts of equal size.
    - ``qkvz``: tensors qkv and z of linear attention; the first holds q, k and v.
    - ``rows``: whole, and padded with rows of zeros to a multiple of 64 (the vocabulary).
    - ``alternating``: of the biases of experts' gate and up, [E, 2F], every second number is one's.
    - ``heads``: one tensor of heads; each is cut for itself where the devices do not divide them.
    """

    WHOLE = "whole"
    QKV = "qkv"
    QKV_ROTARY = "qkv-rotary"
    QKV_FUSED = "qkv-fused"
    THIRDS = "thirds"
    QKVZ = "qkvz"
    ROWS = "rows"
    ALTERNATING = "alternating"
    HEADS = "heads"


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
        stored_as: the safetensors dtype that publishers store it in, where the model's is BF16.
        exchanged: whether the device holds the tensor's first two axes the other way round.
        squeezed: whether the device lacks the tensor's first axis, which is of size 1.
        left_alone_before: releases of vLLM before this one make the linear layer without a
            quantisation config, and tpu-inference leaves those as they are, on every device.
        copies: further names on the device, where upstream holds it under several.
        biases: the experts' matrices whose biases it holds, if any, [E, outputs] in the checkpoint,
            those of several in turn: they lie as the matrices' outputs do, zeros between them, and
            are f32.
        of_heads: its outputs, or inputs where these are divided, are those of heads, which
            tpu-inference's own models hold as an axis: [inputs, heads, width] or [heads, width,
            outputs].
        own: its rows in those models, where they do not follow from it
            (:func:`harness.families.own_models.own_rows`).
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
    stored_as: str = "BF16"
    exchanged: bool = False
    squeezed: bool = False
    left_alone_before: tuple[int, ...] = ()
    copies: tuple[str, ...] = ()
    biases: tuple[Projection, ...] = ()
    of_heads: bool = False
    own: tuple[Row, ...] = ()


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


def called(parameter: str, row: Row) -> Block:
    """A row whose parameter has a name of its own on the device."""
    return Block((replace(row, parameter=parameter),))


def norm(kind: str, name: str) -> Row:
    """A norm over the hidden size."""
    return whole(kind, f"{name}.weight", lambda s: (s.hidden,))


def vocabulary(kind: str, name: str) -> Row:
    """A parameter of a row for each word of the vocabulary."""
    return _same(
        kind, name, lambda s: (s.vocabulary, s.hidden), _VOCABULARY,
        cut=Cut.OUTPUTS, pieces=Pieces.ROWS, axes=TENSOR,
    )  # fmt: skip


EMBEDDING = Block((vocabulary("embedding", "embed_tokens.weight"),))
HEAD = Block((vocabulary("head", "lm_head.weight"),))
FINAL_NORM = Block((norm("final norm", "norm"),))
QK_NORMS = Block((
    whole("attention q and k norms", "q_norm.weight", lambda s: (s.head_dim,)),
    whole("attention q and k norms", "k_norm.weight", lambda s: (s.head_dim,)),
))  # fmt: skip
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
    rotary: bool = False,
    output_biased: bool = False,
    sinks: bool = False,
    width: Callable[[ModelShape], int] = lambda s: s.head_dim,
    kv_heads: Callable[[ModelShape], int] = lambda s: s.kv_heads,
    keys_are_values: bool = False,
) -> Block:
    """Attention of q, k, v and an output.

    Args:
        gated: q_proj carries the output gate, too (Qwen3-Next, Qwen3.5).
        biased: q, k and v have biases.
        norms: the shapes of the norms of q and k; None where there are none.
        output: what the output projection is called.
        norm: what the norms are called, after ``q_`` and ``k_``.
        rotary: upstream sorts the rows of each head of q and k, even ones first (Llama-4).
        output_biased: the output has a bias.
        sinks: each head has a number that takes part in its softmax (gpt-oss).
        width: of a head.
        kv_heads: how many heads k and v have.
        keys_are_values: there is no v: k is both (Gemma-4's full attention).
    """
    kind = "attention q, k, v" + (" (with the output gate in q)" if gated else "")
    keys = lambda s: (kv_heads(s) * width(s), s.hidden)  # noqa: E731
    shapes: tuple[ShapeOf, ...] = (
        lambda s: ((2 if gated else 1) * s.heads * width(s), s.hidden), keys, keys,
    )  # fmt: skip
    return Block((
        _qkv(
            kind, "weight", shapes, Pieces.QKV_ROTARY if rotary else Pieces.QKV,
            "qkk" if keys_are_values else "qkv",
        ),
        *([_qkv(f"{kind}: biases", "bias", tuple(map(_bias_of, shapes)))] if biased else []),
        by_inputs(
            "attention output", f"{output}.weight", lambda s: (s.hidden, s.heads * width(s)),
            fp8=True, of_heads=True,
        ),
        *([by_inputs("attention output: bias", f"{output}.bias", lambda s: (s.hidden,))]
          if output_biased else []),
        *([whole("attention sinks", "sinks", lambda s: (s.heads,))] if sinks else []),
        *(
            whole("attention q and k norms", f"{letter}_{norm}.weight", shape)
            for letter, shape in zip("qk", norms or (), strict=False)
        ),
    ))  # fmt: skip


def _qkv(
    kind: str,
    suffix: str,
    shapes: tuple[ShapeOf, ...],
    pieces: Pieces = Pieces.QKV,
    letters: str = "qkv",
) -> Row:
    return Row(
        kind, f"qkv_proj.{suffix}",
        tuple((f"{letter}_proj.{suffix}", shape)
              for letter, shape in zip(letters, shapes, strict=True)),
        _TILED, cut=Cut.OUTPUTS, transposed=True, pieces=pieces, fp8=suffix == "weight",
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

#: The same of Qwen3-Next, which stores q, k, v and z of each key head side by side, and b and a.
INTERLEAVED_LINEAR_ATTENTION = Block((
    *(row for row in LINEAR_ATTENTION.rows if not row.parameter.startswith("in_proj")),
    by_outputs(
        "linear attention b, a, by key heads", "in_proj_ba.weight",
        lambda s: (2 * s.delta.value_heads, s.hidden),
    ),
    by_outputs(
        "linear attention q, k, v, z, by key heads", "in_proj_qkvz.weight",
        lambda s: (2 * s.delta.keys + 2 * s.delta.values, s.hidden), fp8=True,
    ),
))  # fmt: skip


#: The first release seen whose short convolutions get a quantisation config.
_CONFIGURED = (0, 32)
#: The gated short convolution of LFM2, its module ``conv``, which vLLM calls ``short_conv``.
SHORT_CONVOLUTION = Block((
    Row(
        "short convolution b, c, x", "short_conv.in_proj.weight",
        (("conv.in_proj.weight", lambda s: (3 * s.hidden, s.hidden)),),
        _REORDER, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.THIRDS,
        left_alone_before=_CONFIGURED,
    ),
    Row(
        "short convolution", "short_conv.conv.weight",
        (("conv.conv.weight", lambda s: (s.hidden, 1, s.short_kernel)),), casts=False,
    ),
    Row(
        "short convolution output", "short_conv.out_proj.weight",
        (("conv.out_proj.weight", lambda s: (s.hidden, s.hidden)),),
        _LINEAR, cut=Cut.INPUTS, transposed=True, left_alone_before=_CONFIGURED,
    ),
))  # fmt: skip


def _replicated(kind: str, name: str, shape: ShapeOf) -> Row:
    """A linear layer that every device has whole."""
    return _same(kind, name, shape, _LINEAR, transposed=True, fp8=True)


#: Multi-head latent attention (DeepSeek-V3), with ``VLLM_MLA_DISABLE=1``: as it is stored.
LATENT_ATTENTION = Block((
    _replicated("latent attention q a", "q_a_proj.weight", lambda s: (s.mla.q_rank, s.hidden)),
    whole("latent attention norms", "q_a_layernorm.weight", lambda s: (s.mla.q_rank,)),
    by_outputs(
        "latent attention q b", "q_b_proj.weight",
        lambda s: (s.heads * (s.mla.unrotated + s.mla.rotated), s.mla.q_rank), fp8=True,
    ),
    _replicated(
        "latent attention kv a", "kv_a_proj_with_mqa.weight",
        lambda s: (s.mla.kv_rank + s.mla.rotated, s.hidden),
    ),
    whole("latent attention norms", "kv_a_layernorm.weight", lambda s: (s.mla.kv_rank,)),
    by_outputs(
        "latent attention kv b", "kv_b_proj.weight",
        lambda s: (s.heads * (s.mla.unrotated + s.mla.value), s.mla.kv_rank), fp8=True,
    ),
    by_inputs(
        "attention output", "o_proj.weight", lambda s: (s.hidden, s.heads * s.mla.value), fp8=True
    ),
))  # fmt: skip

#: A router that is a linear layer of vLLM's, and one that upstream leaves alone.
ROUTER = Block((
    _same("router", "weight", lambda s: (s.experts, s.hidden), _LINEAR, transposed=True),
))  # fmt: skip
PLAIN_ROUTER = Block((whole("router", "weight", lambda s: (s.experts, s.hidden)),))
#: A router that is made as float32, whatever the model's dtype is, and stored so.
FLOAT_ROUTER = Block((
    whole(
        "router", "weight", lambda s: (s.experts, s.hidden), _FLOAT, widened=True, stored_as="F32"
    ),
))  # fmt: skip
#: A router that is made as float32 and stored in the model's dtype.
WIDENED_ROUTER = Block((
    whole("router", "weight", lambda s: (s.experts, s.hidden), _FLOAT, widened=True),
))  # fmt: skip
#: A router that upstream leaves alone, and its bias.
BIASED_ROUTER = Block((
    *PLAIN_ROUTER.rows, whole("router's bias", "bias", lambda s: (s.experts,)),
))  # fmt: skip
EXPERTS = Block(experts=True)
#: Biases of fused experts, those of gate and up in turn.
ALTERNATING_EXPERT_BIASES = Block((
    Row(
        "experts' gate and up: biases", "w13_bias",
        (("gate_up_proj_bias", lambda s: (s.experts, 2 * s.intermediate)),), _OF_EXPERTS,
        cut=Cut.OUTPUTS, pieces=Pieces.ALTERNATING, axes=TENSOR,
        biases=(Projection.GATE, Projection.UP),
    ),
    Row(
        "experts' down: biases", "w2_bias",
        (("down_proj_bias", lambda s: (s.experts, s.hidden)),), _OF_EXPERTS,
        axes=TENSOR, biases=(Projection.DOWN,),
    ),
))  # fmt: skip


@cache
def correction_bias(parameter: str, stored: str = "", squeezed: bool = False) -> Block:
    """What is added to an expert's score before the best are chosen, float32 in the file, too.

    It is a parameter of the layer's module and again of its ``experts``, which are handed it.

    Args:
        parameter: its name on the device, from the module on that ``experts`` is in.
        stored: its name in the checkpoint, if that is another.
        squeezed: it is stored as [1, E].
    """
    return Block((
        Row(
            "router's correction bias", parameter,
            ((stored or parameter, lambda s: (1, s.experts) if squeezed else (s.experts,)),),
            _FLOAT, widened=True, casts=False, stored_as="F32", squeezed=squeezed,
            copies=("experts.e_score_correction_bias",),
        ),
    ))  # fmt: skip


@cache
def mlp(
    kind: str,
    width: Callable[[ModelShape], int],
    stored: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    device: tuple[str, str] = ("gate_up_proj", "down_proj"),
) -> Block:
    """A gated MLP: gate and up, which are one parameter on the device, and down.

    Args:
        kind: whose it is.
        width: its intermediate size.
        stored: what gate, up and down are called in the checkpoint.
        device: what gate and up together, and down, are called on the device.
    """
    gate, up, down = stored
    inner = lambda s: (width(s), s.hidden)  # noqa: E731
    return Block((
        Row(
            f"{kind} gate and up", f"{device[0]}.weight",
            ((f"{gate}.weight", inner), (f"{up}.weight", inner)),
            _REORDER, cut=Cut.OUTPUTS, transposed=True, fp8=True,
        ),
        Row(
            f"{kind} down", f"{device[1]}.weight",
            ((f"{down}.weight", lambda s: (s.hidden, width(s))),),
            _LINEAR, cut=Cut.INPUTS, transposed=True, fp8=True,
        ),
    ))  # fmt: skip


SHARED_EXPERT = mlp("shared expert", lambda s: s.shared_intermediate)
#: Of layers without experts.
DENSE_MLP = mlp("dense MLP", lambda s: s.dense_intermediate)
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


#: Parameters that vLLM makes with a default of their own, for scales that a quantised release may
#: bring: below zero they count as absent (``layers/quantization/kv_cache.py``, and
#: ``compressed_tensors.py``, ``CompressedTensorsKVCacheMethod``; 0.26 and 0.32).
DEFAULTED = re.compile(r".+\.attn\.(?:q|k|v|prob)_(?:scale|zero_point)")

DERIVED: tuple[Derived, ...] = (
    Derived("rope table", r".+\.(?:rotary_emb|rotary_pos_emb)\.cos_sin_cache", "rope"),
    Derived("rope frequencies", r".+\.rotary_emb\.(?:original_)?inv_freq", "rope"),
    Derived("scales of Gemma-4", r".+\.(?:router\.root_size|normalizer)", "gemma4"),
    Derived("attention scale", r".+\.attn\._(?:q|k|v|prob)_scale", "scale", constant=1.0),
)
