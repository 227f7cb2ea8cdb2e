"""The scenarios: one row each. Add a row before a function."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from harness.family import Part
from harness.nan import Nan
from harness.synthetic.tensors import Order
from harness.synthetic.values import Values
from harness.synthetic.writer import write_checkpoint
from harness.target import Parallelism, Target
from scenarios.rewriting import number_files, swap_axes


class Store(StrEnum):
    """The object store a synthetic checkpoint is put into, by its URL's scheme."""

    NONE = ""
    S3 = "s3"
    GCS = "gs"

    @property
    def server(self) -> str:
        """The package that serves it on this machine."""
        return {Store.S3: "moto", Store.GCS: "gcp_storage_emulator"}[self]


@dataclass(frozen=True)
class Scenario:
    """One checkpoint and how it is streamed and compared.

    Attributes:
        id: stable; known issues and reports refer to it.
        why: the fault it is there to catch.
        recipe: which family and storage to write.
        source: a checkpoint that exists, instead of one to write.
        values: special values in every slice.
        parts: the parts to load and compare; a draft model alone shows its own faults on
            releases whose decoder fails first.
        order: the order of the tensors over the files.
        devices: size of the mesh, where the session's will not do.
        parallelism: how experts are spread, alike.
        hosts: processes the mesh is over, alike.
        mesh: axes of the mesh, where it has several (:mod:`harness.meshes`).
        shapes: sizes of the checkpoint to write.
        tied: its head is the embedding.
        fp8: the layout of the family's FP8 releases.
        store: where the checkpoint is streamed from, if not from a directory.
        numbered: file names get plain numbers, which sort otherwise as text than as numbers.
        axes_swapped: fused experts are stored as transformers 5 saves them, not as published; the
            reference is the published layout.
        stream_options: ``RUNAI_STREAMER_*`` variables of the load.
    """

    id: str
    why: str
    recipe: str = ""
    source: str = ""
    values: Values = Values.CORNERS
    parts: tuple[Part, ...] = tuple(Part)
    order: Order = Order.PUBLISHED
    devices: int | None = None
    parallelism: Parallelism | None = None
    hosts: int | None = None
    mesh: str = ""
    shapes: str = "tiny"
    tied: bool = False
    fp8: bool = False
    store: Store = Store.NONE
    numbered: bool = False
    axes_swapped: bool = False
    stream_options: dict[str, str] = field(default_factory=dict)

    def checkpoint(self, directory: Path) -> tuple[str | Path, Path | None]:
        """The checkpoint, and the one to compare with if that is another.

        A synthetic one is written under ``directory``.
        """
        if self.source:
            return self.source, None
        path = write_checkpoint(
            self.recipe,
            directory / self.id,
            shapes=self.shapes,
            values=self.values,
            order=self.order,
            tied=self.tied,
            fp8=self.fp8,
            files=12 if self.numbered else 4,
        ).path
        if self.numbered:
            number_files(path)
        return path, swap_axes(path) if self.axes_swapped else None

    def nan(self, target: Target) -> Nan:
        """How NaNs count: as the target's way to the device leaves them, where some are planted."""
        return target.nan if self.values is Values.NAN_PAYLOADS else Nan.PAYLOAD


