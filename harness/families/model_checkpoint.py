"""A checkpoint whose family is known: what its ``config.json`` says it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from harness.base.bits import Bits
from harness.base.bounds import (
    MOST_EXPERTS,
    MOST_EXPERTS_OF_ALL_LAYERS,
    flag,
    section,
    shown,
    size,
)
from harness.base.errors import BadInput
from harness.checkpoint.checkpoint import Checkpoint
from harness.checkpoint.fp8_blocks import BLOCK, CODES, SCALE_SUFFIX
from harness.checkpoint.safetensors_file import Index, TensorEntry
from harness.families.family import TIE, ExpertNaming, Family, Part, Storage
from harness.families.formats.block_fp8 import Fp8Blocks
from harness.families.formats.extent import quantised_namings, require_nothing_besides
from harness.families.formats.format import WeightFormat
from harness.families.formats.known_formats import format_of, formats
from harness.families.formats.nvfp4 import MODELOPT_FILE
from harness.families.found import candidates, found_namings
from harness.families.known_families import families, family_of_architecture
from harness.families.storage import ExpertSizes
from harness.families.unknown import account_of, family_of_experts, language_model

if TYPE_CHECKING:
    from harness.families.experts import Listener


class ModelCheckpoint(Checkpoint):
    """A checkpoint, its family and how it is quantised.

    Args:
        path: see :class:`harness.checkpoint.checkpoint.Checkpoint`.
        storage: how its experts are stored, where names and shapes allow several readings.
        experts_only: look at nothing but its experts; where no family describes it, at those that
            the naming rules of known families find.

    Raises:
        BadInput: anything of it is absent, contradicts itself, or is of no known family.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        storage: Storage | None = None,
        *,
        experts_only: bool = False,
    ) -> None:
        super().__init__(path)
        self.storage = storage
        #: Whether nothing but its experts is to be looked at.
        self.experts_only = experts_only
        where = self.location.where("config.json")
        self.family = _family(self)
        below = section(self.config, self.family.text_key, where) if self.family.text_key else None
        #: What config.json says of the language model.
        self.text: dict[str, Any] = self.config if below is None else below
        #: How its experts are quantised; None where they are not.
        self.format = _format(self)
        #: Whether linear layers are quantised, too, by blocks.
        self.fp8 = isinstance(self.format, Fp8Blocks)
        if self.fp8:
            _require_scales(self.entries)
        layers = _require_sizes(self.config, self.text, self.family, self.entries, where)
        self.family = self.family.bound(layers[Part.DECODER], layers.get(Part.MTP, 0))
        if self.format and not (self.fp8 or experts_only):
            require_nothing_besides(self.format, self._quantised, self.entries, self.path)
        #: Hears of all that is read of its tensors, if anything does.
        self.listener: Listener | None = None

    def bits(self, name: str, index: Index = ()) -> Bits:
        """See :meth:`Checkpoint.bits`; the listener hears of it."""
        bits = super().bits(name, index)
        if self.listener is not None:
            self.listener.tensor(name, index, bits)
        return bits

    def of_layer(self, layer: int) -> Mapping[str, Any]:
        """What config.json says of the language model as a layer has it; :attr:`text` as a rule."""
        return self.family.of_layer(self.text, layer)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.family.is_tied(self.config)

    @cached_property
    def expert_sizes(self) -> ExpertSizes:
        """E, D and F, as config.json says.

        Raises:
            BadInput: it does not, or they are out of bounds.
        """
        where = self.location.where("config.json")
        experts, hidden, width = (self.family.size_key(self.text, n) for n in range(3))
        return ExpertSizes(
            size(self.text, experts, where, most=MOST_EXPERTS),
            size(self.text, hidden, where),
            size(self.text, width, where),
        )

    @cached_property
    def namings(self) -> tuple[ExpertNaming, ...]:
        """How its experts are named and stored, part by part: what its tensors say.

        Raises:
            BadInput: see :func:`harness.families.found.found_namings`.
        """
        quantised = self._quantised
        parts = {naming.part for naming in quantised}
        if self.format and not self._plain_parts - parts:
            return quantised
        found = found_namings(self.entries, self.family, self.expert_sizes, self.storage, self.path)
        return (*quantised, *(naming for naming in found if naming.part not in parts))

    @cached_property
    def _quantised(self) -> tuple[ExpertNaming, ...]:
        """How experts are named of which there are codes."""
        if self.format is None:
            return ()
        return quantised_namings(self.format, self.family, self.entries, self.path)

    @cached_property
    def _plain_parts(self) -> set[Part]:
        """Parts that have expert tensors of a release that is not quantised."""
        return {
            naming.part
            for naming in candidates(self.family, None)
            if self.family.layers_of(naming, self.entries)
        }


