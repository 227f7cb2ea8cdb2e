"""A checkpoint that no family describes: what the naming rules of known families find in it.

A rule is what follows a layer's number in the names of a known family: its experts' module, their
names and how they lie; and for all other tensors the names of its blocks. Experts are believed only
where the shapes say the same as the names. What is found here is never called a family: it tells
what is missing, and lets experts alone be compared (``--experts-only``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.families.family import EXPERTS_KEYS, Family
from harness.families.found import candidates
from harness.families.known_families import families
from harness.families.layers import MoeLayers
from harness.families.sizes import TINY
from harness.families.storage import ExpertNaming, ExpertSizes, ExpertTensor, Part, Storage

#: Names that are listed of what nobody knows; the others are counted.
_SHOWN = 12


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint's experts that names and shapes both allow.

    Attributes:
        naming: their names, with all that comes before the number of a layer.
        module: what a layer's module of experts is called on the device.
        layers: those that have experts, ascending.
        sizes: E, D and F, by the shapes.
        names: of all tensors that hold experts.
    """

    naming: ExpertNaming
    module: str
    layers: tuple[int, ...]
    sizes: ExpertSizes
    names: frozenset[str]

    def __str__(self) -> str:
        tensors = ", ".join(self.naming.names)
        return (
            f"{self.sizes.experts} experts in each of {len(self.layers)} layers "
            f"({_listed(self.layers)}), {self.naming.storage}, "
            f"{self.naming.prefix.replace('{layer}', '*')}: {tensors}; "
            f"hidden size {self.sizes.hidden}, width {self.sizes.intermediate}"
        )


class NamingRule(NamedTuple):
    """What follows the number of a layer in the names of a known family's experts."""

    after: str
    storage: Storage
    names: tuple[str, ...]
    module: str


@dataclass(frozen=True)
class UnknownTensors:
    """Every tensor of a checkpoint that no family describes.

    Attributes:
        tensors: how many there are.
        readings: of its experts; several where names and shapes allow several.
        kinds: of other tensors whose names known families have, and how many there are of each.
        unknown: the patterns of all other names, with ``*`` for numbers, and how many have each.
    """

    tensors: int
    readings: tuple[Reading, ...]
    kinds: Mapping[str, int]
    unknown: Mapping[str, int]

    @property
    def summary(self) -> str:
        """In half a line: how many tensors are accounted for, and how many are not."""
        left = sum(self.unknown.values())
        known = self.tensors - left
        return f"by names, {known} of its {self.tensors} tensors can be accounted for, {left} not"

    @property
    def lines(self) -> tuple[str, ...]:
        """In lines: what can be accounted for, and what not."""
        experts = [f"  {reading}" for reading in self.readings]
        kinds = [f"  {count:>6} {kind}" for kind, count in self.kinds.items()]
        unknown = [f"  {count:>6} {name}" for name, count in self.unknown.items()]
        if len(unknown) > _SHOWN:
            unknown = [
                *unknown[:_SHOWN],
                f"         and {len(unknown) - _SHOWN} more kinds of name",
            ]
        several = " (names and shapes allow several readings)" if len(experts) > 1 else ""
        return (
            f"experts by the rules of known families{several}:", *(experts or ["  none"]),
            "other tensors with names of known families:", *(kinds or ["  none"]),
            "tensors that nobody accounts for:", *(unknown or ["  none"]),
        )  # fmt: skip


def account_of(entries: Mapping[str, TensorEntry], text: Mapping[str, Any]) -> UnknownTensors:
    """Account for a checkpoint's tensors by the naming rules of all known families.

    Args:
        entries: its tensors.
        text: what ``config.json`` says of the language model; its hidden size is asked for alone.
    """
    readings = readings_of(entries, text)
    tails = _known_tails()
    experts = {name for reading in readings for name in reading.names}
    kinds: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for name in entries:
        if name in experts:
            continue
        if kind := tails.get(_tail(name)):
            kinds[kind] += 1
        else:
            unknown[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)] += 1
    return UnknownTensors(len(entries), readings, kinds, unknown)


