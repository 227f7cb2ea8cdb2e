"""Rows of the catalogue with a mesh of their own, with FP8 releases, or with several hosts."""

from __future__ import annotations

from harness.load.target import Parallelism

from .scenario import Scenario

ON_MESHES: tuple[Scenario, ...] = (
    # A mesh of several axes.
    Scenario(
        "mtp-data-2-model-2",
        "Two copies of the model lie over two devices each, with every expert cut.",
        "qwen3.6-mtp",
        mesh="data=2,model=2",
        parallelism=Parallelism.TENSOR,
    ),
    Scenario(
        "mtp-data-2-model-2-experts-whole",
        "Two copies of the model lie over two devices each, with experts whole.",
        "qwen3.5-mtp",
        mesh="data=2,model=2",
        parallelism=Parallelism.EXPERT,
        every_run=False,
    ),
    Scenario(
        "vl-expert-4",
        "An axis of experts gives every device of four its own ones.",
        "qwen3-vl-moe",
        mesh="expert=4",
        parallelism=Parallelism.EXPERT,
        every_run=False,
    ),
    Scenario(
        "mtp-expert-2-model-2",
        "Attention is cut over model before expert, experts over expert before model.",
        "qwen3.6-mtp",
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-expert-2-model-2-kernel",
        "Experts over the axes expert and model are packed for the fused kernel.",
        "qwen3-vl-moe",
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario(
        "mtp-attn-dp-2-model-2",
        "Attention lies twice over two devices, all else over four.",
        "qwen3.6-mtp",
        mesh="attn_dp=2,model=2",
    ),
    Scenario(
        "vl-dcp-2-model-2",
        "Decode context parallelism cuts attention heads, too.",
        "qwen3-vl-moe",
        mesh="dcp=2,model=2",
    ),
    Scenario(
        "vl-pcp-2-model-2",
        "Prefill context parallelism keeps two copies of attention.",
        "qwen3-vl-moe",
        mesh="pcp=2,model=2",
    ),
    Scenario(
        "vl-expert-axis-dropped",
        "An axis of experts is asked of a mesh that has two axes only (NEW_MODEL_DESIGN=0), "
        "and must not be dropped in silence.",
        "qwen3-vl-moe",
        mesh="expert=4,2d",
        parallelism=Parallelism.EXPERT,
    ),
    # What the devices do not divide.
    Scenario(
        "vl-3-devices",
        "Three devices do not divide the attention heads.",
        "qwen3-vl-moe",
        devices=3,
    ),
    Scenario(
        "vl-6-experts",
        "Six experts, which four devices do not divide, are each cut over all of them.",
        "qwen3-vl-moe",
        shapes="tiny:experts",
        devices=4,
        parallelism=Parallelism.TENSOR,
        every_run=False,
    ),
    Scenario(
        "vl-6-experts-whole",
        "Six experts cannot be spread whole and evenly over four devices.",
        "qwen3-vl-moe",
        shapes="tiny:experts",
        parallelism=Parallelism.EXPERT,
        devices=4,
    ),
    Scenario(
        "vl-6-experts-kernel",
        "Six experts cannot be packed for the fused kernel evenly over four devices.",
        "qwen3-vl-moe",
        shapes="tiny:experts",
        parallelism=Parallelism.EXPERT_KERNEL,
        devices=4,
        every_run=False,
    ),
    Scenario(
        "vl-uneven-width",
        "Four devices do not divide the experts' intermediate size when each expert is cut.",
        "qwen3-vl-moe",
        shapes="tiny:intermediate",
        devices=4,
        parallelism=Parallelism.TENSOR,
    ),
    Scenario(
        "vl-uneven-width-experts-whole",
        "An intermediate size that four devices do not divide need not be divided where "
        "experts stay whole.",
        "qwen3-vl-moe",
        shapes="tiny:intermediate",
        parallelism=Parallelism.EXPERT,
        devices=4,
        every_run=False,
    ),
    # FP8 releases.
    Scenario(
        "vl-fp8",
        "An FP8 release, with a scale for each block, is loaded.",
        "qwen3-vl-moe",
        shapes="tiny:blocks",
        quantised="fp8",
    ),
    Scenario(
        "mtp-fp8",
        "An FP8 release with linear attention, a shared expert and a draft model is loaded.",
        "qwen3.5-mtp",
        shapes="tiny:blocks",
        quantised="fp8",
    ),
    Scenario(
        "vl-fp8-expert-2-model-2",
        "An FP8 release is loaded onto a mesh of all axes, its experts cut.",
        "qwen3-vl-moe",
        shapes="tiny:blocks",
        quantised="fp8",
        mesh="expert=2,model=2",
        parallelism=Parallelism.TENSOR,
        every_run=False,
    ),
    Scenario(
        "mtp-fp8-expert-2-model-2-whole",
        "An FP8 release with a draft model is loaded onto a mesh of all axes, its experts whole.",
        "qwen3.5-mtp",
        shapes="tiny:blocks",
        quantised="fp8",
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT,
    ),
    # Several hosts.
    Scenario(
        "vl-2-hosts",
        "Each host of two with four devices each places a part of every expert.",
        "qwen3-vl-moe",
        devices=8,
        hosts=2,
        parallelism=Parallelism.TENSOR,
    ),
    Scenario(
        "mtp-2-hosts-experts-whole",
        "Each host of two holds half of the experts of a decoder and of its draft model.",
        "qwen3.6-mtp",
        devices=8,
        hosts=2,
        parallelism=Parallelism.EXPERT,
        every_run=False,
    ),
    Scenario(
        "mtp-2-hosts-copies",
        "Each host of two holds a copy of the model.",
        "qwen3.5-mtp",
        hosts=2,
        mesh="data=2,model=4",
    ),
)
