"""Upstream issues that make scenarios fail: one row each, with all that it leaves or raises.

``--expect=known`` accepts these failures and no others. A row that no longer fails, or fails
otherwise, be it by one difference, fails the run.

Bounds of releases are those of the pairs that were seen (docs/releases.md), where upstream's
history or a thread does not say more: a row that is seen on 0.25 and 0.26, not on 0.22 and 0.32, is
of ``>=0.25,<0.32``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.compare.difference import Kind
from harness.explain.causes import Cause
from harness.families.family import Part, Projection, Storage
from harness.load.target import Implementation
from harness.report.known_issue import (
    KnownIssue,
    Load,
    Nature,
    Owner,
    Raised,
    Sign,
    Stage,
    table,
    through_tpu_inference,
)

from .known_issues_torch_xla import ON_TORCH_XLA
from .known_refusals import REFUSALS

_POSITIONAL = (
    "load_fused_expert_weights passes shard_id and expert_id to weight_loader positionally; the "
    "hook reads them from the keyword arguments"
)
_NO_EXPERT_ID = (
    r"tpu_inference/layers/vllm/quantization/unquantized\.py in maybe_process_weights: "
    r'assert expert_id is not None, "Expecting expert_id argument"'
)
_FUSED = (Storage.FUSED, Storage.FUSED_TRANSPOSED)
_HEAD, _EMBEDDING = "lm_head.weight", "language_model.model.embed_tokens.weight"
_DEVICE_HEAD = f"language_model.{_HEAD}"
_PADDED_TO = 64  # rows of a vocabulary, vLLM's vocab_parallel_embedding.py


def _positional(file: str, part: Part) -> Raised:
    """The hook's assertion over a call in ``file``, by when no expert of ``part`` had come."""
    return Raised(
        error="AssertionError",
        message="Expecting expert_id argument",
        at=_NO_EXPERT_ID,
        stage=Stage.STREAM,
        cause=Cause.ARGUMENT_CONTRACT,
        evidence=rf"vllm/model_executor/models/{file}\.py:\d+ called weight_loader\(.*\) of a "
        "VllmFusedMoE",
        lost=part,
    )


def _fused_first(load: Load) -> bool:
    """Whether the decoder's fused experts are streamed before anything else that fails."""
    decoder = Part.DECODER in load.parts and load.storage[Part.DECODER] in _FUSED
    return decoder and not load.vision_first


def _head_contradicted(load: Load) -> bool:
    """Whether vLLM ties a head that is one of its own: it asks text_config, for Qwen3.5 alone."""
    return load.family == "qwen3.5-moe" and load.ties_contradict and Part.DECODER in load.parts


def _head_unwritten(load: Load) -> Iterator[Sign]:
    """The tensor, and the head, which each host finds to hold the poison, as does its padding."""
    head = Sign(Cause.PARAMETER_UNWRITTEN, Kind.UNWRITTEN, Part.DECODER, parameter=_DEVICE_HEAD)
    yield Sign(Cause.TENSOR_UNREAD, Kind.UNREAD, Part.DECODER, parameter=_HEAD)
    yield head
    yield from [head._replace(kind=Kind.BITS)] * load.hosts
    if load.vocabulary % _PADDED_TO:
        yield head._replace(kind=Kind.PADDING)


def _head_over_embedding(load: Load) -> Iterator[Sign]:
    sign = Sign(Cause.TIED_EMBEDDINGS, Kind.BITS, Part.DECODER, parameter=_EMBEDDING)
    yield from [sign] * load.hosts
    yield Sign(Cause.TIED_EMBEDDINGS, Kind.UNACCOUNTED, Part.DECODER, parameter=_HEAD)


def _head_unread(load: Load) -> Iterator[Sign]:
    yield Sign(Cause.TENSOR_UNREAD, Kind.UNREAD, Part.DECODER, parameter=_HEAD)
    sign = Sign(Cause.TIED_EMBEDDINGS, Kind.BITS, Part.DECODER, parameter=_DEVICE_HEAD)
    yield from [sign] * load.hosts


def _lfm2_untied(load: Load) -> bool:
    return load.family == "lfm2-moe" and not load.tied


def _lfm2_head_over_embedding(load: Load) -> Iterator[Sign]:
    embedding = "model.embed_tokens.weight"
    sign = Sign(Cause.TIED_EMBEDDINGS, Kind.BITS, Part.DECODER, parameter=embedding)
    yield from [sign] * load.hosts


def _lfm2_head_unread(load: Load) -> Iterator[Sign]:
    yield Sign(Cause.TENSOR_UNREAD, Kind.UNREAD, Part.DECODER, parameter=_HEAD)
    sign = Sign(Cause.TIED_EMBEDDINGS, Kind.BITS, Part.DECODER, parameter=_HEAD)
    yield from [sign] * load.hosts


