"""Which parameter on the device holds which tensors of the checkpoint, and how.

A table: one row for each kind of parameter besides experts, with its name, the checkpoint
tensors it is made of in the order of its rows, the transform, and where upstream does it. The
transforms themselves are in :mod:`harness.devices.parameter_layout`. Buffers that come from no
tensor are listed with the reason, so that nothing on the device is left unaccounted for.

Names are those of the checkpoint's modules: :func:`in_checkpoint` takes a device parameter's name
there. Sources are vLLM's model files (``model_executor/models/{qwen3_vl,qwen3_moe,qwen3_next,
qwen3_5,qwen3_5_mtp}.py``) and tpu-inference's, releases 0.21 to 0.32; all was measured, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from harness.devices.mesh import HEADS, TENSOR
from harness.families.family import QWEN3_5_MOE, QWEN3_VL_MOE, Part

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
class Rule:
    """One kind of parameter.

    Attributes:
        kind: in the words of the field.
        pattern: of its name, as :func:`in_checkpoint` gives it.
        sources: templates of the tensors' names, in the order of the parameter's rows.
        upstream: where upstream does it, keys of :data:`UPSTREAM`.
        cut: the side that is divided.
        transposed: whether the device holds [inputs, outputs] instead of [outputs, inputs].
        pieces: what the rows are.
        axes: the mesh axes it is divided over.
        widened: whether the device holds f32, whatever the model's dtype is.
        families: the families it is of; all where empty.
        casts: whether bf16 goes to the device by way of f32
            (:class:`harness.devices.parameter_layout.ParameterLayout`).
    """

    kind: str
    pattern: str
    sources: tuple[str, ...]
    upstream: str
    cut: Cut = Cut.NONE
    transposed: bool = False
    pieces: Pieces = Pieces.WHOLE
    axes: tuple[str, ...] = HEADS
    widened: bool = False
    families: tuple[str, ...] = ()
    casts: bool = True


def _same(kind: str, pattern: str, upstream: str, **options: object) -> Rule:
    """A rule of parameters that have their tensor's own name."""
    return Rule(kind, pattern, (r"\g<0>",), upstream, **options)  # type: ignore[arg-type]


def _whole(kind: str, pattern: str, upstream: str = _REPLICATED, **options: object) -> Rule:
    """A rule of parameters that upstream leaves alone, and copies to every device bit by bit."""
    return _same(kind, pattern, upstream, casts=False, **options)


_VISUAL = r"model\.visual\."
_LEAF = r"\.(weight|bias)"
_MERGER = rf"{_VISUAL}(?:merger|deepstack_merger_list\.\d+)\."

