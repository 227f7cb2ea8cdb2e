"""Damages that are planted alike in every kind of parameter, and the cause each has to get.

A damage is done to a tensor as the checkpoint has it; numpy devices are then packed of it, and
compared with the tensor as it is. So a row says nothing of where a parameter lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits, canonical_nans, converted
from harness.compare.authority import WEIGHTS, Authority
from harness.compare.difference import BitsDiffer
from harness.compare.expert_comparison import PartComparison
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.quantised_experts import part_comparison
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.parameter_layout import Packing
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.explain import origin_rules as origins
from harness.explain import piece_rules as pieces
from harness.explain import remade_rules as remade
from harness.explain import value_rules as values
from harness.explain.causes import Cause
from harness.explain.delivery_rules import never_written
from harness.explain.diagnosis import Explainer
from harness.explain.evidence import Evidence, Need, Rule
from harness.explain.parameter_diagnosis import ParameterExplainer
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import POISON
from harness.synthetic.values import Values
from harness.synthetic.writer import write_checkpoint
from tests.support.packing import PackedDevice, pack, replicated
from tests.support.parameter_packing import LANGUAGE, PackedParameters, line
from tests.support.quantising import checkpoint_grid, fp8_experts, quantised
from tests.support.retyping import overwrite

DEVICES = 4
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
LAYER = "model.language_model.layers.{n}."
#: Subnormals, a negative zero and NaNs that have payloads, for each tensor that is damaged.
_SPECIAL = np.array([0x0001, 0x8003, 0x8000, 0x7F81, 0xFF82, 0x0000], "<u2")

Changes = Mapping[Any, npt.NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of parameter: the tensor that stands for it, and the name of its array.

    Attributes:
        name: in the table.
        tensor: its name; ``{n}`` is its layer. None for an expert's matrix.
        array: the parameter on the device.
        layers: its own layer, and one with another such tensor.
        fellow: another tensor of its array.
        of: which checkpoint it is of, see :data:`REFERENCES`.
    """

    name: str
    tensor: str | None
    array: str = ""
    layers: tuple[int, int] = (1, 3)
    fellow: str = ""
    of: str = "bf16"


KINDS: tuple[Kind, ...] = (
    Kind("expert", None),
    Kind("norm", f"{LAYER}input_layernorm.weight", "layers.1.input_layernorm.weight"),
    Kind("embedding", EMBEDDING, "embed_tokens.weight"),
    Kind("head", HEAD, "lm_head.weight"),
    Kind("padded embedding", EMBEDDING, "embed_tokens.weight", of="padded"),
    Kind(
        "linear, cut by columns", f"{LAYER}mlp.shared_expert.gate_proj.weight",
        "layers.1.mlp.shared_expert.gate_up_proj.weight",
        fellow=f"{LAYER}mlp.shared_expert.up_proj.weight",
    ),
    Kind(
        "attention heads", f"{LAYER}self_attn.q_proj.weight",
        "layers.1.self_attn.qkv_proj.weight", fellow=f"{LAYER}self_attn.k_proj.weight",
    ),
    Kind(
        "bias, cut by columns", "model.visual.blocks.{n}.mlp.linear_fc1.bias",
        "blocks.0.mlp.linear_fc1.bias", (0, 1),
    ),
    Kind("linear, cut by rows", f"{LAYER}self_attn.o_proj.weight", "self_attn.o_proj.weight"),
    Kind("router", f"{LAYER}mlp.gate.weight", "layers.1.mlp.gate.weight"),
    Kind("convolution", f"{LAYER}linear_attn.conv1d.weight", "linear_attn.conv1d.weight", (0, 2)),
    Kind("1-D state", f"{LAYER}linear_attn.A_log", "linear_attn.A_log", (0, 2)),
    Kind("FP8 expert", None, of="FP8"),
    Kind("FP8 linear", f"{LAYER}self_attn.o_proj.weight", "self_attn.o_proj.weight", of="FP8"),
)  # fmt: skip