def _draft_embedding_replaced(load: Load) -> Iterator[Sign]:
    embedding = "model.embed_tokens.weight"
    yield from [Sign(Cause.OTHER_BYTES, Kind.BITS, Part.MTP, parameter=embedding)] * load.hosts


def _gate_and_up(load: Load) -> Iterator[Sign]:
    """Gate and up of every expert, which one tensor holds, transposed."""
    for layer in load.layers[Part.DECODER]:
        for expert in range(load.experts):
            for projection in (Projection.GATE, Projection.UP):
                yield Sign(
                    Cause.TRANSPOSED, Kind.BITS, Part.DECODER, layer, expert, projection,
                    "w13_weight",
                )  # fmt: skip


def corners(load: Load) -> Iterator[Sign]:
    """Every matrix of every expert, of which a corner alone was copied."""
    for layer in load.layers[Part.DECODER]:
        for expert in range(load.experts):
            for projection in Projection:
                array = "w2_weight" if projection is Projection.DOWN else "w13_weight"
                yield Sign(
                    Cause.WRONG_CORNER, Kind.BITS, Part.DECODER, layer, expert, projection, array
                )


_EXPLICIT = Raised(
    error="ValueError",
    message="The spec of NamedSharding passed to with_sharding_constraint can only refer to Auto "
    r"axes of the mesh\. Got spec=P\(.*\) and mesh=AbstractMesh\(.*Explicit.*\)\. You probably "
    r"meant to use `reshard` API\?",
    at=r"tpu_inference/layers/common/process_weights/moe_weights\.py in "
    r"_process_(quantized_moe_weights_impl|moe_weights_no_requant): .*with_sharding_constraint\(.*",
    stage=Stage.PROCESSING,
)
_EXPLICIT_WITHIN = replace(
    _EXPLICIT,
    error="AssertionError",
    message="`with_sharding_constraint` acts as an assert when all axes of mesh are of type "
    r"`Explicit`\. The array sharding: P\(.*\) did not match the sharding provided: P\(.*\)\. "
    r"Please use `jax\.sharding\.reshard` to shard your input to the sharding you want\.",
)


def _fp8_on_explicit_axes(id: str, raised: Raised, *, within: bool) -> KnownIssue:
    """One bug with two errors: where ``auto`` tries a model of its own first, a mesh is set."""

    def happens(load: Load) -> bool:
        tried = load.family == "qwen3-vl-moe" and load.impl is Implementation.AUTO
        cut = load.quantised not in ("", "awq", "mxfp4") and not load.mesh
        return cut and tried is within

    return KnownIssue(
        id=id,
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="with device_indexes the mesh of two axes is made by jax.make_mesh, whose axes are "
        "Explicit; the FP8 path then calls with_sharding_constraint, which reshards along Auto "
        "axes only. It loads with NEW_MODEL_DESIGN=1",
        releases=("tpu-inference>=0.25,<0.32",),
        when=happens,
        raised=raised,
    )


