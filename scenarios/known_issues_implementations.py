"""Known issues of upstream's choice between implementations, besides the common table."""

from __future__ import annotations

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.target import Implementation
from harness.report.known_issue import KnownIssue, Load, Nature, Owner, Raised, Stage, table

from .known_issues import KNOWN_ISSUES


def _chosen(load: Load) -> bool:
    """Whether tpu-inference is left to choose the implementation of each model."""
    return load.impl is Implementation.AUTO


#: Of decoders with a draft model, those for which it chooses vLLM's by name: it prefers that, or
#: its own cannot be streamed. For their drafts it has no rule.
_CHOSEN_BY_NAME = ("qwen3.5-moe", "deepseek-v3")

_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="draft-of-another-implementation",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.BUG,
        reason="with MODEL_IMPL_TYPE=auto, tpu-inference chooses vLLM's implementation of a "
        "decoder by its name, and of its draft model, whose name it does not know, its own, for "
        "which it takes vLLM's again; then it refuses two. DRAFT_MODEL_IMPL_TYPE=vllm helps",
        releases=("tpu-inference>=0.22",),
        when=lambda load: (
            _chosen(load)
            and load.draft_chosen
            and load.family in _CHOSEN_BY_NAME
            and len(load.parts) == len(Part)
        ),
        raised=Raised(
            error="ValueError",
            message="The implementation of the draft model must be the same as the target model\\.",
            at=r"tpu_inference/spec_decode/jax/eagle3\.py in load_model: raise ValueError\(",
            stage=Stage.PROCESSING,
        ),
    ),
    KnownIssue(
        id="heads-of-layers-asked-of-all",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="Gemma-4's layers have heads of two widths, for which this release asks the "
        "configuration as a whole; the transformers pinned with it refuses that",
        releases=("vllm>=0.26,<0.32",),
        when=lambda load: load.family == "gemma4",
        raised=Raised(
            error="transformers.integrations.heterogeneity.configuration_utils."
            "AmbiguousGlobalPerLayerAttributeError",
            message=r"'head_dim' is a per-layer attribute and may vary across layers\. .*",
            at=r"vllm/transformers_utils/model_arch_config_convertor\.py in get_head_size: "
            r'head_dim = getattr\(self\.hf_text_config, "head_dim", 0\)',
            stage=Stage.CONFIGURATION,
        ),
    ),
    KnownIssue(
        id="own-model-wants-a-nested-configuration",
        owner=Owner.TPU_INFERENCE,
        nature=Nature.MISSING,
        reason="tpu-inference's own Llama-4, which it chooses for Llama4ForCausalLM, reads the "
        "configuration of the release with a vision tower, and no other; it loads with --impl vllm",
        releases=("tpu-inference",),
        when=lambda load: load.family == "llama4" and load.impl is not Implementation.VLLM,
        raised=Raised(
            error="AttributeError",
            message="'Llama4TextConfig' object has no attribute 'text_config'",
            at=r"tpu_inference/models/jax/llama4\.py in __init__: "
            r"text_config = model_config\.hf_config\.text_config",
            stage=Stage.MODEL,
            cause=Cause.CONFIG_LACKS_KEY,
            evidence="'Llama4TextConfig' object has no attribute 'text_config'",
        ),
    ),
)

#: What the rows of implementations are judged by.
IMPLEMENTATION_ISSUES = table((*KNOWN_ISSUES, *_ISSUES))
