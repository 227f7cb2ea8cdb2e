"""The scenarios: one row each, those that follow from a rule made by it.

Add a row before a function. What a run takes: :data:`SCENARIOS` are all, :data:`CHOSEN` those of a
run that was not asked for all (``--families=all``), :data:`PLAIN` those by which it is told where
families load (:mod:`harness.families.overview`).
"""

from __future__ import annotations

from harness.families.family import Part
from harness.load.target import Parallelism
from harness.synthetic.values import Values
from harness.synthetic.writer import Order

from .by_rule import MLA_DISABLED, by_rule, chosen, plain
from .on_meshes import ON_MESHES
from .scenario import Scenario, Store

_WRITTEN: tuple[Scenario, ...] = (
    # Families and storages, on four devices; the others are there by rule.
    Scenario(
        "vl-fused",
        "Fused and transposed experts whose ids the model passes by position are loaded "
        "(vLLM #42521, #42671).",
        "qwen3-vl-moe",
    ),
    Scenario(
        "decoder-fused",
        "Fused experts are loaded beside linear attention and a shared expert.",
        "qwen3.5-moe",
    ),
    Scenario(
        "mtp-fused",
        "A draft model with fused experts is loaded after its decoder (vLLM #42716).",
        "qwen3.6-mtp",
    ),
    Scenario(
        "mtp-per-expert",
        "A draft model that stores one tensor per expert and projection is loaded.",
        "qwen3.5-mtp",
    ),
    Scenario(
        "text-per-expert",
        "A text model that stores one tensor per expert and projection is loaded, each expert cut.",
        "qwen3-moe",
    ),
    Scenario(
        "text-experts-whole",
        "Every device holds some experts of a text model whole (GMM_EP).",
        "qwen3-moe",
        parallelism=Parallelism.EXPERT,
        every_run=False,
    ),
    # A draft model alone: on releases whose decoder fails first it shows its own faults.
    Scenario(
        "mtp-fused-alone",
        "The fused draft model is loaded without its decoder, whose faults would hide its "
        "own (vLLM #42716).",
        "qwen3.6-mtp",
        parts=(Part.MTP,),
    ),
    Scenario(
        "mtp-per-expert-alone",
        "The per-expert draft model is loaded without its decoder; it arrives where the "
        "fused one fails.",
        "qwen3.5-mtp",
        parts=(Part.MTP,),
    ),
    # How experts are spread, and over how many devices.
    Scenario(
        "vl-experts-whole",
        "Every device holds some experts whole (GMM_EP).",
        "qwen3-vl-moe",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "mtp-experts-whole",
        "Every device holds some experts of a decoder and its fused draft model whole (GMM_EP).",
        "qwen3.6-mtp",
        parallelism=Parallelism.EXPERT,
        every_run=False,
    ),
    Scenario(
        "vl-fused-kernel",
        "Experts are packed for the fused kernel (FUSED_MOE).",
        "qwen3-vl-moe",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario(
        "mtp-fused-kernel",
        "Experts of a decoder and its per-expert draft model are packed for the fused kernel "
        "(FUSED_MOE).",
        "qwen3.5-mtp",
        parallelism=Parallelism.EXPERT_KERNEL,
        every_run=False,
    ),
    Scenario(
        "vl-1-device",
        "A mesh of one device takes everything whole.",
        "qwen3-vl-moe",
        devices=1,
    ),
    Scenario(
        "vl-2-devices",
        "A mesh of two devices halves every expert.",
        "qwen3-vl-moe",
        devices=2,
    ),
    Scenario(
        "mtp-8-devices",
        "A mesh of eight devices cuts a decoder and its draft model into eighths.",
        "qwen3.6-mtp",
        devices=8,
        every_run=False,
    ),
    # What is in the files, and the order in which it comes.
    Scenario(
        "vl-vision-first",
        "A vision tower with fused q/k/v is streamed before any expert (tpu-inference #2647).",
        "qwen3-vl-moe",
        order=Order.VISION_FIRST,
    ),
    Scenario(
        "mtp-smallest-buffer",
        "The streamer reuses its buffer at once, so that a view kept too long shows (vLLM "
        "#43163, #41749).",
        "qwen3.5-mtp",
        stream_options={"RUNAI_STREAMER_MEMORY_LIMIT": "0", "RUNAI_STREAMER_CONCURRENCY": "1"},
    ),
    Scenario(
        "vl-nan-payloads",
        "NaNs arrive as the target is known to leave them, and nothing else changes.",
        "qwen3-vl-moe",
        values=Values.NAN_PAYLOADS,
    ),
    Scenario(
        "mtp-numbered-files",
        "Files are numbered so that model-10 sorts before model-2; their order must not "
        "matter (vLLM #33491, #34190).",
        "qwen3.6-mtp",
        numbered=True,
    ),
    Scenario(
        "text-float16",
        "A model that config.json wants in float16 is converted from the stored bf16.",
        "qwen3-moe",
        dtype="float16",
    ),
    Scenario(
        "vl-square",
        "With 2F = D an orientation that is guessed from the shape can be guessed wrong.",
        "qwen3-vl-moe",
        shapes="tiny:square",
    ),
    Scenario(
        "vl-axes-swapped",
        "Experts as transformers 5 saves them are to be refused or put right, not narrowed to fit.",
        "qwen3-vl-moe",
        axes_swapped=True,
    ),
    # Object stores.
    Scenario(
        "vl-s3",
        "A Qwen3-VL checkpoint is streamed from S3 by its URL.",
        "qwen3-vl-moe",
        store=Store.S3,
    ),
    Scenario(
        "decoder-s3",
        "A Qwen3.5 checkpoint with fused experts is streamed from S3 by its URL.",
        "qwen3.5-moe",
        store=Store.S3,
        every_run=False,
    ),
    Scenario(
        "mtp-s3",
        "A checkpoint with a draft model is streamed from S3 by its URL, the draft's weights too.",
        "qwen3.6-mtp",
        store=Store.S3,
        every_run=False,
    ),
    Scenario(
        "vl-gcs",
        "A Qwen3-VL checkpoint is streamed from GCS by its URL.",
        "qwen3-vl-moe",
        store=Store.GCS,
        every_run=False,
    ),
    Scenario(
        "decoder-gcs",
        "A Qwen3.5 checkpoint with fused experts is streamed from GCS by its URL.",
        "qwen3.5-moe",
        store=Store.GCS,
        every_run=False,
    ),
    Scenario(
        "mtp-gcs",
        "A checkpoint with a draft model is streamed from GCS by its URL, the draft's weights too.",
        "qwen3.6-mtp",
        store=Store.GCS,
    ),
    # More devices than heads, a head that is tied, a vocabulary that is padded.
    Scenario(
        "vl-8-devices",
        "More devices than key and value heads repeat each head four times.",
        "qwen3-vl-moe",
        devices=8,
        every_run=False,
    ),
    Scenario(
        "mtp-8-experts-whole",
        "Each of eight devices holds one expert of a decoder and of its draft model.",
        "qwen3.6-mtp",
        devices=8,
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-tied",
        "A head that is tied is the embedding, and no tensor of its own is missed.",
        "qwen3-vl-moe",
        tied=True,
    ),
    Scenario(
        "decoder-tied",
        "A head that is tied is the embedding in a model with linear attention, too.",
        "qwen3.5-moe",
        tied=True,
        every_run=False,
    ),
    Scenario(
        "vl-ties-contradict",
        "A head that is tied in text_config and not at the top of config.json, as transformers 5 "
        "saves it, is one of its own.",
        "qwen3-vl-moe",
        ties_contradict=True,
        every_run=False,
    ),
    Scenario(
        "decoder-ties-contradict",
        "A Qwen3.5 head that text_config alone calls tied does not overwrite the embedding.",
        "qwen3.5-moe",
        ties_contradict=True,
    ),
    Scenario(
        "vl-padded-vocabulary",
        "A vocabulary that the devices do not divide is padded with zeros.",
        "qwen3-vl-moe",
        shapes="tiny:vocabulary",
    ),
    Scenario(
        "deepseek-v3-mtp-alone",
        "A draft model with an embedding of its own is loaded without its decoder.",
        "deepseek-v3-mtp",
        parts=(Part.MTP,),
        stream_options=MLA_DISABLED,
    ),
    Scenario(
        "deepseek-v3-latent",
        "Latent attention is loaded as vLLM holds it by default.",
        "deepseek-v3",
    ),
    Scenario(
        "lfm2-moe-untied", "The head of an LFM2-MoE checkpoint that has one is loaded.", "lfm2-moe"
    ),
    *ON_MESHES,
)

_BY_RULE = by_rule(_WRITTEN)
SCENARIOS = (*_WRITTEN, *_BY_RULE)
PLAIN = plain(SCENARIOS)
CHOSEN = chosen(_WRITTEN, _BY_RULE)
