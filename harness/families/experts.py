"""The reference experts: every expert's three matrices, sliced lazily out of a checkpoint.

All expert views, this one and the device's, give a matrix in one orientation, that of a linear
layer's weight: [output features, input features], so gate and up are [F, D] and down is [D, F].
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from harness.base.bits import Bits, converted, model_dtype
from harness.base.bounds import shown, size
from harness.base.errors import BadInput
from harness.checkpoint.grids import Quantised
from harness.checkpoint.safetensors_file import Index
from harness.families.family import Family
from harness.families.formats.format import Stored
from harness.families.model_checkpoint import ModelCheckpoint
from harness.families.storage import (
    ExpertNaming,
    ExpertTensor,
    Part,
    Projection,
    StoredMatrix,
)


class ExpertKey(NamedTuple):
    """Names one matrix of one expert."""

    part: Part
    layer: int
    expert: int
    projection: Projection

    def __str__(self) -> str:
        return f"{self.part} layer {self.layer} expert {self.expert} {self.projection}"


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of a part's experts: E ``experts``, D ``hidden``, F ``intermediate``.

    ``dtype`` is what the device is to hold: the model's, or that of a quantised release's codes.
    """

    experts: int
    hidden: int
    intermediate: int
    dtype: str


class TensorSlice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a checkpoint has a matrix or a tensor.

    Attributes:
        file: its name.
        tensor: in that file.
        slice: of the tensor, as Python would write it; empty for all of it.
        copy: which of its copies on the device is meant, 0 for the first.
    """

    file: str
    tensor: str
    slice: str = ""
    copy: int = 0

    def __str__(self) -> str:
        copy = f" (copy {self.copy})" if self.copy else ""
        return f"{self.file} {self.tensor}{self.slice}{copy}"


class Listener(ABC):
    """Hears of what is read of a checkpoint's tensors, in the thread that reads it."""

    @abstractmethod
    def matrix(self, key: ExpertKey, bits: Bits, dtype: str) -> None:
        """An expert's matrix was read: [output, input], as it is stored."""

    @abstractmethod
    def tensor(self, name: str, index: Index, bits: Bits) -> None:
        """A tensor was read, or what stands at an index of it, as it is stored."""

    @abstractmethod
    def digests(
        self, what: ExpertKey | str, digests: Mapping[str, Any], rows: Any | None = None
    ) -> None:
        """A matrix, or a tensor or rows of it, was read and digested at once.

        Args:
            what: which.
            digests: by the type of the parameter, words of uint32 [4].
            rows: of the tensor's first axis; None for all.
        """