def given(checkpoint: str) -> Scenario:
    """The scenario of a checkpoint the user named."""
    name = PurePosixPath(checkpoint).name or checkpoint
    return Scenario(id=name, why="asked for on the command line", source=checkpoint)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "vl-fused",
        "fused and transposed experts; ids passed positionally (vLLM #42521, #42671)",
        "qwen3-vl-moe",
    ),
    Scenario(
        "decoder-fused",
        "fused experts beside linear attention and a shared expert",
        "qwen3.5-moe",
    ),
    Scenario(
        "mtp-fused",
        "fused experts of the draft model (vLLM #42716)",
        "qwen3.6-mtp",
    ),
    Scenario(
        "mtp-per-expert",
        "one tensor per expert and projection in the draft model",
        "qwen3.5-mtp",
    ),
    Scenario(
        "mtp-fused-alone",
        "the fused draft model without its decoder (vLLM #42716)",
        "qwen3.6-mtp",
        parts=(Part.MTP,),
    ),
    Scenario(
        "mtp-per-expert-alone",
        "the per-expert draft model without its decoder: it loads where the fused one fails",
        "qwen3.5-mtp",
        parts=(Part.MTP,),
    ),
    Scenario(
        "vl-experts-whole",
        "every device holds some experts whole (GMM_EP)",
        "qwen3-vl-moe",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "mtp-experts-whole",
        "the same for decoder and fused draft model",
        "qwen3.6-mtp",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-fused-kernel",
        "experts packed for the fused kernel (FUSED_MOE)",
        "qwen3-vl-moe",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario(
        "mtp-fused-kernel",
        "the same for decoder and per-expert draft model",
        "qwen3.5-mtp",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario("vl-1-device", "a mesh of one", "qwen3-vl-moe", devices=1),
    Scenario("vl-2-devices", "a mesh of two", "qwen3-vl-moe", devices=2),
    Scenario("mtp-8-devices", "a mesh of eight", "qwen3.6-mtp", devices=8),
    Scenario(
        "vl-vision-first",
        "a vision tower that is streamed before any expert, fused q/k/v (tpu-inference #2647)",
        "qwen3-vl-moe",
        order=Order.VISION_FIRST,
    ),
    Scenario(
        "mtp-smallest-buffer",
        "the streamer reuses its buffer at once: a view kept too long shows (vLLM #43163, #41749)",
        "qwen3.5-mtp",
        stream_options={"RUNAI_STREAMER_MEMORY_LIMIT": "0", "RUNAI_STREAMER_CONCURRENCY": "1"},
    ),
    Scenario(
        "vl-nan-payloads",
        "NaNs arrive as the target is known to leave them, and nothing else changes",
        "qwen3-vl-moe",
        values=Values.NAN_PAYLOADS,
    ),
    Scenario(
        "mtp-numbered-files",
        "model-10 comes before model-2: the order of files must not matter (vLLM #33491, #34190)",
        "qwen3.6-mtp",
        numbered=True,
    ),
    Scenario(
        "vl-square",
        "2F = D: an orientation that is guessed from the shape can be guessed wrong",
        "qwen3-vl-moe",
        shapes="tiny:square",
    ),
    Scenario(
        "vl-axes-swapped",
        "experts as transformers 5 saves them: to be refused or put right, not narrowed to fit",
        "qwen3-vl-moe",
        axes_swapped=True,
    ),
    Scenario("vl-s3", "streamed from S3 by its URL", "qwen3-vl-moe", store=Store.S3),
    Scenario("decoder-s3", "the same for fused experts", "qwen3.5-moe", store=Store.S3),
    Scenario("mtp-s3", "the same with a draft model", "qwen3.6-mtp", store=Store.S3),
    Scenario("vl-gcs", "streamed from GCS by its URL", "qwen3-vl-moe", store=Store.GCS),
    Scenario("decoder-gcs", "the same for fused experts", "qwen3.5-moe", store=Store.GCS),
    Scenario("mtp-gcs", "the same with a draft model", "qwen3.6-mtp", store=Store.GCS),
    Scenario(
        "vl-8-devices",
        "more devices than key and value heads: each head is repeated four times",
        "qwen3-vl-moe",
        devices=8,
    ),
    Scenario(
        "mtp-8-experts-whole",
        "eight devices, an expert on each",
        "qwen3.6-mtp",
        devices=8,
        parallelism=Parallelism.EXPERT,
    ),
    Scenario("vl-tied", "the head is the embedding", "qwen3-vl-moe", tied=True),
    Scenario("decoder-tied", "the same beside linear attention", "qwen3.5-moe", tied=True),
    Scenario(
        "vl-padded-vocabulary",
        "a vocabulary that is padded",
        "qwen3-vl-moe",
        shapes="tiny:vocabulary",
    ),
    Scenario(
        "mtp-data-2-model-2",
        "two copies of the model, each over two devices",
        "qwen3.6-mtp",
        mesh="data=2,model=2",
    ),
    Scenario(
        "mtp-data-2-model-2-experts-whole",
        "the same with experts whole",
        "qwen3.5-mtp",
        mesh="data=2,model=2",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-expert-4",
        "an axis of experts",
        "qwen3-vl-moe",
        mesh="expert=4",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "mtp-expert-2-model-2",
        "attention is cut over model before expert, experts over expert before model",
        "qwen3.6-mtp",
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-expert-2-model-2-kernel",
        "the same, packed for the fused kernel",
        "qwen3-vl-moe",
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario(
        "mtp-attn-dp-2-model-2",
        "attention twice over two devices, the rest over four",
        "qwen3.6-mtp",
        mesh="attn_dp=2,model=2",
    ),
    Scenario(
        "vl-dcp-2-model-2",
        "decode context parallelism cuts heads, too",
        "qwen3-vl-moe",
        mesh="dcp=2,model=2",
    ),
    Scenario(
        "vl-pcp-2-model-2",
        "prefill context parallelism keeps two copies of attention",
        "qwen3-vl-moe",
        mesh="pcp=2,model=2",
    ),
    Scenario(
        "vl-expert-axis-dropped",
        "an axis of experts on a mesh of two axes (NEW_MODEL_DESIGN=0)",
        "qwen3-vl-moe",
        mesh="expert=4,2d",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario("vl-3-devices", "heads that do not divide", "qwen3-vl-moe", devices=3),
    Scenario(
        "vl-6-experts",
        "experts that do not divide, each cut over all devices",
        "qwen3-vl-moe",
        shapes="tiny:experts",
    ),
    Scenario(
        "vl-6-experts-whole",
        "six experts on four devices",
        "qwen3-vl-moe",
        shapes="tiny:experts",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-6-experts-kernel",
        "the same, packed for the fused kernel",
        "qwen3-vl-moe",
        shapes="tiny:experts",
        parallelism=Parallelism.EXPERT_KERNEL,
    ),
    Scenario(
        "vl-uneven-width",
        "an intermediate size that four devices do not divide",
        "qwen3-vl-moe",
        shapes="tiny:intermediate",
    ),
    Scenario(
        "vl-uneven-width-experts-whole",
        "the same with experts whole, where it need not divide",
        "qwen3-vl-moe",
        shapes="tiny:intermediate",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-fp8",
        "an FP8 release: a scale for each block",
        "qwen3-vl-moe",
        shapes="tiny:blocks",
        fp8=True,
    ),
    Scenario(
        "mtp-fp8",
        "the same with linear attention, a shared expert and a draft model",
        "qwen3.5-mtp",
        shapes="tiny:blocks",
        fp8=True,
    ),
    Scenario(
        "vl-fp8-expert-2-model-2",
        "an FP8 release on a mesh of all axes",
        "qwen3-vl-moe",
        shapes="tiny:blocks",
        fp8=True,
        mesh="expert=2,model=2",
    ),
    Scenario(
        "mtp-fp8-expert-2-model-2-whole",
        "the same with experts whole",
        "qwen3.5-mtp",
        shapes="tiny:blocks",
        fp8=True,
        mesh="expert=2,model=2",
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "vl-2-hosts",
        "a slice of two hosts with four devices each: every host places a part of every expert",
        "qwen3-vl-moe",
        devices=8,
        hosts=2,
    ),
    Scenario(
        "mtp-2-hosts-experts-whole",
        "the same with a draft model and half of the experts on each host",
        "qwen3.6-mtp",
        devices=8,
        hosts=2,
        parallelism=Parallelism.EXPERT,
    ),
    Scenario(
        "mtp-2-hosts-copies",
        "each host holds a copy of the model",
        "qwen3.5-mtp",
        hosts=2,
        mesh="data=2,model=4",
    ),
)