RULES: tuple[Rule, ...] = (
    _same(
        "embedding", r"model\.language_model\.embed_tokens\.weight", _VOCABULARY,
        cut=Cut.OUTPUTS, pieces=Pieces.ROWS, axes=TENSOR,
    ),
    _same(
        "head", r"lm_head\.weight", _VOCABULARY,
        cut=Cut.OUTPUTS, pieces=Pieces.ROWS, axes=TENSOR,
    ),
    Rule(
        "attention q, k, v (with the output gate in q, Qwen3.5)",
        rf"(.+\.self_attn)\.qkv_proj{_LEAF}", (r"\1.q_proj.\2", r"\1.k_proj.\2", r"\1.v_proj.\2"),
        _TILED, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKV,
    ),
    _same(
        "attention output", r".+\.self_attn\.o_proj\.weight", _LINEAR,
        cut=Cut.INPUTS, transposed=True,
    ),
    _whole("attention q and k norms", r".+\.self_attn\.[qk]_norm\.weight"),
    Rule(
        "linear attention q, k, v, z", r"(.+\.linear_attn)\.in_proj_qkvz\.weight",
        (r"\1.in_proj_qkv.weight", r"\1.in_proj_z.weight"),
        _REORDER, cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKVZ,
    ),
    Rule(
        "linear attention b, a", r"(.+\.linear_attn)\.in_proj_ba\.weight",
        (r"\1.in_proj_b.weight", r"\1.in_proj_a.weight"),
        _REORDER, cut=Cut.OUTPUTS, transposed=True,
    ),
    _same(
        "linear attention output", r".+\.linear_attn\.out_proj\.weight", _LINEAR,
        cut=Cut.INPUTS, transposed=True,
    ),
    _whole("linear attention convolution", r".+\.linear_attn\.conv1d\.weight"),
    _whole(
        "linear attention decay", r".+\.linear_attn\.A_log",
        _WIDENED, widened=True,
    ),
    _whole("linear attention step bias", r".+\.linear_attn\.dt_bias"),
    _whole("linear attention norm", r".+\.linear_attn\.norm\.weight"),
    _whole("layer norms", r".+\.(?:input|post_attention)_layernorm\.weight"),
    _same(
        "router", r".+\.mlp\.gate\.weight", _LINEAR, transposed=True,
        families=(QWEN3_VL_MOE.name,),
    ),
    _whole("router", r".+\.mlp\.gate\.weight", families=(QWEN3_5_MOE.name,)),
    Rule(
        "shared expert gate and up", r"(.+\.shared_expert)\.gate_up_proj\.weight",
        (r"\1.gate_proj.weight", r"\1.up_proj.weight"),
        _REORDER, cut=Cut.OUTPUTS, transposed=True,
    ),
    _same(
        "shared expert down", r".+\.shared_expert\.down_proj\.weight", _LINEAR,
        cut=Cut.INPUTS, transposed=True,
    ),
    _whole("shared expert's gate", r".+\.shared_expert_gate\.weight"),
    _whole("final norm", r"(?:model\.language_model|mtp)\.norm\.weight"),
    _whole("MTP's norms", r"mtp\.pre_fc_norm_(?:embedding|hidden)\.weight"),
    _same("MTP's fc", r"mtp\.fc\.weight", _LINEAR, cut=Cut.OUTPUTS, transposed=True),
    _whole("vision patch embedding", rf"{_VISUAL}patch_embed\.proj{_LEAF}"),
    _whole("vision position embedding", rf"{_VISUAL}pos_embed\.weight"),
    _whole("vision norms", rf"{_VISUAL}blocks\.\d+\.norm[12]{_LEAF}"),
    _same(
        "vision q, k, v", rf"{_VISUAL}blocks\.\d+\.attn\.qkv{_LEAF}", _REORDER,
        cut=Cut.OUTPUTS, transposed=True, pieces=Pieces.QKV_FUSED,
    ),
    _same(
        "vision linear layers divided by outputs, and their biases",
        rf"{_VISUAL}blocks\.\d+\.mlp\.linear_fc1{_LEAF}", _LINEAR,
        cut=Cut.OUTPUTS, transposed=True,
    ),
    _same(
        "vision linear layers divided by inputs, and their biases",
        rf"{_VISUAL}blocks\.\d+\.(?:attn\.proj|mlp\.linear_fc2){_LEAF}", _LINEAR,
        cut=Cut.INPUTS, transposed=True,
    ),
    _whole("merger and deepstack norms", rf"{_MERGER}norm{_LEAF}"),
    _same(
        "merger and deepstack fc1", rf"{_MERGER}linear_fc1{_LEAF}", _LINEAR,
        cut=Cut.OUTPUTS, transposed=True,
    ),
    _same(
        "merger and deepstack fc2", rf"{_MERGER}linear_fc2{_LEAF}", _LINEAR,
        cut=Cut.INPUTS, transposed=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Derived:
    """Buffers that are made by the model's code, from no tensor.

    ``constant`` is the value every element must have, as f32; None where the code computes it.
    """

    kind: str
    pattern: str
    upstream: str
    constant: float | None = None


DERIVED: tuple[Derived, ...] = (
    Derived(
        "rope table", r".+\.(?:rotary_emb|rotary_pos_emb)\.cos_sin_cache",
        "rope",
    ),
    Derived(
        "attention scale", r".+\.attn\._(?:q|k|v|prob)_scale",
        "scale",
        constant=1.0,
    ),
)  # fmt: skip

#: Device names and what they begin with in the checkpoint, the longest first.
_PREFIXES: dict[Part, tuple[tuple[str, str], ...]] = {
    Part.DECODER: (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("visual.", "model.visual."),
    ),
    Part.MTP: (
        ("model.embed_tokens.", "model.language_model.embed_tokens."),
        ("model.", "mtp."),
        ("lm_head.", "lm_head."),
    ),
}


def in_checkpoint(part: Part, name: str) -> str:
    """A device parameter's name as the checkpoint would have it; itself where nothing is known.

    tpu-inference puts ``vllm_model.`` before vLLM's names (``vllm_model_wrapper.py``,
    ``_VllmRunner``).
    """
    name = name.removeprefix("vllm_model.")
    for prefix, instead in _PREFIXES[part]:
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


_RULE_BY_NAME = tuple((re.compile(rule.pattern), rule) for rule in RULES)


def rule_for(name: str, family: str) -> tuple[Rule, tuple[str, ...]] | None:
    """The rule of a parameter and the names of its tensors; None where there is none.

    Args:
        name: the parameter's, as :func:`in_checkpoint` gives it.
        family: the family's name.
    """
    for pattern, rule in _RULE_BY_NAME:
        if rule.families and family not in rule.families:
            continue
        if match := pattern.fullmatch(name):
            return rule, tuple(match.expand(source) for source in rule.sources)
    return None


def derived_for(name: str) -> Derived | None:
    """The row of a derived buffer, or None."""
    return next((row for row in DERIVED if re.fullmatch(row.pattern, name)), None)


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The language model's layer a parameter or tensor belongs to, if it belongs to one."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None