def _family(checkpoint: ModelCheckpoint) -> Family:
    """The family of a checkpoint, or what stands for one where experts alone are looked at."""
    config, where = checkpoint.config, checkpoint.location.where("config.json")
    architectures = config.get("architectures") or []
    architectures = architectures if isinstance(architectures, list) else [architectures]
    for architecture in architectures:
        if isinstance(architecture, str) and (family := family_of_architecture(architecture)):
            return family
    named = ", ".join(a if isinstance(a, str) else shown(a) for a in architectures[:4])[:200]
    if checkpoint.experts_only:
        entries, storage = checkpoint.entries, checkpoint.storage
        return family_of_experts(named, where, config, entries, storage)
    account = account_of(checkpoint.entries, language_model(config)[1])
    raise BadInput(
        f"unknown architecture {named or '(none)'}: no family describes it; {account.summary}",
        where=where,
        expected="architectures: one of " + ", ".join(f.architecture for f in families()),
        hint="describe it in a file, as docs/own-family.md says, and give that with --family FILE; "
        "or compare its experts alone, with --experts-only\n" + "\n".join(account.lines),
    )


def _format(checkpoint: ModelCheckpoint) -> WeightFormat | None:
    """The format of a quantised release; None where nothing is quantised.

    Raises:
        BadInput: it is quantised in a way that no format describes.
    """
    quantization, file = _quantization(checkpoint)
    if not quantization:
        return None
    if isinstance(quantization, dict) and (found := format_of(quantization)):
        return found
    own = quantization.get("quantization", quantization) if isinstance(quantization, dict) else {}
    named = [own.get(k) for k in ("quant_method", "quant_algo")] if isinstance(own, dict) else []
    known = next(filter(None, named), None)
    raise BadInput(
        f"an unsupported quantisation ({shown(known) if known else 'unknown method'})",
        where=checkpoint.location.where(file),
        expected="no quantization_config, or that of one of " + ", ".join(formats()),
        hint="the bf16 release of the model, or one in a format of these; other quantised layouts "
        "are not covered",
    )


def _quantization(checkpoint: ModelCheckpoint) -> tuple[Any, str]:
    """What is said of how weights are quantised, and in which file.

    vLLM asks config.json, there also for ``compression_config``, and then the file that ModelOpt
    wrote up to 0.29 (``transformers_utils/config.py``, ``get_config``, and ``config/model.py``).
    """
    for said in (checkpoint.config, checkpoint.text):
        for key in ("quantization_config", "compression_config"):
            if said.get(key):
                return said[key], "config.json"
    if MODELOPT_FILE in checkpoint.location.files:
        return checkpoint.read_json(MODELOPT_FILE), MODELOPT_FILE
    return None, "config.json"


def _require_scales(entries: dict[str, TensorEntry]) -> None:
    """Every quantised matrix has a scale for each of its blocks."""
    for name, entry in entries.items():
        if entry.dtype != CODES:
            continue
        scales = entries.get(f"{name}{SCALE_SUFFIX}")
        grid = tuple(-(-size // BLOCK) for size in entry.shape)
        if scales is None or scales.shape != grid:
            raise BadInput(
                f"the scales of {name!r} are "
                + ("absent" if scales is None else f"{shown(list(scales.shape))}"),
                where=str(entry.file),
                expected=f"a tensor {name}{SCALE_SUFFIX} of {shown(list(grid))}, one number for "
                f"each block of {BLOCK} by {BLOCK}",
                hint="finish the download, or take the files of one release",
            )


def _require_sizes(
    config: dict[str, Any],
    text: dict[str, Any],
    family: Family,
    entries: dict[str, TensorEntry],
    where: str,
) -> dict[Part, int]:
    """What the load builds a model by is no larger than the tensors that are there for it.

    Whether the numbers are right is for the reader of each; here they are only kept from making a
    model that no memory holds, in the load under test or in this process.

    Returns:
        The number of layers of each part.
    """
    vision = section(config, "vision_config", where) or {}
    modules = partial(
        size, where=where, least=0, default=0, most=len(entries), why="the tensors that are there"
    )
    counts = {part: modules(text, key) for part, key in family.layer_counts.items()}
    layers = counts[Part.DECODER]
    modules(vision, "depth")
    most = min(MOST_EXPERTS, MOST_EXPERTS_OF_ALL_LAYERS // max(layers, 1))
    size(text, family.size_key(text, 0), where, least=0, default=0, most=most,
         why=f"with {layers} layers")  # fmt: skip
    if family.embedding in entries and (shape := entries[family.embedding].shape):
        size(text, "vocab_size", where, default=1, most=max(shape[0], 1),
             why=f"the rows of {family.embedding}")  # fmt: skip
    for each in (config, text):
        for key in (TIE, *family.tie_keys):
            flag(each, key, where)
    return counts