_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="positional-ids-qwen3-vl-moe",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42671", "vllm#42716"),
        releases=("vllm<0.22",),
        when=lambda load: load.family == "qwen3-vl-moe" and _fused_first(load),
        raised=_positional("qwen3_vl_moe", Part.DECODER),
    ),
    KnownIssue(
        id="positional-ids-qwen3.5",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42521",),
        releases=("vllm<0.22",),
        when=lambda load: load.family == "qwen3.5-moe" and _fused_first(load),
        raised=_positional("qwen3_5", Part.DECODER),
    ),
    KnownIssue(
        id="positional-ids-qwen3.5-mtp",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason=_POSITIONAL,
        threads=("vllm#42716",),
        releases=("vllm<0.22",),
        when=lambda load: load.parts == (Part.MTP,) and load.storage[Part.MTP] in _FUSED,
        raised=_positional("qwen3_5_mtp", Part.MTP),
    ),
    KnownIssue(
        id="correction-bias-hooked",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="attach_incremental_weight_loader wraps every parameter with a loader that a module "
        "of experts holds; MiniMax-M2's correction bias has one and is shared with the experts, so "
        "its hook wants an expert_id for it",
        releases=("tpu-inference",),
        when=lambda load: load.family == "minimax-m2",
        raised=Raised(
            error="AssertionError",
            message="Expecting expert_id argument",
            at=_NO_EXPERT_ID,
            stage=Stage.STREAM,
            cause=Cause.HOOKED_AS_EXPERT,
            evidence=r"vllm/model_executor/models/(utils|minimax_m2)\.py:\d+ called "
            r"weight_loader\(param, loaded_weight\) of a MiniMaxM2MoE",
            lost=Part.DECODER,
        ),
    ),
    KnownIssue(
        id="fused-vision-qkv",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="the hook expects a shard_id for q, k and v; Qwen3-VL's vision tower stores them "
        "fused and is loaded without one",
        threads=("tpu-inference#2647",),
        releases=("tpu-inference<0.22",),
        when=lambda load: Part.DECODER in load.parts and load.nested and not _fused_first(load),
        raised=Raised(
            error="AssertionError",
            message="Expecting shard_id as the only argument",
            at=r"tpu_inference/layers/vllm/quantization/\w+\.py in maybe_process_weights: "
            r'assert len\(args\) == 1, "Expecting shard_id as the only argument"',
            stage=Stage.STREAM,
            cause=Cause.FUSED_WITHOUT_SHARD,
            evidence=r"vllm/model_executor/models/qwen3_vl\.py:\d+ called "
            r"weight_loader\(param, loaded_weight\) of a QKVParallelLinear",
        ),
    ),
    KnownIssue(
        id="fused-linear-attention",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="the hook expects a shard_id for the projections of linear attention; Qwen3-Next "
        "stores q, k, v and z as one tensor and loads it without one",
        threads=("tpu-inference#2647",),
        releases=("tpu-inference<0.22",),
        when=lambda load: load.family == "qwen3-next" and Part.DECODER in load.parts,
        raised=Raised(
            error="AssertionError",
            message="Expecting shard_id as the only argument",
            at=r"tpu_inference/layers/vllm/quantization/unquantized\.py in maybe_process_weights: "
            r'assert len\(args\) == 1, "Expecting shard_id as the only argument"',
            stage=Stage.STREAM,
            evidence=r"vllm/model_executor/models/qwen3_next\.py:\d+ called "
            r"weight_loader\(param, loaded_weight\) of a MergedColumnParallelLinear",
        ),
    ),
    KnownIssue(
        id="draft-model-from-a-store",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="the draft model's configuration is made from the folder config.json was pulled "
        "to, and its weights are looked for there, not under the URL",
        threads=("vllm#42060", "vllm#48023"),
        releases=("vllm<0.32",),
        when=lambda load: bool(load.store) and Part.MTP in load.parts,
        raised=Raised(
            error="RuntimeError",
            message=r"Cannot find any safetensors model weights with "
            r"`\S*/assets/model_streamer/[0-9a-f]+`",
            at=r"vllm/model_executor/model_loader/runai_streamer_loader\.py in _prepare_weights: "
            r"raise RuntimeError\(",
            stage=Stage.STREAM,
        ),
        targets=(*through_tpu_inference(), "torch-xla"),
    ),
    KnownIssue(
        id="store-while-offline",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="with HF_HUB_OFFLINE=1 the URL of a store is taken for a hub id; HF_HUB_OFFLINE=0 "
        "avoids it",
        threads=("vllm#39155",),
        releases=("vllm<0.25",),
        when=lambda load: bool(load.store),
        raised=Raised(
            error="huggingface_hub.errors.HFValidationError",
            message=lambda load: (
                r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
                rf"'{load.store}://[^']+'\. Use `repo_type` argument if needed\."
            ),
            at=r"vllm/transformers_utils/repo_utils\.py in get_model_path: "
            r"return snapshot_download\(.*",
            stage=Stage.CONFIGURATION,
        ),
        targets=(*through_tpu_inference(), "torch-xla"),
    ),
    KnownIssue(
        id="untied-head-unwritten",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="_patch_tied_embedding_mapper maps lm_head to nothing, whatever config.json ties; "
        "the head of a model whose decoder sits under language_model is left as it was allocated",
        releases=("tpu-inference>=0.28.0.dev20260828",),
        when=lambda load: (
            Part.DECODER in load.parts
            and load.nested
            and not load.tied
            and not _head_contradicted(load)
        ),
        differs=_head_unwritten,
    ),
    KnownIssue(
        id="tied-head-written-over-embedding",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="what text_config ties is tied, whatever the files hold: a checkpoint's own lm_head "
        "is then loaded into the embedding it shares",
        threads=("vllm#51063", "vllm#51665"),
        releases=("vllm<0.32",),
        when=_head_contradicted,
        differs=_head_over_embedding,
    ),
    KnownIssue(
        id="tied-head-unread",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="vLLM now builds a head of its own for a checkpoint that has one, but "
        "_patch_tied_embedding_mapper maps it to nothing, and the embedding is what it gets",
        releases=("vllm>=0.32", "tpu-inference>=0.28.0.dev20260828"),
        when=_head_contradicted,
        differs=_head_unread,
    ),
    KnownIssue(
        id="float16-not-freed",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="t2j hands a float16 weight to numpy, after which torch cannot shrink its storage, "
        "as the linear layer does to free it; bf16, which numpy lacks, is copied first",
        releases=("tpu-inference",),
        when=lambda load: load.dtype == "float16" and Part.DECODER in load.parts,
        raised=Raised(
            error="RuntimeError",
            message="Trying to resize storage that is not resizable",
            at=r"tpu_inference/layers/vllm/quantization/unquantized\.py in \w+: "
            r"layer\.weight\.untyped_storage\(\)\.resize_\(0\)",
            stage=Stage.STREAM,
            evidence=r"vllm/model_executor/\S+\.py:\d+ called weight_loader\(.*\) of a \w+",
        ),
    ),
    KnownIssue(
        id="lfm2-head-over-embedding",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="LFM2-MoE's head is tied to the embedding whatever config.json says: the lm_head of "
        "an untied checkpoint is then loaded into the embedding it shares",
        releases=("vllm<0.32",),
        when=_lfm2_untied,
        differs=_lfm2_head_over_embedding,
    ),
    KnownIssue(
        id="lfm2-head-unread",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="LFM2-MoE's head is tied to the embedding whatever config.json says, and "
        "tpu-inference maps the lm_head of a checkpoint with tied ones to nothing: it is lost",
        releases=("vllm>=0.32",),
        when=_lfm2_untied,
        differs=_lfm2_head_unread,
    ),
    KnownIssue(
        id="draft-embedding-replaced",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="Eagle3Proposer.load_model hands the draft model the target's embedding, whatever "
        "the checkpoint holds: DeepSeek-V3's draft has one of its own, which is lost where the two "
        "differ",
        releases=("tpu-inference>=0.22",),
        when=lambda load: load.family == "deepseek-v3" and load.parts == tuple(Part),
        differs=_draft_embedding_replaced,
    ),
    KnownIssue(
        id="chunked-attention-without-builder",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="Llama-4's layers of chunked attention ask the attention backend for its builder, "
        "which tpu-inference's backend has not: the model is not built",
        releases=("vllm<0.25",),
        when=lambda load: load.family == "llama4" and load.impl is Implementation.VLLM,
        raised=Raised(
            error="NotImplementedError",
            message="",
            at=r"vllm/v1/attention/backend\.py in get_builder_cls: raise NotImplementedError",
            stage=Stage.MODEL,
        ),
    ),
    KnownIssue(
        id="orientation-guessed",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="routed_experts.load_weights tells a fused tensor's orientation from its shape; "
        "with 2F = D it takes the published layout for the other one",
        releases=("vllm>=0.25,<0.32",),
        when=lambda load: (
            load.storage.get(Part.DECODER) is Storage.FUSED_TRANSPOSED
            and 2 * load.intermediate == load.hidden
        ),
        differs=_gate_and_up,
        targets=(*through_tpu_inference(), "torch-xla"),
    ),
    KnownIssue(
        id="narrowed-to-fit",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="_narrow_expert_data_for_padding cuts an expert of the wrong layout to the smaller "
        "of the two sizes and copies that corner, without a word",
        releases=("vllm<0.25",),
        when=lambda load: load.axes_swapped,
        differs=corners,
        targets=(*through_tpu_inference(), "torch-xla"),
    ),
    KnownIssue(
        id="expert-axis-dropped",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="without NEW_MODEL_DESIGN=1 the mesh has the axes data and model only: an expert "
        "axis of four is dropped without a word, one device is used of four",
        releases=("tpu-inference",),
        when=lambda load: {"2d", "expert"} <= set(load.axes),
        raised=Raised(
            error="RuntimeError",
            message=lambda load: rf"the worker's mesh is \[\('(cpu|tpu)', \d+\)\], not {load.mesh}",
            at="",
            stage=Stage.DEVICES,
        ),
    ),
    KnownIssue(
        id="nested-configuration-without-architectures",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="a model with a vision tower builds its decoder from text_config, which names no "
        "architecture; tpu-inference's platform asks that configuration whether its attention is "
        "latent, and vLLM takes the first of no architectures",
        releases=("vllm>=0.28,<0.29",),
        when=lambda load: load.nested,
        raised=Raised(
            error="IndexError",
            message="list index out of range",
            at=r"vllm/config/model\.py in _get_transformers_backend_cls: "
            r"if defaults := try_match_architecture_defaults\(self\.architectures\[0\]\):",
            stage=Stage.MODEL,
        ),
    ),
    _fp8_on_explicit_axes("fp8-experts-on-explicit-axes", _EXPLICIT, within=False),
    _fp8_on_explicit_axes("fp8-experts-on-explicit-axes-set", _EXPLICIT_WITHIN, within=True),
)

KNOWN_ISSUES = table((*_ISSUES, *REFUSALS, *ON_TORCH_XLA))
