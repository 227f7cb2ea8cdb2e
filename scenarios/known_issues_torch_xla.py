"""Known issues that the torch-xla target alone shows: what cannot be built or cut there."""

from __future__ import annotations

from collections.abc import Iterator

from harness.compare.difference import Kind
from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.target import Parallelism
from harness.report.known_issue import KnownIssue, Load, Nature, Owner, Raised, Sign, Stage

#: Where vLLM chooses the kernel of a linear layer.
_KERNELS = r"vllm/model_executor/kernels/linear/__init__\.py in choose_scaled_mm_linear_kernel: "


def _head_lost(load: Load) -> Iterator[Sign]:
    yield Sign(Cause.TIED_EMBEDDINGS, Kind.UNACCOUNTED, Part.DECODER, parameter="lm_head.weight")


def _lfm2_head_lost(load: Load) -> Iterator[Sign]:
    yield Sign(Cause.UNACCOUNTED, Kind.UNACCOUNTED, Part.DECODER, parameter="lm_head.weight")


def _uneven(load: Load) -> bool:
    """Whether the axis of the experts' arrays that is cut is one that the devices do not divide."""
    cut = {Parallelism.TENSOR: load.intermediate, Parallelism.EXPERT: load.experts}
    return not load.mesh and cut.get(load.parallelism, 0) % load.devices != 0


ON_TORCH_XLA: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="tied-head-lost",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="what text_config ties is tied, whatever the files hold: a checkpoint's own lm_head "
        "reaches no parameter",
        threads=("vllm#51063", "vllm#51665"),
        releases=("vllm<0.32",),
        when=lambda load: load.family == "qwen3.5-moe" and load.ties_contradict,
        differs=_head_lost,
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="lfm2-head-lost",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="LFM2-MoE's head is tied to the embedding whatever config.json says: a checkpoint's "
        "own lm_head reaches no parameter",
        releases=("vllm",),
        when=lambda load: load.family == "lfm2-moe" and not load.tied,
        differs=_lfm2_head_lost,
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="no-latent-attention-on-the-host",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="latent attention cannot be built on a CPU, where torch-xla has a model streamed to",
        releases=("vllm",),
        when=lambda load: load.latent,
        raised=Raised(
            error="NotImplementedError",
            message=r"MLA is not supported on CPU\.",
            at=r"vllm/platforms/cpu\.py in get_attn_backend_cls: "
            r'raise NotImplementedError\("MLA is not supported on CPU\."\)',
            stage=Stage.MODEL,
        ),
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="no-fp8-on-the-host",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="a model of an FP8 release cannot be built on a CPU, where torch-xla has it "
        "streamed to: there is no kernel for its linear layers",
        releases=("vllm>=0.26",),
        when=lambda load: load.quantised == "fp8" and not load.mesh,
        raised=Raised(
            error="ValueError",
            message=r"Failed to find a kernel that can implement the ScaledMM linear layer\. "
            r"Reasons: \n.*",
            at=rf"{_KERNELS}raise ValueError\(",
            stage=Stage.MODEL,
        ),
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="no-fp8-out-of-tree",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="a model of an FP8 release cannot be built on torch-xla's host: the table of "
        "kernels for its linear layers has no row for a platform out of the tree",
        releases=("vllm<0.26",),
        when=lambda load: load.quantised == "fp8" and not load.mesh,
        raised=Raised(
            error="KeyError",
            message=r"<PlatformEnum\.OOT: \d+>",
            at=rf"{_KERNELS}.*ossible_kernels\[current_platform\._enum\].*",
            stage=Stage.MODEL,
        ),
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="uneven-on-torch-xla",
        owner=Owner.HARNESS,
        nature=Nature.MISSING,
        reason="the torch-xla target cuts an axis only where the devices divide it",
        releases=("vllm",),
        when=_uneven,
        raised=Raised(
            error="ValueError",
            message=lambda load: rf"{load.devices} devices do not divide axis \d of \S+",
            at="",
            stage=Stage.PROCESSING,
        ),
        targets=("torch-xla",),
    ),
)