#: By name, the shapes of a checkpoint of bf16: of 512 words, or of 500, which are padded.
REFERENCES = {"bf16": "tiny", "padded": "tiny:vocabulary"}


def write_references(path: Path) -> dict[str, ModelCheckpoint]:
    """The checkpoints of all kinds."""
    fp8 = write_checkpoint("qwen3-vl-moe", path / "FP8", shapes="tiny:blocks", quantised="fp8").path
    made = {of: write_reference(path / of, shapes) for of, shapes in REFERENCES.items()}
    return made | {"FP8": ModelCheckpoint(fp8)}


def write_reference(path: Path, shapes: str = "tiny") -> ModelCheckpoint:
    """A checkpoint whose every damaged tensor has subnormals, a negative zero and NaNs."""
    made = write_checkpoint(
        "qwen3.5-moe", path, shapes=shapes, layers=4, values=Values.NAN_PAYLOADS
    ).path
    checkpoint = ModelCheckpoint(made)
    for kind in KINDS:
        for layer in kind.layers if kind.tensor else ():
            name = (kind.tensor or "").format(n=layer)
            bits = np.array(checkpoint.bits(name))
            bits.ravel()[: _SPECIAL.size] = _SPECIAL
            overwrite(made, name, bits.tobytes())
    return ModelCheckpoint(made)


class Site:
    """A tensor of one kind on a device, as damages see it."""

    own: Any
    fellow: Any = None
    is_first = True  # of the two
    another_expert: Any = None
    another_layer: Any = None
    dtype = "BF16"
    authority: Authority = WEIGHTS
    #: An element of its array that is padding.
    padding: tuple[int, ...] | None = None

    def donor(self) -> Bits:
        """A tensor, as large at least, that has nothing to do with it."""
        raise NotImplementedError

    def expected(self, key: Any) -> Bits:
        """What the device is to hold for a tensor; a copy."""
        raise NotImplementedError

    def stored(self) -> Bits:
        """The tensor as it is in the file."""
        raise NotImplementedError

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Evidence]:
        """The causes of what differs, and what the rules saw of the first tensor."""
        raise NotImplementedError

    @cached_property
    def bits(self) -> Bits:
        return self.expected(self.own)

    @cached_property
    def evidence(self) -> Evidence:
        """What rules see of it when it is noise."""
        return self.compared({self.own: noise(self)}, None)[1]

    @property
    def has(self) -> frozenset[Need]:
        return self.evidence.has

    def length(self, noun: str) -> tuple[int, int]:
        """Axis and length of its heads, or of its shards."""
        granule = next(g for g in self.evidence.granules if g.noun == noun)
        return granule.axis, granule.length


#: Changes an array as it lies on the devices.
Placement = Callable[[Site, DeviceTensor], DeviceTensor]


class ExpertSite(Site):
    """The up projection of an expert."""

    is_first = False
    padding = (4, 0, 127)  # behind a quarter of gate

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self.part: ReferencePart = reference_parts(checkpoint)[0]
        self.own = ExpertKey(Part.DECODER, 1, 4, Projection.UP)
        self.fellow = self.own._replace(projection=Projection.GATE)
        self.another_expert = self.own._replace(expert=2)
        self.another_layer = self.own._replace(layer=3)
        self._faithful = PackedDevice(self.part, DEVICES)

    def donor(self) -> Bits:
        return np.array(self.part.checkpoint.bits(EMBEDDING))

    def expected(self, key: Any) -> Bits:
        return np.array(self.part[key])

    def stored(self) -> Bits:
        return self.expected(self.own)

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Evidence]:
        device = self._faithful
        before = device.arrays[1]
        source: Any = _Changed(self.part, changes)
        device.arrays[1] = pack(source, 1, device.backend, DEVICES)
        try:
            placed = self._placed(device.part(), plant)
            comparison = PartComparison(self.part, placed, authority=self.authority)
            differences = list(comparison.differences())
            explainer = Explainer(comparison)
            causes = [d.cause for d in explainer.diagnose(differences)]
            return causes, explainer.evidence(self.own) if changes else self.evidence
        finally:
            device.arrays[1] = before

    def _placed(self, part: DevicePart, plant: Placement | None) -> DevicePart:
        if plant is None:
            return part
        layers = {number: dict(tensors) for number, tensors in part.layers.items()}
        layers[1][Parameter.W13] = plant(self, layers[1][Parameter.W13])
        return replace(part, layers=layers)