def language_model(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Where ``config.json`` has the language model's sizes: the key, empty for its top; they."""
    below = config.get("text_config")
    return ("text_config", below) if isinstance(below, dict) else ("", config)


#: Keys of F: those of known families, then what any other model calls it.
_WIDTHS = ("moe_intermediate_size", "intermediate_size", "expert_intermediate_size", "ffn_dim")
#: What a report calls an architecture without a family, if that has no name to be shown.
_UNKNOWN = "unknown"


def family_of_experts(
    name: str,
    where: str,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    asked: Storage | None = None,
) -> Family:
    """What stands for a family where experts alone are looked at: their names, and no block.

    Args:
        name: of the architecture; what a report calls it.
        where: its ``config.json`` is, for errors.
        config: its ``config.json``.
        entries: its tensors.
        asked: the storage that the user says it is, which decides between readings.

    Raises:
        BadInput: the rules of known families find no experts, or several readings of them; or
            ``config.json`` has another number of them, or another width.
    """
    text_key, text = language_model(config)
    readings = readings_of(entries, text, asked)
    if len(readings) != 1:
        raise _unread(where, entries, text, readings)
    (reading,) = readings
    return Family(
        name=name or _UNKNOWN,
        architecture="",
        examples=(),
        namings=(reading.naming,),
        sections=(),
        device_names={},
        recipes=(),
        write_config=lambda shape, mtp_layers, tied: {},
        tiny=TINY,
        published={},
        upstream_modules=(),
        text_key=text_key,
        sizes=(
            _keys(where, text, EXPERTS_KEYS, reading.sizes.experts, "experts"),
            ("hidden_size",),
            _keys(where, text, _widths(), reading.sizes.intermediate, "features of an expert"),
        ),
        moe_layers=_Found(found=reading.layers),
        experts_module=reading.module,
    )


@dataclass(frozen=True)
class _Found(MoeLayers):
    """The layers that were found to have experts, whatever ``config.json`` says of them."""

    found: tuple[int, ...] = ()

    def of(self, text: Mapping[str, Any], layers: int, where: str) -> tuple[int, ...]:
        """Those of them that a decoder of so many layers has."""
        return tuple(layer for layer in self.found if layer < layers)


def _widths() -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(k for f in families() for k in f.sizes[2]), *_WIDTHS]))


def _keys(
    where: str, text: Mapping[str, Any], keys: tuple[str, ...], number: int, what: str
) -> tuple[str, ...]:
    """The key under which ``config.json`` has a size that the shapes say."""
    found = tuple(key for key in keys if text.get(key) == number)
    if found:
        return found[:1]
    there = {key: text[key] for key in keys if key in text}
    raise BadInput(
        f"the files hold {number} {what}, config.json says {shown(there) if there else 'nothing'}",
        where=where,
        expected=f"{number} as one of {', '.join(keys)}",
        hint="take config.json and files of one revision, or describe the family: --family FILE",
    )


def _unread(
    where: str,
    entries: Mapping[str, TensorEntry],
    text: Mapping[str, Any],
    readings: tuple[Reading, ...],
) -> BadInput:
    told = f"{len(readings)} readings of the experts: {'; or '.join(map(str, readings))}"
    storages = dict.fromkeys(str(reading.naming.storage) for reading in readings)
    ways = [f"--storage {storage}" for storage in storages] if len(storages) > 1 else []
    ways.append("describe the family in a file, as docs/own-family.md says: --family FILE")
    return BadInput(
        told if readings else "the naming rules of known families find no experts",
        where=where,
        expected="experts whose names and shapes fit exactly one rule",
        hint=" or ".join(ways) + "\n" + "\n".join(account_of(entries, text).lines),
    )


def readings_of(
    entries: Mapping[str, TensorEntry], text: Mapping[str, Any], asked: Storage | None = None
) -> tuple[Reading, ...]:
    """Every way to read experts that a known rule, all shapes and the hidden size allow.

    Args:
        entries: the tensors.
        text: what ``config.json`` says of the language model.
        asked: the storage that the user says it is; any where None.
    """
    found = []
    for rule in rules(asked):
        for before, layers in _layers_by_prefix(rule, entries).items():
            naming = ExpertNaming(
                Part.DECODER, f"{before}{{layer}}{rule.after}", rule.storage, rule.names
            )
            reading = _reading(naming, rule.module, tuple(sorted(layers)), entries)
            if reading and text.get("hidden_size") in (None, reading.sizes.hidden):
                found.append(reading)
    return tuple(found)


