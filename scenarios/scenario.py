"""What a scenario is: one checkpoint, and how it is streamed and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

import pytest

from harness.base.bits import Nan
from harness.devices.expert_layout import Backend
from harness.families.family import Family, Part, Storage
from harness.families.formats.format import UNCHANGED
from harness.families.formats.known_formats import format_named
from harness.families.known_families import recipe_named
from harness.families.sizes import ModelShape
from harness.load.meshes import mesh_sizes
from harness.load.target import Implementation, Parallelism, Target
from harness.report.known_issue import Load
from harness.synthetic.values import Values
from harness.synthetic.writer import Order, write_checkpoint

from .rewriting import contradict_ties, number_files, state_dtype, swap_axes


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
        why: what it is there to show, in a sentence that stands alone.
        recipe: which family and storage to write.
        source: a checkpoint that exists, instead of one to write.
        values: special values in every slice.
        parts: the parts to load and compare; a draft model alone shows its own faults on
            releases whose decoder fails first.
        order: the order of the tensors over the files.
        devices: size of the mesh, where the session's will not do.
        parallelism: how experts are spread, alike.
        hosts: processes the mesh is over, alike.
        mesh: axes of the mesh, where it has several (:mod:`harness.load.meshes`).
        impl: which implementation of the model is asked for, where the session's will not do.
        shapes: sizes of the checkpoint to write.
        tied: its head is the embedding.
        ties_contradict: config.json says another thing of that in ``text_config`` than at its top.
        dtype: of the model, as config.json states it, where it is not that of the tensors.
        quantised: the format of a quantised release (:mod:`harness.families.formats`).
        store: where the checkpoint is streamed from, if not from a directory.
        numbered: file names get plain numbers, which sort otherwise as text than as numbers.
        axes_swapped: fused experts are stored as transformers 5 saves them, not as published; the
            reference is the published layout.
        stream_options: variables of the load: ``RUNAI_STREAMER_*``, and those of vLLM's that decide
            what is loaded.
        every_run: whether a run that was not asked for all takes it; of what it shows, a row that
            every run takes shows the most.
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
    impl: Implementation | None = None
    shapes: str = "tiny"
    tied: bool = False
    ties_contradict: bool = False
    dtype: str = ""
    quantised: str = ""
    store: Store = Store.NONE
    numbered: bool = False
    axes_swapped: bool = False
    stream_options: dict[str, str] = field(default_factory=dict)
    every_run: bool = True

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
            quantised=self.quantised,
            files=12 if self.numbered else 4,
        ).path
        if self.ties_contradict:
            contradict_ties(path)
        if self.dtype:
            state_dtype(path, self.dtype)
        if self.numbered:
            number_files(path)
        return path, swap_axes(path) if self.axes_swapped else None

    @property
    def asked(self) -> Implementation | None:
        """The implementation that is asked for; None for the session's.

        Where nobody says, vLLM's for a draft model with its decoder: tpu-inference chooses one for
        each, and refuses two (``mtp-auto``).
        """
        if self.impl is None and self.recipe and set(self.parts) == set(Part):
            return Implementation.VLLM if recipe_named(self.recipe)[1].mtp else None
        return self.impl

    def load(self, target: Target | None = None, layers: int | None = None) -> Load:
        """What is loaded, as known issues ask: sizes and storage as the recipe has them written.

        Args:
            target: where it is loaded to; the mesh of the scenario's own, or of four devices, where
                none is given.
            layers: the decoder's first ones that are loaded; all where None.
        """
        family, recipe = recipe_named(self.recipe)
        shape = family.shape_named(self.shapes)
        storage = {Part.DECODER: recipe.decoder or family.namings[0].storage}
        storage |= {Part.MTP: recipe.mtp} if recipe.mtp else {}
        sizes = mesh_sizes(self.mesh)[0].values() if self.mesh else [self.devices or 4]
        return Load(
            family=family.name,
            layers={p: self._layers(p, family, shape, layers) for p in storage if p in self.parts},
            experts=shape.experts,
            storage={p: self._stored_as(s) for p, s in storage.items()},
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            heads=shape.heads,
            vocabulary=shape.vocabulary,
            parallelism=target.parallelism if target else self.parallelism or Parallelism.TENSOR,
            devices=target.devices if target else math.prod(sizes),
            mesh=self.mesh or (target.mesh if target else ""),
            hosts=target.hosts if target else self.hosts or 1,
            tied=self.tied,
            ties_contradict=self.ties_contradict,
            dtype=self.dtype,
            quantised=self.quantised,
            unchanged=UNCHANGED in self.stream_options,
            axes_swapped=self.axes_swapped,
            vision_first=self.order is Order.VISION_FIRST,
            store=str(self.store),
            impl=target.impl if target else self.asked or Implementation.AUTO,
            draft_chosen="DRAFT_MODEL_IMPL_TYPE" in self.stream_options,
            latent=shape.latent is not None and "VLLM_MLA_DISABLE" not in self.stream_options,
            nested=family.is_nested,
        )  # fmt: skip

    def _stored_as(self, storage: Storage) -> Storage:
        """How experts are stored, where a format has them otherwise than bf16."""
        if not self.quantised:
            return storage
        fused = format_named(self.quantised).fused
        return Storage.ALTERNATING if fused else Storage.PER_EXPERT

    def _layers(
        self, part: Part, family: Family, shape: ModelShape, layers: int | None
    ) -> Sequence[int]:
        """A part's layers of experts; of the decoder, among its first ``layers``."""
        if part is Part.MTP:
            return [shape.layers] if family.drafts_follow else [0]
        loaded = range(min(shape.layers, layers or shape.layers))
        return [layer for layer in loaded if shape.has_experts(layer)]

    def nan(self, target: Target) -> Nan:
        """How NaNs count: as the target's way to the device leaves them, where some are planted."""
        return target.nan if self.values is Values.NAN_PAYLOADS else Nan.PAYLOAD


def require_quantised(scenario: Scenario, target: Target) -> None:
    """Skip a quantised release where the harness compares none."""
    on_host = target.backend in (Backend.XLA_TP, Backend.XLA_EP)
    if scenario.quantised not in ("", "fp8") and on_host:
        pytest.skip(f"no comparison of {scenario.quantised} as vLLM lays it out on a host")


def given(checkpoint: str) -> Scenario:
    """The scenario of a checkpoint the user named."""
    name = PurePosixPath(checkpoint).name or checkpoint
    return Scenario(
        id=name, why="A checkpoint named on the command line is loaded.", source=checkpoint
    )