class _Changed(Mapping[ExpertKey, Bits]):
    """A part's experts, some of them others."""

    def __init__(self, part: ReferencePart, changes: Changes) -> None:
        self._part, self._changes = part, changes
        self.part, self.shape = part.part, part.shape

    def __getitem__(self, key: ExpertKey) -> Bits:
        return self._changes[key] if key in self._changes else self._part[key]

    def __iter__(self) -> Any:
        return iter(self._part)

    def __len__(self) -> int:
        return len(self._part)


class TensorSite(Site):
    """Any other tensor."""

    def __init__(self, checkpoint: ModelCheckpoint, kind: Kind) -> None:
        self._checkpoint, self._kind = checkpoint, kind
        self._part = reference_parts(checkpoint)[0]
        layer, other = kind.layers
        assert kind.tensor
        self.own = kind.tensor.format(n=layer)
        self.fellow = kind.fellow.format(n=layer) or None
        self.another_layer = kind.tensor.format(n=other) if "{n}" in kind.tensor else None
        self.dtype = "F32" if kind.tensor.endswith("A_log") else "BF16"
        self.padding = (505, 9) if kind.of == "padded" else None

    def donor(self) -> Bits:
        if self.own.endswith("A_log"):
            return self.expected(self.own.replace("A_log", "dt_bias"))
        of_all_rows = self.own in (EMBEDDING, HEAD)
        experts = "model.language_model.layers.0.mlp.experts.gate_up_proj"
        return self.expected(experts if of_all_rows else EMBEDDING)

    def expected(self, key: Any) -> Bits:
        bits = np.array(self._checkpoint.bits(key))
        return converted(bits, "BF16", self.dtype)

    def stored(self) -> Bits:
        return np.array(self._checkpoint.bits(self.own))

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Evidence]:
        device = _Damaged(self._checkpoint, changes)
        here = f".layers.{self._kind.layers[0]}."
        alike = [name for name in device.packed if name.endswith(f".{self._kind.array}")]
        (name,) = [name for name in alike if here in name or ".layers." not in name]
        tensor = device.tensor(name, device.packed[name])
        tensor = plant(self, tensor) if plant else tensor
        comparison = ParameterComparison(
            self._part, [tensor], line(device.devices), packing=Packing(),
            authority=self.authority,
        )  # fmt: skip
        differences = [d for d in comparison.differences() if d.parameter == name]
        explainer = ParameterExplainer(comparison)
        causes = [d.cause for d in explainer.diagnose(differences)]
        bits = (d for d in differences if isinstance(d, BitsDiffer) and d.source)
        first = next((d for d in bits if d.source and d.source.tensor == self.own), None)
        return causes, explainer.evidence(first) if first else self.evidence


class _Damaged(PackedParameters):
    """Parameters packed of tensors that are damaged."""

    def __init__(self, checkpoint: ModelCheckpoint, changes: Changes) -> None:
        self._changes = changes
        super().__init__(checkpoint, Part.DECODER, DEVICES)
        for name, bits in changes.items():
            if name.endswith("A_log"):  # wider on the device
                self.packed[name.replace("model.language_model.", LANGUAGE)].array = bits

    def get(self, name: str) -> Any:
        if name in self._changes and not name.endswith("A_log"):
            return self._changes[name]
        return super().get(name)


class Fp8Site(Site):
    """A tensor of an FP8 release, which is quantised anew on its way."""

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Evidence]:
        """See :meth:`Site.compared`; the changes are of scales, and no rule sees any."""
        raise NotImplementedError

    @property
    def has(self) -> frozenset[Need]:
        return frozenset({Need.SHARDS})


