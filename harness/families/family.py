"""What a model family is: one object that says everything the harness knows of it.

A family names its architectures, the keys of its ``config.json``, how it stores its experts, and
its modules, block by block (:mod:`harness.families.blocks`). The reader, the comparison, the check
that nothing is left over, the synthetic writer and the page of parameters derive from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.families.blocks import DERIVED, Block, Derived, Row, Shape
from harness.families.layers import ALL_LAYERS, MoeLayers
from harness.families.misread import COMMON_ROAD, Misread
from harness.families.own_models import own_block
from harness.families.sizes import ModelShape, named_shapes, resized
from harness.families.storage import ExpertNaming, ExpertSizes, Part, Projection, Storage

__all__ = [
    "TIE",
    "ExpertNaming",
    "Family",
    "Module",
    "MoeLayers",
    "ParameterRule",
    "Part",
    "Projection",
    "Recipe",
    "Section",
    "Storage",
    "TensorSpec",
    "each_layer",
    "expert_specs",
]  # fmt: skip


#: Keys of the number of experts a layer: as published, and as transformers 5 writes any of them.
EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: The key of config.json that says whether the head is the embedding.
TIE = "tie_word_embeddings"
#: How a reader is told whose a tensor is.
_OWNER = {Part.DECODER: "the target model's own", Part.MTP: "the draft model's own"}


def _once(_: ModelShape) -> Iterable[int]:
    return (0,)


def each_layer(shape: ModelShape) -> Iterable[int]:
    """The numbers of all decoder layers."""
    return range(shape.layers)


@dataclass(frozen=True)
class Module:
    """A block at its place in a section; ``path`` is empty for the section itself.

    ``when`` says in which sizes, and in which layer, it is there; ``device`` what it is called on
    the device, where that is something else.
    """

    path: str
    block: Block
    when: Callable[[ModelShape, int], bool] = lambda shape, number: True
    device: str = ""


@dataclass(frozen=True)
class Section:
    """Modules that repeat together, such as those of a layer.

    Attributes:
        name: in the words of the field.
        path: in the checkpoint; ``{n}`` is the number.
        modules: in the order in which they are stored.
        parts: the parts of the stack that hold them; the others leave their tensors alone.
        numbers: what ``{n}`` runs over.
    """

    name: str
    path: str
    modules: tuple[Module, ...]
    parts: tuple[Part, ...] = (Part.DECODER,)
    numbers: Callable[[ModelShape], Iterable[int]] = _once


class TensorSpec(NamedTuple):
    """One tensor of a checkpoint.

    ``experts`` is E for a fused one, ``transposed`` how it lies; ``fp8``: FP8 releases store it as
    codes with block scales; ``routed``: it holds experts; ``fill`` makes what it may hold of random
    words, where that is not any.
    """

    name: str
    shape: Shape
    experts: int | None = None
    transposed: bool = False
    dtype: str = "BF16"
    fp8: bool = False
    routed: bool = False
    fill: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class ParameterRule:
    """A row of a block at its place: the pattern of its parameter's name, and of its tensors'.

    Attributes:
        row: what upstream does to it.
        pattern: of its name, as :meth:`Family.in_checkpoint` gives it.
        sources: templates of the tensors' names, in the order of the parameter's rows.
        parts: the parts of the stack that hold it.
    """

    row: Row
    pattern: re.Pattern[str]
    sources: tuple[str, ...]
    stored: tuple[re.Pattern[str], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Recipe:
    """A checkpoint that can be written by name.

    Attributes:
        name: its.
        summary: what it is, for a list.
        mtp: how its MTP experts are stored; None for no MTP.
        decoder: how the decoder's are; None for as published.
    """

    name: str
    summary: str
    mtp: Storage | None = None
    decoder: Storage | None = None


#: Writes ``config.json``: of sizes, the number of MTP layers, and whether the head is tied.
WriteConfig = Callable[[ModelShape, int, bool], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        name: how reports and scenarios call it.
        architecture: as ``config.json`` and vLLM's registry call it.
        examples: hub ids of published checkpoints.
        namings: how experts are stored, for each part, the published way first.
        sections: all modules, in the order in which a checkpoint holds them.
        device_names: by part, what device names begin with, and what that is in the checkpoint;
            the longest first.
        recipes: what can be written.
        write_config: its ``config.json``.
        tiny: sizes that load in about a second.
        published: by name, the sizes of published models.
        built_by: by what upstream's errors call a parameter, the key of config.json without which
            it builds none, where tools leave that key out.
        upstream_modules: vLLM's modules of it, imported before the first load is forked.
        fixes: by the file of a positional call, what fixed it; all released with vLLM 0.22.0.
        text_key: where ``config.json`` keeps the language model's sizes; empty where at its top.
        sizes: the keys of E, D and F there, each with its synonyms. Of the first it needs one that
            is there; where several are, they must agree.
        layer_counts: by part, the key of the number of its layers there.
        alternating: vLLM's own parameter of gate and up has their rows in turn.
        misread: the storages that releases of vLLM take for others.
        moe_layers: the keys there that say which of the decoder's layers have experts.
        experts_module: what a layer's module of experts is called on the device.
        head: the name of the head's tensor.
        embedding: the name of the embedding's tensor.
        tie_keys: the keys that say whether the head is the embedding; the first that is there.
        tied_by_default: what holds where none is.
        draft_prefix: what the names of the draft model's own tensors begin with. With ``{layer}``
            in it, ``model.layers.{layer}.``, drafts are numbered on after the decoder's layers,
            in the file as on the device, and so are the names on the device, ``device_names``.
        unannounced_drafts: layers of a draft model that is in the files and not in config.json.
        draft_class: what the class names of vLLM's draft models hold.
        own_names: as :attr:`device_names`, of tpu-inference's own JAX model; None where there is
            none, or where it is not described. Its parameters are called as the checkpoint's
            tensors, but for those prefixes (:mod:`harness.families.own_models`).
        of_layer: what ``config.json`` says of the language model as one of its layers has it.
    """

    name: str
    architecture: str
    examples: tuple[str, ...]
    namings: tuple[ExpertNaming, ...]
    sections: tuple[Section, ...]
    device_names: Mapping[Part, tuple[tuple[str, str], ...]]
    recipes: tuple[Recipe, ...]
    write_config: WriteConfig
    tiny: ModelShape
    published: Mapping[str, ModelShape]
    upstream_modules: tuple[str, ...]
    fixes: Mapping[str, str] = field(default_factory=dict)
    built_by: Mapping[str, str] = field(default_factory=dict)
    text_key: str = "text_config"
    sizes: tuple[tuple[str, ...], ...] = (
        EXPERTS_KEYS, ("hidden_size",), ("moe_intermediate_size",),
    )  # fmt: skip
    layer_counts: Mapping[Part, str] = field(
        default_factory=lambda: {
            Part.DECODER: "num_hidden_layers", Part.MTP: "mtp_num_hidden_layers",
        }
    )  # fmt: skip
    misread: tuple[Misread, ...] = COMMON_ROAD
    moe_layers: MoeLayers = ALL_LAYERS
    alternating: bool = False
    experts_module: str = "mlp.experts"
    head: str = "lm_head.weight"
    embedding: str = "model.embed_tokens.weight"
    tie_keys: tuple[str, ...] = (TIE,)
    tied_by_default: bool = False
    draft_prefix: str = "mtp."
    unannounced_drafts: int = 0
    draft_class: str = "MTP"
    own_names: Mapping[Part, tuple[tuple[str, str], ...]] | None = None
    of_layer: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda text, layer: text
    drafts: tuple[int, ...] = ()  # their layers, once a checkpoint has said it (:meth:`bound`)

    def bound(self, decoder_layers: int, drafts: int) -> Family:
        """The family of a checkpoint with so many layers, and so many of a draft model."""
        if "{layer}" not in self.draft_prefix:
            return self
        return replace(self, drafts=tuple(range(decoder_layers, decoder_layers + drafts)))

    @property
    def drafts_follow(self) -> bool:
        """Whether a draft model's layers are numbered on after the decoder's."""
        return "{layer}" in self.draft_prefix

    def served_by_jax(self) -> Family:
        """The family as tpu-inference's own JAX model of it has it on the device.

        Raises:
            BadInput: nothing is known of that.
        """
        if self.own_names is None:
            raise BadInput(
                f"{self.name} was loaded by tpu-inference's own JAX model, whose parameters no "
                "family describes: nothing can be compared",
                where="the devices",
                expected="a family that says what that model's names begin with (own_names)",
                hint="--impl vllm",
            )
        sections = tuple(
            replace(
                section,
                modules=tuple(
                    replace(m, block=own_block(m.block), device="") for m in section.modules
                ),
            )
            for section in self.sections
        )
        return replace(self, sections=sections, device_names=self.own_names)

    def _of_drafts(self, template: str) -> tuple[str, ...]:
        """A template of names for each of the draft's layers; itself where it has no number."""
        if "{layer}" not in template:
            return (template,)
        return tuple(template.replace("{layer}", str(layer)) for layer in self.drafts)

    @cached_property
    def _draft_prefixes(self) -> tuple[str, ...]:
        return self._of_drafts(self.draft_prefix)

    @property
    def is_nested(self) -> bool:
        """Whether the language model is a module of another model, and so in ``config.json``."""
        return bool(self.text_key)

    # What config.json says.

    def size_key(self, text: Mapping[str, Any], number: int) -> str:
        """The key under which ``text`` has a size: of :attr:`sizes` the one that is there.

        Raises:
            BadInput: two of them are there and say different things.
        """
        keys = self.sizes[number]
        there = [key for key in keys if text.get(key) is not None]
        if any(text[key] != text[there[0]] for key in there):
            raise BadInput(
                " and ".join(f"{key} {shown(text[key])}" for key in there),
                where="config.json",
                expected="the same number under each name",
                hint="use the config.json that came with the weights",
            )
        return next(iter(there), next((key for key in keys if key in text), keys[0]))

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head is the embedding.

        Released models and transformers go by the top of ``config.json``, so that decides here,
        and in vLLM for Qwen3-VL (``config/vllm.py``, ``with_hf_config``, 0.26). Qwen3.5 it builds
        by ``text_config`` (``models/qwen3_5.py``, 0.22 to 0.32).
        """
        said = (config[key] for key in self.tie_keys if key in config)
        return bool(next(said, self.tied_by_default))

    def contradicts_ties(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config.json`` says one thing of the tie at its top and another below."""
        if not self.text_key:
            return False
        return self.is_tied(config) != bool(config.get(self.text_key, {}).get(TIE))

    def config_overrides(self, num_layers: int | None) -> dict[str, Any]:
        """vLLM's ``hf_overrides`` that build ``num_layers`` decoder layers; none for None."""
        if num_layers is None:
            return {}
        cut = {self.layer_counts[Part.DECODER]: num_layers}
        return {self.text_key: cut} if self.text_key else cut

    # Which tensor of the checkpoint is which parameter.

    def is_of_experts(self, tensor: str) -> bool:
        """Whether a tensor of the checkpoint looks like one of routed experts, known or not."""
        if any(naming.layer_of(tensor) is not None for naming in self.namings):
            return True
        if f".{self.experts_module.rpartition('.')[2]}." not in tensor:
            return False
        return not any(p.fullmatch(tensor) for rule in self.rules for p in rule.stored)

    def in_checkpoint(self, part: Part, name: str) -> str:
        """A device parameter's name as the checkpoint has it; itself where nothing is known.

        tpu-inference puts ``vllm_model.`` before vLLM's names (``vllm_model_wrapper.py``,
        ``_VllmRunner``), and vLLM, from 0.26 on, ``routed_experts.`` before those of experts.
        """
        name = name.removeprefix("vllm_model.")
        name = name.replace(f".{self.experts_module}.routed_experts.", f".{self.experts_module}.")
        for prefix, instead in self._names_on_device.get(part, ()):
            if name.startswith(prefix):
                return instead + name.removeprefix(prefix)
        return name

    @cached_property
    def _names_on_device(self) -> dict[Part, tuple[tuple[str, str], ...]]:
        """:attr:`device_names` with the numbers of the draft's layers."""
        return {
            part: tuple(
                (before, instead.replace("{layer}", str(layer)))
                for prefix, instead in pairs
                for layer, before in zip(self.drafts or (0,), self._of_drafts(prefix), strict=False)
            )
            for part, pairs in self.device_names.items()
        }

    @cached_property
    def rules(self) -> tuple[ParameterRule, ...]:
        """Every row of every block, where it is."""
        return tuple(
            _rule(section, module, row)
            for section in self.sections
            for module in section.modules
            for row in module.block.rows
        )

    def rule_for(self, name: str, there: Container[str] = ()) -> tuple[Row, tuple[str, ...]] | None:
        """The row of a parameter and the names of its tensors; None where there is none.

        Args:
            name: the parameter's, as :meth:`in_checkpoint` gives it.
            there: the tensors that are there. Of several rows the first is taken that has all of
                its own among them, or else the first.
        """
        found: tuple[Row, tuple[str, ...]] | None = None
        for rule in self.rules:
            if match := rule.pattern.fullmatch(name):
                sources = tuple(match.expand(source) for source in rule.sources)
                if not there or all(source in there for source in sources):
                    return rule.row, sources
                found = found or (rule.row, sources)
        return found

    def derived_for(self, name: str) -> Derived | None:
        """The row of a derived buffer, or None."""
        return next((row for row in DERIVED if re.fullmatch(row.pattern, name)), None)

    def unused_reason(
        self, part: Part, tensor: str, tied: bool, present: Collection[Part] = tuple(Part)
    ) -> str:
        """Why ``part`` leaves ``tensor`` alone; empty when it should not.

        Args:
            part: the part of the stack.
            tensor: the tensor's name in the checkpoint.
            tied: whether config.json ties the head to the embedding.
            present: the parts that the model has.
        """
        if tensor == self.head and tied:
            return f"tied to the embedding, where config.json says {TIE}"
        owners = self._owners(tensor)
        is_others = bool(owners) and part not in owners and owners[0] in present
        return _OWNER[owners[0]] if is_others else ""

    def part_of(self, tensor: str) -> Part:
        """The part of the stack that a tensor is of by its name, known or not."""
        return Part.MTP if tensor.startswith(self._draft_prefixes) else Part.DECODER

    def _owners(self, tensor: str) -> tuple[Part, ...]:
        """The parts of the stack that hold a tensor; none where no block says so.

        What lies in a draft model or in a numbered module, a layer say, is of whose that is.
        """
        if tensor.startswith(self._draft_prefixes):
            return (Part.MTP,)
        for section in self.sections:
            before, numbered, _ = section.path.partition("{n}")
            if numbered and tensor.startswith(before):
                return section.parts
        for rule in self.rules:
            if any(pattern.fullmatch(tensor) for pattern in rule.stored):
                return rule.parts
        return ()

    def layer_of(self, name: str) -> int | None:
        """The language model's layer a parameter or tensor belongs to, if it belongs to one."""
        match = _LAYER.search(name)
        return int(match[1]) if match else None

    def decoder_layer(self, tensor: str) -> int | None:
        """The decoder's layer that a tensor of the checkpoint belongs to, if it belongs to one."""
        naming = next(naming for naming in self.namings if naming.part is Part.DECODER)
        before = re.escape(naming.prefix.split("{layer}")[0])
        found = re.match(before + r"(0|[1-9][0-9]*)\.", tensor)
        return int(found[1]) if found and int(found[1]) not in self.drafts else None

    def tensors_in(self, naming: ExpertNaming, names: Iterable[str]) -> dict[str, int]:
        """Those of ``names`` that are expert tensors of a naming and of its part, with the layer.

        Where drafts are numbered on after the decoder's layers, the number tells whose it is.
        """
        found = {name: layer for name in names if (layer := naming.layer_of(name)) is not None}
        if not self.drafts_follow:
            return found
        is_draft = naming.part is Part.MTP
        return {name: n for name, n in found.items() if (n in self.drafts) is is_draft}

    def layers_of(self, naming: ExpertNaming, names: Iterable[str]) -> tuple[int, ...]:
        """The layers, ascending, for which ``names`` holds any expert tensor of a naming."""
        return tuple(sorted(set(self.tensors_in(naming, names).values())))

    # What upstream calls it.

    def part_of_class(self, name: str) -> Part:
        """The part of the stack that vLLM's model class of this name is."""
        return Part.MTP if self.draft_class in name else Part.DECODER

    # What a synthetic checkpoint holds.

    def shape_named(
        self, shapes: str, layers: int | None = None, experts: int | None = None
    ) -> ModelShape:
        """The sizes of that name, with layers and experts overridden.

        Args:
            shapes: ``tiny``; ``tiny:`` and the size that is uneven, ``vocabulary``, ``experts`` or
                ``intermediate``, or ``blocks``, or ``square`` (2F = D); or ``published:`` and one
                of :attr:`published`.
            layers: number of decoder layers instead of the shape's own.
            experts: number of experts a layer instead of the shape's own.

        Raises:
            BadInput: an unknown shape, or a count that no router can work with.
        """
        known = named_shapes(self.tiny, dict(self.published))
        if shapes not in known:
            raise BadInput(
                f"unknown shapes {shapes!r} for {self.name}",
                where="--shapes",
                expected="one of " + ", ".join(known),
                hint="--shapes tiny",
            )
        return resized(known[shapes], layers, experts)

    def tensors(
        self,
        shape: ModelShape,
        mtp: Storage | None,
        first: str = "",
        decoder: Storage | None = None,
    ) -> Iterator[TensorSpec]:
        """Every tensor of a checkpoint, in published order.

        Args:
            shape: its sizes.
            mtp: how the draft model's experts are stored; None for none.
            first: the name of a section that comes before all others.
            decoder: how the decoder's experts are stored; None for as published.
        """
        storages = {Part.MTP: mtp, Part.DECODER: decoder}
        for section in sorted(self.sections, key=lambda section: section.name != first):
            if section.parts == (Part.MTP,) and mtp is None:
                continue
            naming = self._naming(section.parts[0], storages.get(section.parts[0]))
            for number in section.numbers(shape):
                for module in section.modules:
                    if module.when(shape, number):
                        yield from _specs(section, module, shape, number, naming)

    def _naming(self, part: Part, storage: Storage | None) -> ExpertNaming | None:
        fitting = (n for n in self.namings if n.part is part and storage in (None, n.storage))
        return next(fitting, None)


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def _joined(*words: str) -> str:
    return ".".join(word for word in words if word)