def rules(asked: Storage | None = None) -> tuple[NamingRule, ...]:
    """The rules of all known families, each once, in every storage their names may stand for."""
    found: dict[tuple[object, ...], NamingRule] = {}
    for family in families():
        for naming in candidates(family, asked):
            after = naming.prefix.partition("{layer}")[2]
            rule = NamingRule(after, naming.storage, naming.names, family.experts_module)
            found.setdefault(rule[:3], rule)
    return tuple(rule for rule in found.values() if asked in (None, rule.storage))


def _layers_by_prefix(rule: NamingRule, entries: Mapping[str, TensorEntry]) -> dict[str, set[int]]:
    """By what comes before its number, the layers that have any tensor of a rule's name."""
    names = "|".join(map(re.escape, rule.names))
    each = rf"\d+\.(?:{names})\.weight" if rule.storage is Storage.PER_EXPERT else f"(?:{names})"
    pattern = re.compile(rf"((?:.*\.)?)(\d{{1,6}}){re.escape(rule.after)}\.{each}")
    found: dict[str, set[int]] = {}
    for name in entries:
        if rule.after in name and (match := pattern.fullmatch(name)):
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


def _reading(
    naming: ExpertNaming,
    module: str,
    layers: tuple[int, ...],
    entries: Mapping[str, TensorEntry],
) -> Reading | None:
    """The reading by a naming, if every tensor of every layer is there in its shape."""
    sizes = _sizes(naming, layers[0], entries)
    if sizes is None:
        return None
    tensors = [tensor for layer in layers for tensor in naming.tensors(layer, sizes)]
    if not all(_is_there(tensor, entries) for tensor in tensors):
        return None
    names = frozenset(tensor.name for tensor in tensors)
    if any(naming.layer_of(name) is not None and name not in names for name in entries):
        return None  # more experts than the shapes of the first layer say
    return Reading(naming, module, layers, sizes, names)


def _is_there(tensor: ExpertTensor, entries: Mapping[str, TensorEntry]) -> bool:
    entry = entries.get(tensor.name)
    return entry is not None and entry.shape == tensor.shape


def _sizes(
    naming: ExpertNaming, layer: int, entries: Mapping[str, TensorEntry]
) -> ExpertSizes | None:
    """E, D and F, as one layer's down projection has them; the other tensors then have to agree."""
    before = naming.prefix.format(layer=layer)
    if naming.storage is Storage.PER_EXPERT:
        down = entries.get(f"{before}.0.{naming.names[-1]}.weight")
        shape = down.shape if down else ()
        ends = f".{naming.names[-1]}.weight"
        count = sum(name.startswith(f"{before}.") and name.endswith(ends) for name in entries)
        return ExpertSizes(count, *shape) if len(shape) == 2 else None
    down = entries.get(f"{before}.{naming.names[-1]}")
    shape = down.shape if down else ()
    if len(shape) != 3:
        return None
    experts, *matrix = shape
    return ExpertSizes(experts, *(reversed(matrix) if naming.storage.is_transposed else matrix))


def _known_tails() -> dict[str, str]:
    """By the tail of a name, the kind of the tensors that have it in a known family."""
    return {
        _tail(f"{section.path}.{module.path}.{name}".replace("{n}", "0")): row.kind
        for family in reversed(families())
        for section in family.sections
        for module in section.modules
        for row in module.block.rows
        for name, _ in row.stored
    }


def _tail(name: str) -> str:
    """A tensor's name from the number of its layer on; without one, its last module and name."""
    words = [word for word in name.split(".") if word]
    last = max((n for n, word in enumerate(words) if word.isdigit()), default=None)
    if last is None:
        return ".".join(words[-2:])
    return ".".join(["*", *words[last + 1 :]])


def _listed(layers: tuple[int, ...]) -> str:
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return shown(list(layers))