class Fp8ExpertSite(Fp8Site):
    """The up projection of an expert; each device has some experts whole."""

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self._part = reference_parts(checkpoint)[0]
        self.own = ExpertKey(Part.DECODER, 1, 5, Projection.UP)

    def other_scales(self) -> Changes:
        return {self.own: checkpoint_grid(self._part, self.own)[::-1].copy()}

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Any]:
        def grid(part: ReferencePart, key: ExpertKey) -> Any:
            return changes[key] if key in changes else checkpoint_grid(part, key)

        device = fp8_experts(self._part, grid)
        if plant:
            layers = {number: dict(tensors) for number, tensors in device.layers.items()}
            layers[1][Parameter.W13] = plant(self, layers[1][Parameter.W13])
            device = replace(device, layers=layers)
        comparison = part_comparison(self._part, device, backend=Backend.GMM_EP)
        differences = list(comparison.differences())
        return [d.cause for d in Explainer(comparison).diagnose(differences)], None


class Fp8TensorSite(Fp8Site):
    """A linear layer that is cut by rows; its scales are on every device."""

    def __init__(self, checkpoint: ModelCheckpoint, kind: Kind) -> None:
        self._checkpoint = checkpoint
        self.own = f"{LANGUAGE}layers.1.{kind.array}"

    def other_scales(self) -> Changes:
        scales = quantised(self._checkpoint, Part.DECODER).packed[f"{self.own}_scale"]
        return {f"{self.own}_scale": np.roll(scales.array, 1)}

    def compared(self, changes: Changes, plant: Placement | None) -> tuple[list[Cause], Any]:
        device = quantised(self._checkpoint, Part.DECODER)
        for name, array in changes.items():
            device.packed[name].array = array
        tensors = {t.name: t for t in device.tensors()}
        if plant:
            tensors[self.own] = plant(self, tensors[self.own])
        comparison = ParameterComparison(
            reference_parts(self._checkpoint)[0], list(tensors.values()), line(device.devices),
            packing=Packing(),
        )  # fmt: skip
        differences = list(comparison.differences())
        return [d.cause for d in ParameterExplainer(comparison).diagnose(differences)], None


def site_of(checkpoints: Mapping[str, ModelCheckpoint], kind: Kind) -> Site:
    """The tensor that stands for a kind."""
    checkpoint = checkpoints[kind.of]
    if kind.of == "FP8":
        return Fp8TensorSite(checkpoint, kind) if kind.tensor else Fp8ExpertSite(checkpoint)
    return TensorSite(checkpoint, kind) if kind.tensor else ExpertSite(checkpoint)


Plant = Callable[[Site], Bits | Changes | str]


@dataclass(frozen=True)
class Damage:
    """A row of the table.

    Attributes:
        name: what is done.
        cause: what it has to be called, wherever it can be.
        plant: makes other bits of a tensor's, or of several; or says why it cannot.
        rule: that names it.
        needs: what the tensor must have, besides what the rule needs.
        placement: instead: what is done to the array on its devices.
        of_scales: instead: its scales are others.
        of_padding: the placement is of its padding.
    """

    name: str
    cause: Cause
    plant: Plant = lambda site: {}
    rule: Rule | None = None
    needs: frozenset[Need] = frozenset()
    placement: Placement | None = None
    of_scales: bool = False
    of_padding: bool = False

    def refused(self, site: Site) -> str:
        """Why it cannot be done to a site; empty where it can."""
        if self.of_scales:
            return "" if isinstance(site, Fp8Site) else "it has no scales"
        if self.of_padding:
            return "" if site.padding else "none of it is padding"
        if isinstance(site, Fp8Site) and not self.placement:
            return "it is requantised: its values are compared, not its bits"
        needs = self.needs | (self.rule.needs if self.rule else frozenset())
        return next((need for need in Need if need in needs - site.has), "")

    def cell(self, site: Site) -> str:
        """What the table says of it: the causes that were named, or why there can be none."""
        if why := self.refused(site):
            return f"({why})"
        if self.of_scales:
            assert isinstance(site, Fp8ExpertSite | Fp8TensorSite)
            planted: Bits | Changes | str = site.other_scales()
        else:
            planted = self.plant(site)
        if isinstance(planted, str):
            return f"({planted})"
        changes = planted if isinstance(planted, Mapping) else {site.own: planted}
        causes, _ = site.compared(changes, self.placement)
        return ", ".join(dict.fromkeys(causes)) or "**not detected**"