def _rule(section: Section, module: Module, row: Row) -> ParameterRule:
    names = "|".join(map(re.escape, (row.parameter, *row.copies)))
    device = _pattern(_joined(section.path, module.device or module.path))
    stored = _joined(section.path, module.path)
    before = stored.replace("{n}", r"\g<1>") + "." if stored else ""
    return ParameterRule(
        row,
        re.compile(device + (f"(?:{names})" if row.copies else names)),
        tuple(before + name for name, _ in row.stored),
        tuple(re.compile(_pattern(stored) + re.escape(name)) for name, _ in row.stored),
        section.parts,
    )


def _pattern(path: str) -> str:
    """The expression for what comes before the names in a module; its group is the number."""
    return re.escape(path + "." if path else "").replace(re.escape("{n}"), r"(\d+)")


def _specs(
    section: Section,
    module: Module,
    shape: ModelShape,
    number: int,
    naming: ExpertNaming | None,
) -> Iterator[TensorSpec]:
    path = _joined(section.path, module.path).replace("{n}", str(number))
    for row in module.block.rows:
        for name, shape_of in dict.fromkeys(row.stored):
            yield TensorSpec(_joined(path, name), shape_of(shape), dtype=row.stored_as, fp8=row.fp8)
    if module.block.experts and naming:
        yield from expert_specs(naming, number, shape)


def expert_specs(naming: ExpertNaming, layer: int, shape: ModelShape) -> Iterator[TensorSpec]:
    """The expert tensors of one layer."""
    sizes = ExpertSizes(shape.experts, shape.hidden, shape.intermediate)
    for tensor in naming.tensors(layer, sizes):
        yield TensorSpec(
            tensor.name, tensor.shape, None if tensor.expert is not None else shape.experts,
            naming.storage.is_transposed, routed=True,
        )  # fmt: skip