class ReferencePart(Mapping[ExpertKey, Bits]):
    """The experts of one part of a checkpoint: a lazy mapping of keys to bits.

    Values are read when they are asked for, by one range of the file or of a store's object, and
    converted where a tensor's type is not the one the device is to hold
    (:func:`harness.base.bits.converted`): uint of the width of ``shape.dtype``, [F, D] for gate and
    up, [D, F] for down.

    Args:
        checkpoint: where the tensors are.
        naming: how this part's experts are named and stored.
        num_layers: of the decoder, this many layers from the first on.

    Raises:
        BadInput: a tensor of a layer is absent, shapes contradict the layout that the family
            publishes, a quantised release has tensors of another type, or config.json states a
            dtype that no model is made in.
    """

    def __init__(
        self, checkpoint: ModelCheckpoint, naming: ExpertNaming, num_layers: int | None = None
    ) -> None:
        self.part = naming.part
        self.naming = naming
        self.layers = checkpoint.family.layers_of(naming, checkpoint.entries)
        if num_layers is not None and self.part is Part.DECODER:
            self.layers = tuple(layer for layer in self.layers if layer < num_layers)
        self.checkpoint = checkpoint
        self._last = threading.local()
        stored = {entry.dtype for entry in checkpoint.entries.values()}
        where = checkpoint.location.where("config.json")
        self.model_dtype = model_dtype(checkpoint.config, stored, where)
        sizes = checkpoint.expert_sizes
        self.format = checkpoint.format if naming.suffix else None
        dtype = self.format.form.dtype if self.format else self.model_dtype
        self.shape = ExpertShape(sizes.experts, sizes.hidden, sizes.intermediate, dtype)
        for layer in self.layers:
            self._require_layout(layer)

    def __len__(self) -> int:
        return len(self.layers) * self.shape.experts * len(Projection)

    def __iter__(self) -> Iterator[ExpertKey]:
        for layer in self.layers:
            yield from self.keys_of(layer)

    def keys_of(self, layer: int) -> Iterator[ExpertKey]:
        """The keys of one layer: experts ascending, gate, up, down."""
        for expert in range(self.shape.experts):
            for projection in Projection:
                yield ExpertKey(self.part, layer, expert, projection)

    def __getitem__(self, key: ExpertKey) -> Bits:
        if self.format:
            return self.quantised(key).codes
        return converted(*self.stored(key), self.shape.dtype)

    def quantised(self, key: ExpertKey) -> Quantised:
        """Codes and scales of ``key``, [output, input], of a quantised release."""
        assert self.format
        return self.format.decoded(self._tensors_of(key), *self.sizes_of(key.projection))

    def _tensors_of(self, key: ExpertKey) -> dict[str, Stored]:
        """By suffix, the tensors that a matrix follows from."""
        assert self.format
        name, index, _ = self.stored_matrix(key)
        stored = {}
        for kind in self.format.tensors:
            if kind.weighs:
                tensor = self.naming.beside(name, kind.suffix)
                entry = self.checkpoint.entries[tensor]
                bits = self._block(tensor, key.expert)[index[1:]] if index else entry.bits()
                stored[kind.suffix] = Stored(bits, entry.dtype)
        return stored

    def misread(self, key: ExpertKey) -> Iterator[tuple[str, str, Quantised]]:
        """What the format says ``key`` may be mistaken for: of what kind, in words, and that."""
        assert self.format
        yield from self.format.misread(self._tensors_of(key), *self.sizes_of(key.projection))

    @property
    def packed_shape(self) -> ExpertShape:
        """Sizes of an expert on the devices, which a quantised release may be padded to.

        ``quantize_moe_weights`` pads D to blocks of w13's inputs, and F to those of w2's, which are
        no longer than F (tpu-inference ``moe_weights.py``, 0.26 and 0.32).
        """
        form = self.format.form if self.format else None
        if form is None or not form.padded or form.block is None:
            return self.shape
        hidden, narrow = self.shape.hidden, min(form.block, self.shape.intermediate)
        return replace(
            self.shape,
            hidden=-(-hidden // form.block) * form.block,
            intermediate=-(-self.shape.intermediate // narrow) * narrow,
        )

    def sizes_of(self, projection: Projection) -> tuple[int, int]:
        """Outputs and inputs of a matrix."""
        wide, narrow = self.shape.hidden, self.shape.intermediate
        return (wide, narrow) if projection is Projection.DOWN else (narrow, wide)

    def stored(self, key: ExpertKey) -> tuple[Bits, str]:
        """The bits of ``key`` as the checkpoint has them, [output, input], and their dtype.

        Of a quantised release the codes as the device is to hold them.
        """
        if self.format:
            return self.quantised(key).codes, self.shape.dtype
        name, index, transposed = self.stored_matrix(key)
        dtype = self.checkpoint.entries[name].dtype
        matrix = self._block(name, key.expert)[index[1:]] if index else self.checkpoint.bits(name)
        matrix = matrix.T if index and transposed else matrix
        if self.checkpoint.listener is not None:
            self.checkpoint.listener.matrix(key, matrix, dtype)
        return matrix, dtype

    def _block(self, name: str, expert: int) -> Bits:
        """One expert's part of a fused tensor; gate and up are asked for one after the other.

        Each thread keeps the last few, so that each is read once: as many as a matrix has tensors.
        """
        kept: dict[tuple[str, int], Bits] = self._last.__dict__.setdefault("blocks", {})
        if (name, expert) not in kept:
            kept[name, expert] = self.checkpoint.bits(name, (expert,))
            for old in list(kept)[: -(len(self.format.tensors) if self.format else 1)]:
                del kept[old]
        return kept[name, expert]

    def source(self, key: ExpertKey) -> TensorSlice:
        """File, tensor and slice of ``key``, as a reader would write them."""
        name, index, _ = self.stored_matrix(key)
        file = self.checkpoint.entries[name].file.name
        if not index:
            return TensorSlice(file, name)
        return TensorSlice(file, name, f"[{', '.join(map(_as_text, index))}]")

    def stored_matrix(self, key: ExpertKey) -> StoredMatrix:
        """Where the checkpoint has ``key``."""
        return self.naming.matrix(key.layer, key.expert, key.projection, self.shape.intermediate)

    def names_of(self, layer: int) -> Collection[str]:
        """The names of a layer's expert tensors."""
        return [tensor.name for tensor in self.tensors_of(layer)]

    def tensors_of(self, layer: int, naming: ExpertNaming | None = None) -> Iterator[ExpertTensor]:
        """The tensors a layer must have, by its own naming or by another.

        Of a quantised release also those that lie beside the codes and are there.
        """
        naming = naming or self.naming
        for tensor in naming.tensors(layer, self.checkpoint.expert_sizes):
            yield from self._stored_as(naming, tensor) if self.format else (tensor,)

    def _stored_as(self, naming: ExpertNaming, tensor: ExpertTensor) -> Iterator[ExpertTensor]:
        assert self.format
        *experts, outputs, inputs = tensor.shape
        for kind in self.format.tensors:
            name = naming.beside(tensor.name, kind.suffix)
            if not kind.optional or name in self.checkpoint.entries:
                shape = (*experts, *kind.shape(outputs, inputs))
                dtypes = () if kind.converted else (kind.dtype,)
                yield ExpertTensor(name, shape, tensor.expert, dtypes)

    def _require_layout(self, layer: int) -> None:
        wanted = list(self.tensors_of(layer))
        for name, sizes, _, dtypes in wanted:
            entry = self.checkpoint.entries.get(name)
            if entry is None:
                raise BadInput(
                    f"expert tensor {name!r} is missing",
                    where=self.checkpoint.path,
                    expected=f"{len(wanted)} expert tensors in {self.part} layer {layer}",
                    hint="finish the download, or correct num_experts in config.json",
                )
            stored = entry.shape == sizes or math.prod(entry.shape) == 1 == math.prod(sizes)
            if not stored or (dtypes and entry.dtype not in dtypes):
                dtype = " or ".join(dtypes) or entry.dtype
                raise BadInput(
                    f"expert tensor {name!r} is {entry.dtype} {list(entry.shape)}",
                    where=str(entry.file),
                    expected=f"{dtype} {list(sizes)}, by config.json and the storage of the other "
                    f"tensors or of the published {self.checkpoint.family.name} "
                    f"({self.naming.storage})",
                    hint="use the complete files and the config.json of one model",
                )


def _as_text(index: int | slice) -> str:
    if isinstance(index, int):
        return str(index)
    start, stop = ("" if end is None else str(end) for end in (index.start, index.stop))
    return f"{start}:{stop}" + ("" if index.step is None else f":{index.step}")


def reference_parts(
    checkpoint: ModelCheckpoint,
    num_layers: int | None = None,
    asked: Collection[Part] = tuple(Part),
) -> tuple[ReferencePart, ...]:
    """The experts of ``checkpoint``, part by part: the decoder, then the MTP layer if it has one.

    Args:
        checkpoint: where they are.
        num_layers: cut the decoder to its first layers, as an override of the model's
            configuration cuts it for the load.
        asked: the parts that somebody asked for. A draft model may be announced and absent where
            nobody did, or nobody did for it alone (:func:`absent_parts`).

    Raises:
        BadInput: there is no expert tensor, expert tensors of a part stand in two storages, or
            a tensor that looks like an expert's has a name that no storage gives it.
    """
    parts = [ReferencePart(checkpoint, naming) for naming in checkpoint.namings]
    names = [part.part for part in parts]
    if Part.DECODER not in names or len(set(names)) != len(names):
        raise BadInput(
            "no decoder experts" if Part.DECODER not in names else "a part is stored twice",
            where=checkpoint.path,
            expected=f"the tensors of {checkpoint.family.name}, each part once",
            hint="the published files; a directory may hold two formats of the same weights",
        )
    for part in Part:
        found = next((p.layers for p in parts if p.part is part), ())
        if found or (part in asked and part not in absent_parts(checkpoint, asked)):
            _require_described(checkpoint, part)
            _require_layers(checkpoint, part, found)
    _require_no_stray(checkpoint, parts, asked)
    if num_layers is None:
        return tuple(parts)
    _require_cut(parts, num_layers)
    return tuple(ReferencePart(checkpoint, part.naming, num_layers) for part in parts)


def _require_cut(parts: list[ReferencePart], num_layers: int) -> None:
    """The cut leaves a layer with experts, and leaves the draft model where it was."""
    decoder = next(part for part in parts if part.part is Part.DECODER)
    count, least = announced_layers(decoder.checkpoint, Part.DECODER), decoder.layers[0] + 1
    if not least <= num_layers <= count:
        raise BadInput(
            f"a load of {num_layers} layers",
            where="--num-layers",
            expected=f"{least} to {count}, the layers of the checkpoint"
            + (f"; those before {decoder.layers[0]} have no experts" if least > 1 else ""),
            hint=f"--num-layers {least}",
        )


def announced_layers(checkpoint: ModelCheckpoint, part: Part) -> int:
    """How many layers of ``part`` config.json announces; 0 where it has none.

    Raises:
        BadInput: it announces no number, or more layers than there are tensors.
    """
    where, most = checkpoint.location.where("config.json"), len(checkpoint.entries)
    family, default = checkpoint.family, 0
    if part is Part.MTP and any(
        name.startswith(family.draft_prefix) for name in checkpoint.entries
    ):
        default = family.unannounced_drafts
    key = family.layer_counts[part]
    return size(checkpoint.text, key, where, least=0, most=most, default=default)


def is_absent(checkpoint: ModelCheckpoint, part: Part) -> bool:
    """Whether config.json announces a draft model of which no file holds any tensor.

    transformers neither loads nor saves draft models and keeps the key of their number
    (``num_mtp_layers`` of ``configuration_glm4_moe.py``, 5.23), so a fine-tuned model has none.
    Files that the index does not name count: vLLM streams them, too.
    """
    if part is not Part.MTP or not announced_layers(checkpoint, part):
        return False
    names = (*checkpoint.entries, *(entry.name for entry in checkpoint.beside))
    return not any(checkpoint.family.part_of(name) is part for name in names)


def absent_parts(checkpoint: ModelCheckpoint, asked: Collection[Part]) -> tuple[Part, ...]:
    """Those of the parts that were asked for that are absent; none where all of them are."""
    absent = tuple(part for part in asked if is_absent(checkpoint, part))
    return absent if len(absent) < len(asked) else ()


def announced_moe_layers(checkpoint: ModelCheckpoint, part: Part) -> tuple[int, ...]:
    """The layers of ``part`` that have experts, as config.json announces them.

    Raises:
        BadInput: as :func:`announced_layers`, or it says no such thing of dense layers.
    """
    family, where = checkpoint.family, checkpoint.location.where("config.json")
    count = announced_layers(checkpoint, part)
    if part is Part.DECODER:
        return family.moe_layers.of(checkpoint.text, count, where)
    return family.drafts if family.drafts_follow else tuple(range(count))


def _listed(layers: tuple[int, ...]) -> str:
    if not layers:
        return "none"
    first, last = layers[0], layers[-1]
    if layers == tuple(range(first, last + 1)):
        return f"layers {first} to {last}"
    return f"layers {shown(list(layers))}"


def _require_layers(checkpoint: ModelCheckpoint, part: Part, found: tuple[int, ...]) -> None:
    """The layers in the files must be those config.json announces: the loader builds the latter."""
    key = checkpoint.family.layer_counts[part]
    announced = announced_moe_layers(checkpoint, part)
    if found != announced:
        raise BadInput(
            f"{part} layers with experts in the files: {shown(list(found)) if found else 'none'}",
            where=checkpoint.path,
            expected=_listed(announced) + f", according to {key} in config.json",
            hint="finish the download, or take config.json and files from the same revision"
            + (
                f"; if a tool dropped the draft model, --only {Part.DECODER}"
                if part is Part.MTP and not found
                else ""
            ),
        )


def _is_described(family: Family, part: Part) -> bool:
    return any(naming.part is part for naming in family.namings)


def _require_described(checkpoint: ModelCheckpoint, part: Part) -> None:
    """A draft model that is in the files and not in the family is not taken for one that is not."""
    family = checkpoint.family
    if _is_described(family, part) or not announced_layers(checkpoint, part):
        return
    if is_absent(checkpoint, part):
        return
    raise BadInput(
        f"a draft model ({part}), which the family {family.name} does not describe",
        where=checkpoint.path,
        expected="a part that the family describes: its decoder",
        hint=f"--only {Part.DECODER}",
    )


def _require_no_stray(
    checkpoint: ModelCheckpoint, parts: list[ReferencePart], asked: Collection[Part]
) -> None:
    family = checkpoint.family
    unasked = {p for p in Part if p not in asked and not _is_described(family, p)}
    covered = {name for part in parts for layer in part.layers for name in part.names_of(layer)}
    stray = sorted(
        name
        for name in checkpoint.entries
        if family.is_of_experts(name)
        and name not in covered
        and family.part_of(name) not in unasked
    )
    if stray:
        raise BadInput(
            f"{len(stray)} expert tensors would not be compared, the first is {stray[0]!r}",
            where=str(checkpoint.entries[stray[0]].file),
            expected=f"only the expert tensors {family.name} publishes",
            hint="correct num_experts in config.json, or add the naming to the family",
        )