def noise(site: Site) -> Bits:
    rng = np.random.default_rng(1)
    made = rng.integers(0, 1 << 15, site.bits.shape).astype(site.bits.dtype)
    return made << made.dtype.type(16 if site.dtype == "F32" else 0)


def _filled(value: int | None, from_row: float) -> Plant:
    """The rows from that part on hold one value; None for the poison."""

    def plant(site: Site) -> Bits:
        bits = site.bits.copy()
        bits[int(len(bits) * from_row) :] = POISON[bits.itemsize] if value is None else value
        return bits

    return plant


def _one_bit(site: Site) -> Bits:
    bits = site.bits.copy()
    bits.ravel()[bits.size * 2 // 3] ^= 1 << (20 if site.dtype == "F32" else 6)
    return bits


def _transposed(site: Site) -> Bits:
    bits = site.bits
    return bits.reshape(len(bits), -1).T.reshape(bits.shape)


def _corner(site: Site) -> Bits:
    folded = site.bits.reshape(len(site.bits), -1)
    held = np.full_like(folded, POISON[2])
    size = min(folded.shape) - 1
    held[:size, :size] = folded.T[:size, :size]
    return held.reshape(site.bits.shape)


def _exchanged(places: Callable[[Site], tuple[int, int]]) -> Plant:
    """The first two pieces of some axis and length change places."""

    def plant(site: Site) -> Bits:
        axis, length = places(site)
        bits = site.bits.copy()
        view = bits if axis == 0 else bits.T
        first, second = view[:length].copy(), view[length : 2 * length].copy()
        view[:length], view[length : 2 * length] = second, first
        return bits

    return plant


def _first_everywhere(site: Site) -> Bits:
    """Every device holds the first shard, as if it were not cut by rank."""
    axis, length = site.length("shard")
    first = site.bits[:length] if axis == 0 else site.bits[:, :length]
    return np.concatenate([first] * (site.bits.shape[axis] // length), axis=axis)


def _two_rows(site: Site) -> Bits:
    bits = site.bits.copy()
    bits[[1, -2]] = bits[[-2, 1]]
    return bits


def _half_of_its_fellow(site: Site) -> Bits:
    bits, other = site.bits.copy(), site.expected(site.fellow)
    rows = min(len(bits) // 2, len(other)) - 1
    bits[:rows] = other[:rows]
    return bits


def _not_deinterleaved(site: Site) -> Changes | str:
    """Both as one tensor, in alternating rows, which is cut in the middle."""
    pair = [site.own, site.fellow] if site.is_first else [site.fellow, site.own]
    halves = [site.expected(key) for key in pair]
    if halves[0].shape != halves[1].shape:
        return "no other tensor of its array has its shape"
    mixed = np.stack(halves, axis=1).reshape(-1, *halves[0].shape[1:])
    return dict(zip(pair, np.split(mixed, 2), strict=True))


def _with_its_fellow(site: Site) -> Changes | str:
    other = site.expected(site.fellow)
    if other.shape != site.bits.shape:
        return "no other tensor of its array has its shape"
    return {site.own: other, site.fellow: site.bits}


def _of_its_fellow(site: Site) -> Bits | str:
    other = site.expected(site.fellow)
    return other if other.shape == site.bits.shape else "no other tensor of its array has its shape"


def _other_bytes(site: Site) -> Bits:
    """Bytes of a tensor that has nothing to do with it, as many as there are."""
    return site.donor().ravel()[: site.bits.size].reshape(site.bits.shape)


def _damaged_run(site: Site) -> Bits:
    bits = site.bits.copy()
    length = min(64, bits.size // 8)
    start = bits.size // 2 + 1
    made = (np.arange(length) * 257 + 11).astype(bits.dtype)
    bits.ravel()[start : start + length] = made << (16 if site.dtype == "F32" else 0)
    return bits


def _no_sign(site: Site) -> Bits:
    sign = 1 << (8 * site.bits.itemsize - 1)
    return np.where(site.bits == sign, 0, site.bits).astype(site.bits.dtype)


def _flushed(site: Site) -> Bits:
    wide = site.dtype == "F32"
    exponent, sign = (0x7F80_0000, 1 << 31) if wide else (0x7F80, 1 << 15)
    return np.where((site.bits & exponent) == 0, site.bits & sign, site.bits).astype(
        site.bits.dtype
    )


def _quiet(site: Site) -> Bits:
    if site.dtype == "BF16":
        return canonical_nans(site.bits)
    nan = (site.bits & 0x7FFF_FFFF) > 0x7F80_0000
    quiet = (site.bits & 0x8000_0000) | 0x7FC0_0000
    return np.where(nan, quiet, site.bits).astype(site.bits.dtype)


def _through_float16(site: Site) -> Bits:
    return converted(converted(site.stored(), "BF16", "F16"), "F16", site.dtype)


def _replica(_: Site, tensor: DeviceTensor) -> DeviceTensor:
    odd = np.array(tensor.shards[2].fetch(...))
    odd.ravel()[-1] ^= 1
    shards = list(tensor.shards)
    shards[2] = replace(shards[2], fetch=lambda index: odd[index])
    return replace(tensor, shards=tuple(shards))


def _reader(held: Bits) -> Callable[[Any], Bits]:
    return lambda index: held[index]


def _dirty(site: Site, tensor: DeviceTensor) -> DeviceTensor:
    """One element of the padding is not zero."""
    at = site.padding
    assert at
    shards = []
    for shard in tensor.shards:
        spans = list(zip(shard.index, at, strict=True))
        if all(span.start <= place < span.stop for span, place in spans):
            held = np.array(shard.fetch(...))
            held[tuple(place - span.start for span, place in spans)] = 0x3F80
            shard = replace(shard, fetch=_reader(held))
        shards.append(shard)
    return replace(tensor, shards=tuple(shards))


def _on_the_wrong_devices(_: Site, tensor: DeviceTensor) -> DeviceTensor:
    names = [shard.device for shard in tensor.shards]
    moved = zip(tensor.shards, names[1:] + names[:1], strict=True)
    return replace(tensor, shards=tuple(replace(s, device=name) for s, name in moved))


def _on_every_device(_: Site, tensor: DeviceTensor) -> DeviceTensor:
    whole = np.zeros(tensor.shape, tensor.shards[0].fetch(...).dtype)
    for shard in tensor.shards:
        whole[tuple(span.as_slice() for span in shard.index)] = shard.fetch(...)
    return replicated(tensor, whole)


def _dealt(site: Site) -> Changes:
    """The same matrix of all experts: one of each of two groups in turn."""
    assert isinstance(site, ExpertSite)
    count = site.part.shape.experts
    order = [*range(0, count, 2), *range(1, count, 2)]
    keys = [site.own._replace(expert=expert) for expert in range(count)]
    return {keys[at]: site.expected(keys[expert]) for at, expert in enumerate(order)}


def _of(key: str) -> Plant:
    return lambda site: site.expected(getattr(site, key))


FELLOWS = frozenset({Need.FELLOWS})
SHARDS = frozenset({Need.SHARDS})

DAMAGES: tuple[Damage, ...] = (
    Damage("one bit flipped", Cause.BIT_FLIP, _one_bit, values.bit_flip),
    Damage("a short run of the file damaged", Cause.DAMAGED, _damaged_run, pieces.damaged),
    Damage("all zeros", Cause.ZEROS, _filled(0, 0), values.zeros),
    Damage("never written", Cause.UNWRITTEN, _filled(None, 0), never_written),
    Damage("a part never written", Cause.NARROWED, _filled(None, 0.7), remade.narrowed),
    Damage("a part zero", Cause.NARROWED, _filled(0, 0.7), remade.narrowed),
    Damage("a corner of the transpose, no more", Cause.WRONG_CORNER, _corner, remade.wrong_corner),
    Damage("transposed", Cause.TRANSPOSED, _transposed, remade.transposed),
    Damage("rows rolled", Cause.ROLLED, lambda s: np.roll(s.bits, 3, 0), pieces.rows_rolled),
    Damage("columns rolled", Cause.ROLLED, lambda s: np.roll(s.bits, 3, -1), pieces.columns_rolled),
    Damage("two rows exchanged", Cause.ROWS_EXCHANGED, _two_rows, pieces.rows_reordered),
    Damage(
        "two heads exchanged", Cause.HEADS_EXCHANGED, _exchanged(lambda s: s.length("head")),
        pieces.heads_exchanged,
    ),
    Damage(
        "two shards exchanged", Cause.SHARDS_EXCHANGED, _exchanged(lambda s: s.length("shard")),
        pieces.shards_exchanged,
    ),
    Damage(
        "the first shard on every device", Cause.SHARDS_EXCHANGED, _first_everywhere,
        pieces.shards_exchanged,
    ),
    Damage(
        "half of it another's of its array", Cause.MIXED, _half_of_its_fellow,
        pieces.rows_reordered, FELLOWS,
    ),
    Damage(
        "gate and up not de-interleaved", Cause.INTERLEAVED, _not_deinterleaved, pieces.interleaved,
    ),
    Damage(
        "exchanged with another of its array", Cause.PROJECTIONS_EXCHANGED, _with_its_fellow,
        origins.another_of_its_array,
    ),
    Damage(
        "another of its array, which is right itself", Cause.OTHER_SLICE, _of_its_fellow,
        origins.another_of_its_array,
    ),
    Damage(
        "exchanged with another expert", Cause.EXPERTS_EXCHANGED,
        lambda s: {s.own: s.expected(s.another_expert), s.another_expert: s.bits},
        origins.another_expert,
    ),
    Damage(
        "another expert's, which is right itself", Cause.EXPERTS_PERMUTED, _of("another_expert"),
        origins.another_expert,
    ),
    Damage(
        "experts of two groups in turn", Cause.EXPERT_GROUPS_MIXED, _dealt, origins.expert_groups,
    ),
    Damage("another layer's", Cause.OTHER_LAYER, _of("another_layer"), origins.another_layer),
    Damage(
        "head for embedding, or the reverse", Cause.TIED_EMBEDDINGS,
        lambda s: s.expected(EMBEDDING if s.own == HEAD else HEAD), origins.tied,
    ),
    Damage("bytes of some other tensor", Cause.OTHER_BYTES, _other_bytes, pieces.other_bytes),
    Damage(
        "bytes taken for float16", Cause.OTHER_DTYPE,
        lambda s: converted(s.stored(), "F16", s.dtype), remade.other_dtype,
    ),
    Damage(
        "through float16 and back", Cause.DTYPE_ROUND_TRIP, _through_float16,
        remade.dtype_round_trip,
    ),
    Damage(
        "subnormals flushed", Cause.SUBNORMALS_FLUSHED, _flushed, values.subnormals_flushed,
    ),
    Damage("sign of zero lost", Cause.SIGN_OF_ZERO, _no_sign, values.sign_of_zero),
    Damage("NaNs made quiet", Cause.NAN_CANONICALISED, _quiet),
    Damage(
        "one replica off by a bit", Cause.REPLICAS_DIFFER, rule=values.replicas_differ,
        placement=_replica,
    ),
    Damage(
        "shards on each other's devices", Cause.MISPLACED, needs=SHARDS,
        placement=_on_the_wrong_devices,
    ),
    Damage(
        "all of it on every device", Cause.REPLICATED, needs=SHARDS, placement=_on_every_device,
    ),
    Damage("padding that is not zero", Cause.PADDING, placement=_dirty, of_padding=True),
    Damage("scales in each other's places", Cause.SCALE, of_scales=True),
    Damage("noise", Cause.UNEXPLAINED, noise),
)  # fmt: skip
