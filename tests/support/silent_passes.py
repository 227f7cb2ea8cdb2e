"""Attempts to make the harness say "equal" when it should not: a row each.

A row tampers with a checkpoint, its reference, the devices or the ledger of an honest load, and
says what must be found: a kind of difference, or the words in which the input is refused. Beside
them stand honest variants, which have to be equal: a table that everything fails shows nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.bits import Bits, Nan, canonical_nans
from harness.checkpoint.checkpoint import INDEX, SINGLE_FILE
from harness.compare.difference import Account, Kind, Side, Tally
from harness.compare.digest_comparison import Method
from harness.compare.selection import Selection
from harness.devices.expert_layout import Parameter
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint
from harness.report.report import DigestsUsed, Failure
from tests.support.differences import unread
from tests.support.ledgers import call
from tests.support.packing import pack
from tests.support.parameter_faults import FAULTS, Change
from tests.support.parameter_packing import Array, Packed
from tests.support.silent_worlds import (
    Tensor,
    Tensors,
    World,
    change_config,
    change_tensors,
    on,
    some,
    tensors_of,
    without_shard,
    write_tensors,
)
from tests.support.spoiling import FIRST, SECOND, edit_header, edit_json

VL, Q, FUSED_MTP, MTP = "qwen3-vl-moe", "qwen3.5-moe", "qwen3.6-mtp", "qwen3.5-mtp"
#: A vocabulary of 500, which upstream pads to 512, on eight devices; and 2F = D.
UNEVEN, SQUARE = "qwen3-vl-moe tiny:vocabulary", "qwen3-vl-moe tiny:square"
DEVICES = {UNEVEN: 8}
W13, W2 = Parameter.W13, Parameter.W2
LAYERS = "model.language_model.layers"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

Tamper = Callable[[World], object]


@dataclass(frozen=True)
class Attempt:
    """One row.

    Attributes:
        id: stable name.
        tamper: what is done to an honest world.
        found: the kind of difference that must be among those found, or what the refusal says.
        recipe: the checkpoint's.
    """

    id: str
    tamper: Tamper
    found: Kind | str
    recipe: str = VL


def _each(*changes: Tamper) -> Tamper:
    return lambda world: [change(world) for change in changes]


def _added(name: str, tensor: Tensor | None = None) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor or some()})


def _in_reference(change: Callable[[Tensors], object]) -> Tamper:
    return lambda world: change_tensors(world.reference, change)


def _in_checkpoint(change: Callable[[Tensors], object]) -> Tamper:
    return lambda world: change_tensors(world.checkpoint, change)


def _bytes(name: str, change: Callable[[bytearray], object]) -> Callable[[Tensors], object]:
    def changed(tensors: Tensors) -> None:
        data = bytearray(tensors[name].data)
        change(data)
        tensors[name] = tensors[name]._replace(data=bytes(data))

    return changed


def _last_bit(data: bytearray) -> None:
    data[-2] ^= 1


def _swapped(one: str, other: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({one: tensors[other], other: tensors[one]})


def _options(**given: Any) -> Tamper:
    return lambda world: world.options.update(given)


def _ledger(**given: Any) -> Tamper:
    return lambda world: world.ledger.update(given)


#: Names that nothing of the model is for. Each is added to the reference, and to the checkpoint.
STRAYS: list[tuple[str, str, str]] = [
    ("layer-beyond", f"{LAYERS}.2.input_layernorm.weight", VL),
    ("mtp-where-none-is-announced", "mtp.foo", Q),
    ("mtp-of-a-family-without", "mtp.norm.weight", VL),
    ("mtp-name-nobody-knows", "mtp.foo", FUSED_MTP),
    ("mtp-layer-beyond", "mtp.layers.1.input_layernorm.weight", FUSED_MTP),
    ("scale-of-a-norm", f"{LAYERS}.0.input_layernorm.weight_scale_inv", VL),
    ("scale-of-a-linear-layer", f"{LAYERS}.1.self_attn.o_proj.weight_scale_inv", VL),
    ("scale-of-the-head", "lm_head.weight_scale_inv", VL),
    ("layers-of-another-prefix", "foo.layers.7.weight", VL),
    ("layers-of-the-text-model", "model.layers.5.input_layernorm.weight", VL),
    ("layer-number-with-a-zero", f"{LAYERS}.02.input_layernorm.weight", VL),
    ("layer-known-name-unknown", f"{LAYERS}.0.foo.weight", VL),
    ("bias-of-the-head", "lm_head.bias", VL),
    ("bias-of-attention", f"{LAYERS}.0.self_attn.q_proj.bias", VL),
    ("vision-block-beyond", "model.visual.blocks.2.norm1.weight", VL),
    ("name-of-no-module", "foo", VL),
    ("name-with-a-space", "foo lm_head.weight", VL),
]

_EXPERT = "mtp.layers.0.mlp.experts"
_UP = f"{LAYERS}.0.mlp.experts"

#: Likewise, of experts; in the reference they are refused before the load.
STRAY_EXPERTS: list[tuple[str, str, str]] = [
    ("expert-beyond", f"{_EXPERT}.8.gate_proj.weight", MTP),
    ("expert-number-with-a-zero", f"{_EXPERT}.07.gate_proj.weight", MTP),
    ("experts-stored-twice", f"{_EXPERT}.gate_up_proj", MTP),
    ("expert-layer-beyond", f"{LAYERS}.2.mlp.experts.gate_up_proj", VL),
    ("scale-of-an-expert", f"{_EXPERT}.3.up_proj.weight_scale_inv", MTP),
    ("scale-of-experts", f"{_UP}.down_proj_scale_inv", VL),
    ("bias-of-experts", f"{_UP}.gate_up_proj_bias", VL),
]
_REFUSED = r"would not be compared|expert tensor .* is BF16 \[128\]"


def _stray_rows() -> list[Attempt]:
    rows = []
    for id_, name, recipe in STRAYS:
        for side, add in (("reference", _in_reference), ("checkpoint", _in_checkpoint)):
            rows.append(Attempt(f"{side}-{id_}", add(_added(name)), Kind.UNACCOUNTED, recipe))
    for id_, name, recipe in STRAY_EXPERTS:
        rows.append(Attempt(f"reference-{id_}", _in_reference(_added(name)), _REFUSED, recipe))
        checkpoint = _in_checkpoint(_added(name))
        rows.append(Attempt(f"checkpoint-{id_}", checkpoint, Kind.UNACCOUNTED, recipe))
    return rows


def _is_mtp(name: str) -> bool:
    return name.startswith("mtp.")


def without_mtp_tensors(path: Path, lost: Callable[[str], bool] = _is_mtp) -> None:
    """A word of a draft model in config.json, and none of its tensors, or not all."""

    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if lost(name)]:
            del tensors[name]

    change_tensors(path, drop)


def without_mtp(path: Path) -> None:
    """Neither tensors of a draft model, nor a word of it."""
    without_mtp_tensors(path)
    change_config(path, lambda c: c["text_config"].update(mtp_num_hidden_layers=0))


def _reference_without_mtp(world: World) -> None:
    without_mtp(world.reference)


def _without_draft(world: World) -> None:
    """A draft model that is not loaded."""
    del world.parameters[Part.MTP], world.experts[Part.MTP]


def _checkpoint_without_mtp(world: World) -> None:
    without_mtp(world.checkpoint)
    _without_draft(world)


def _dropped(lost: Callable[[str], bool] = _is_mtp) -> Tamper:
    """Tools that keep the word of a draft model in config.json and lose tensors of it."""

    def change(world: World) -> None:
        for path in (world.checkpoint, world.reference):
            without_mtp_tensors(path, lost)
        _without_draft(world)

    return change


def add_undescribed_draft(path: Path) -> None:
    """GLM-4's draft model, as it is published: a layer after the decoder's last."""

    def add(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.2.")]:
            tensors[name.replace(".2.", ".3.", 1)] = tensors[name]
        tensors["model.layers.3.enorm.weight"] = some()

    change_tensors(path, add)
    change_config(path, lambda c: c.update(num_nextn_predict_layers=1))


def _draft_beside_the_index(world: World) -> None:
    """A file that no index names holds one of the draft model's tensors."""
    for path in (world.checkpoint, world.reference):
        draft = {"mtp.norm.weight": tensors_of(path)["mtp.norm.weight"]}
        without_mtp_tensors(path)
        files = dict.fromkeys(tensors_of(path), SINGLE_FILE)
        (path / INDEX).write_text(json.dumps({"weight_map": files}))
        write_tensors(path / "mtp.safetensors", draft)


def _draft_without_its_file(world: World) -> None:
    """The index names the draft model's tensors, in a file that is not there."""
    for path in (world.checkpoint, world.reference):
        every = tensors_of(path)
        without_mtp_tensors(path)
        files = {name: "mtp.safetensors" if _is_mtp(name) else SINGLE_FILE for name in every}
        (path / INDEX).write_text(json.dumps({"weight_map": files}))


def _drop_mtp_tensors(tensors: Tensors) -> None:
    del tensors["mtp.norm.weight"]


def _one_by_one(tensors: Tensors) -> None:
    """The draft model's fused experts as tensors of their own."""
    gate_up, down = (tensors.pop(f"{_EXPERT}.{name}") for name in ("gate_up_proj", "down_proj"))
    both = np.frombuffer(gate_up.data, "<u2").reshape(gate_up.shape)
    downs = np.frombuffer(down.data, "<u2").reshape(down.shape)
    for expert in range(len(both)):
        gate, up = np.split(both[expert], 2)
        for name, bits in (("gate", gate), ("up", up), ("down", downs[expert])):
            tensor = Tensor("BF16", bits.shape, bits.tobytes())
            tensors[f"{_EXPERT}.{expert}.{name}_proj.weight"] = tensor


def _both(tensors: Tensors) -> None:
    """The draft model's experts fused, and one by one."""
    fused = dict(tensors)
    _one_by_one(tensors)
    tensors |= fused


def _cut(world: World) -> None:
    """Devices as a load of the first layer alone leaves them."""
    world.options["num_layers"] = 1
    del world.experts[Part.DECODER].arrays[1]
    packed = world.parameters[Part.DECODER].packed
    for name in [name for name in packed if "language_model.model.layers.1." in name]:
        del packed[name]


def _ones() -> Array:
    return np.ones((8, 4), "<u2")


def _lose_the_head(world: World) -> None:
    del world.parameters[Part.DECODER].packed["vllm_model.language_model.lm_head.weight"]


def _lose_the_vision_tower(world: World) -> None:
    packed = world.parameters[Part.DECODER].packed
    for name in [name for name in packed if ".visual." in name]:
        del packed[name]


#: Tensors and parameters that have no counterpart.
ACCOUNTS = [
    *_stray_rows(),
    Attempt("reference-without-mtp", _reference_without_mtp, Kind.UNACCOUNTED, FUSED_MTP),
    Attempt("checkpoint-without-mtp", _checkpoint_without_mtp, Kind.UNACCOUNTED, FUSED_MTP),
    Attempt("checkpoint-without-mtp-per-expert", _checkpoint_without_mtp, Kind.UNACCOUNTED, MTP),
    Attempt("reference-without-mtp-per-expert", _reference_without_mtp, Kind.UNACCOUNTED, MTP),
    Attempt(
        "reference-with-the-word-of-a-draft",
        lambda world: without_mtp_tensors(world.reference),
        Kind.UNACCOUNTED,
        FUSED_MTP,
    ),
    Attempt(
        "checkpoint-with-the-word-of-a-draft",
        _each(lambda world: without_mtp_tensors(world.checkpoint), _without_draft),
        Kind.UNACCOUNTED,
        FUSED_MTP,
    ),
    Attempt(
        "reference-lacks-a-tensor", _in_reference(_drop_mtp_tensors), Kind.UNACCOUNTED, FUSED_MTP
    ),
    Attempt(
        "checkpoint-experts-in-both-storages", _in_checkpoint(_both), Kind.UNACCOUNTED, FUSED_MTP
    ),
    Attempt(
        "stray-layer-where-layers-are-left-out",
        _each(_cut, _in_reference(_added(f"{LAYERS}.2.input_layernorm.weight"))),
        Kind.UNACCOUNTED,
    ),
    Attempt(
        "stray-where-bytes-are-limited",
        _each(_options(selection=Selection(max_bytes=10**6)), _in_reference(_added("foo"))),
        Kind.UNACCOUNTED,
    ),
    Attempt(
        "stray-mtp-where-the-decoder-is-asked-for",
        _each(_options(parts=(Part.DECODER,)), _in_reference(_added("mtp.foo"))),
        Kind.UNACCOUNTED,
        Q,
    ),
    Attempt(
        "vision-tower-not-loaded",
        _lose_the_vision_tower,
        Kind.UNACCOUNTED,
    ),
    Attempt(
        "parameter-lost", lambda w: w.parameters[Part.DECODER].packed.popitem(), Kind.UNACCOUNTED
    ),
    Attempt(
        "parameter-of-no-tensor",
        lambda w: w.parameters[Part.DECODER].packed.update(
            {"vllm_model.language_model.model.layers.0.foo.weight": Packed(_ones(), None)}
        ),
        Kind.UNACCOUNTED,
    ),
    Attempt(
        "array-among-the-experts",
        lambda w: w.parameters[Part.DECODER].packed.update(
            {"vllm_model.model.layers.0.mlp.experts.routed_experts.w13_bias": Packed(_ones(), None)}
        ),
        Kind.EXTRA,
    ),
    Attempt("head-not-tied-and-absent", _lose_the_head, Kind.UNACCOUNTED, Q),
]


def _in_no_file(world: World) -> None:
    edit_json(world.checkpoint / INDEX, lambda c: c["weight_map"].update(foo=FIRST))


def _in_no_index(world: World) -> None:
    edit_json(world.checkpoint / INDEX, lambda c: c["weight_map"].pop(HEAD))


def _in_two_files(world: World) -> None:
    file = world.checkpoint / "model-00005-of-00004.safetensors"
    write_tensors(file, {HEAD: tensors_of(world.checkpoint)[HEAD], "foo": some()})
    edit_json(world.checkpoint / INDEX, lambda c: c["weight_map"].update(foo=file.name))


def _another_file(world: World) -> None:
    write_tensors(world.checkpoint / "consolidated.safetensors", tensors_of(world.checkpoint))


def _beside_the_single_file(world: World) -> None:
    change_tensors(world.checkpoint, lambda tensors: None)
    shutil.copy(world.checkpoint / "model.safetensors", world.checkpoint / "model-1.safetensors")


def _one_file_for_another(world: World) -> None:
    shutil.copy(world.checkpoint / FIRST, world.checkpoint / SECOND)


def _cut_short(world: World) -> None:
    file = world.reference / FIRST
    file.write_bytes(file.read_bytes()[:-2])


def _name_twice(world: World) -> None:
    file = world.reference / FIRST
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].replace(b"{", b'{"__metadata__":{"a":"b"},"__metadata__":{},', 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


def _offsets_exchanged(header: dict[str, Any]) -> None:
    """Two tensors of one shape read each other's bytes: a valid header."""
    one, other = (f"{LAYERS}.0.{which}_layernorm.weight" for which in ("input", "post_attention"))
    header[one], header[other] = header[other], header[one]


def _announced(**sizes: int) -> Tamper:
    return lambda world: change_config(world.reference, lambda c: c["text_config"].update(sizes))


#: Files, index and config.json that contradict each other: refused before the load.
FILES = [
    Attempt("index-names-a-tensor-of-no-file", _in_no_file, "in this file, which does not hold it"),
    Attempt("file-holds-a-tensor-of-no-index", _in_no_index, "not in the index"),
    Attempt("tensor-in-two-files", _in_two_files, "the index places it in"),
    Attempt("file-of-no-index", _another_file, Kind.UNACCOUNTED),
    Attempt("file-beside-the-single-one", _beside_the_single_file, Kind.UNACCOUNTED),
    Attempt("one-file-for-another", _one_file_for_another, "does not hold it"),
    Attempt("reference-cut-short", _cut_short, "truncated"),
    Attempt("name-twice-in-a-header", _name_twice, "names '__metadata__' twice"),
    Attempt(
        "fewer-experts-announced",
        _announced(num_experts=7),
        "gate_up_proj' is BF16",
    ),
    Attempt(
        "fewer-layers-announced",
        _announced(num_hidden_layers=1),
        "layers with experts in the files",
    ),
    Attempt(
        "mtp-not-announced",
        _announced(mtp_num_hidden_layers=0),
        "layers with experts in the files",
        FUSED_MTP,
    ),
    Attempt(
        "draft-asked-for-that-is-not-there",
        _each(_checkpoint_without_mtp, _options(parts=(Part.MTP,))),
        "announces no draft model",
        FUSED_MTP,
    ),
    Attempt(
        "dropped-draft-asked-for",
        _each(_dropped(), _options(parts=(Part.MTP,))),
        "mtp layers with experts in the files: none",
        FUSED_MTP,
    ),
    Attempt(
        "draft-without-experts",
        _dropped(lambda name: _is_mtp(name) and "expert" in name),
        "mtp layers with experts in the files: none",
        FUSED_MTP,
    ),
    Attempt(
        "draft-but-for-one-tensor",
        _dropped(lambda name: _is_mtp(name) and name != "mtp.norm.weight"),
        "mtp layers with experts in the files: none",
        MTP,
    ),
    Attempt(
        "draft-beside-the-index",
        _draft_beside_the_index,
        "mtp layers with experts in the files: none",
        FUSED_MTP,
    ),
    Attempt("draft-without-its-file", _draft_without_its_file, r"mtp\.safetensors", FUSED_MTP),
    Attempt("nothing-asked-for", _options(parts=()), "nothing to compare"),
    Attempt(
        "nothing-selected", _options(selection=Selection(max_bytes=1)), "leaves nothing to compare"
    ),
]  # fmt: skip


def _turned(tensors: Tensors) -> None:
    """The same bytes in another shape."""
    name = f"{LAYERS}.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name]._replace(shape=tensors[name].shape[::-1])


_A_LOG = f"{LAYERS}.0.linear_attn.A_log"

#: Tensors that are read as another type of the same width: the same bytes, other values.
RELABELLED: list[tuple[str, str, str]] = [
    ("state", re.escape(_A_LOG), Q),
    ("step-bias", rf"{re.escape(LAYERS)}.0.linear_attn.dt_bias", Q),
    ("norm", r"mtp\.norm\.weight", FUSED_MTP),
    ("head", re.escape(HEAD), VL),
    ("router", rf"{re.escape(LAYERS)}.1.mlp.gate.weight", VL),
    ("query", rf"{re.escape(LAYERS)}.0.self_attn.q_proj.weight", VL),
    ("vision", r"model\.visual\.pos_embed\.weight", VL),
    ("one-layers-experts", rf"{re.escape(LAYERS)}.1.mlp.experts.down_proj", VL),
    ("all-experts", r".*\.experts\..*", VL),
]


def _each_relabelled(names: str, dtype: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if re.fullmatch(names, name)]:
            tensors[name] = tensors[name]._replace(dtype=dtype)

    return change


def _in_both(change: Callable[[Tensors], object]) -> Tamper:
    """ModelCheckpoint and reference are alike; the devices hold what was there before."""
    return _each(_in_checkpoint(change), _in_reference(change))


def _state_as_f32(tensors: Tensors) -> None:
    """Stored in f32 with bits below bf16's last place, which the device has not got."""
    bits = np.frombuffer(tensors[_A_LOG].data, "<u2").astype("<u4") << 16
    tensors[_A_LOG] = Tensor("F32", tensors[_A_LOG].shape, (bits | 0x1234).tobytes())


#: The reference says another thing than the checkpoint that was loaded.
REFERENCES = [
    Attempt("bit-of-an-expert", _in_reference(_bytes(f"{_UP}.down_proj", _last_bit)), Kind.BITS),
    Attempt("bit-of-the-head", _in_reference(_bytes(HEAD, _last_bit)), Kind.BITS),
    Attempt(
        "bit-of-a-state", _in_reference(_bytes(_A_LOG, _last_bit)), Kind.BITS, Q,
    ),
    Attempt(
        "bit-of-a-vision-bias",
        _in_reference(_bytes("model.visual.blocks.1.attn.proj.bias", _last_bit)), Kind.BITS,
    ),
    Attempt(
        "bit-of-the-draft-model", _in_reference(_bytes("mtp.fc.weight", _last_bit)), Kind.BITS,
        FUSED_MTP,
    ),
    Attempt(
        "bit-of-the-checkpoint-in-a-kept-layer",
        _each(_cut, _in_reference(_bytes(f"{LAYERS}.0.mlp.gate.weight", _last_bit))), Kind.BITS,
    ),
    Attempt("head-and-embedding-exchanged", _in_reference(_swapped(HEAD, EMBEDDING)), Kind.BITS),
    Attempt(
        "layers-exchanged",
        _in_reference(_swapped(f"{_UP}.down_proj", f"{LAYERS}.1.mlp.experts.down_proj")), Kind.BITS,
    ),
    Attempt("shape-turned", _in_reference(_turned), Kind.SHAPE),
    Attempt(
        "offsets-exchanged",
        lambda w: edit_header(w.reference / FIRST, _offsets_exchanged), Kind.BITS,
    ),
    Attempt(
        "reference-tied",
        lambda w: change_config(w.reference, lambda c: c.update(tie_word_embeddings=True)),
        Kind.BITS,
    ),
    *(
        Attempt(f"{id_}-relabelled-{dtype.lower()}", _in_reference(_each_relabelled(names, dtype)),
                Kind.BITS, recipe)
        for id_, names, recipe in RELABELLED for dtype in ("F16", "I16")
    ),
    Attempt("state-truncated", _in_both(_state_as_f32), Kind.BITS, Q),
]  # fmt: skip


def _expert(which: Parameter, change: Callable[[Array], object], layer: int = 1) -> Tamper:
    return lambda world: change(world.expert_array(which, layer))


def _exchange(array: Array) -> None:
    array[[2, 5]] = array[[5, 2]]


def _halves(array: Array) -> None:
    """Gate and up of one expert; a shard has 128 columns of each."""
    pairs = array[3].reshape(len(array[3]), -1, 2, 128)
    pairs[:] = pairs[:, :, ::-1].copy()


def _transposed(array: Array) -> None:
    array[4] = array[4].T.reshape(array[4].shape)


def _put(at: Any, value: int) -> Callable[[Array], object]:
    return lambda array: array.__setitem__(at, value)


def _flip(at: Any, bit: int = 1) -> Callable[[Array], object]:
    return lambda array: array.__setitem__(at, array[at] ^ bit)


def _zeros_signed(array: Array) -> None:
    array[array == 0x8000] = 0


def _through_f16(array: Array) -> None:
    values = (array.astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):
        halved = values.astype("<f2").astype("<f4")
    array[:] = halved.view("<u4") >> 16


def _subnormals_flushed(array: Array) -> None:
    array[(array & 0x7F80) == 0] &= 0x8000


def _other_layer(world: World) -> None:
    world.expert_array(W2, 1)[6] = world.expert_array(W2, 0)[6]


def _layer_lost(world: World) -> None:
    del world.experts[Part.DECODER].arrays[1]


def _layer_more(world: World) -> None:
    arrays = world.experts[Part.DECODER].arrays
    arrays[2] = arrays[1]


def _drafts_of_the_decoder(world: World) -> None:
    world.experts[Part.MTP].arrays[0] = world.experts[Part.DECODER].arrays[0]


def _as(dtype: str) -> Callable[[Any], Any]:
    return lambda tensor: replace(tensor, dtype=dtype)


def _mend(end: str, mend: Callable[[Any], Any]) -> Tamper:
    return lambda world: world.mends.update({end: mend})


_W2_OF_1 = "layers.1.mlp.experts.routed_experts.w2_weight"
_NEIGHBOURS = {"cpu:2": "cpu:3", "cpu:3": "cpu:2"}

#: The classes of the fault catalogue, planted into experts on the devices.
EXPERTS = [
    Attempt("experts-one-bit", _expert(W2, _flip((6, 7, 3))), Kind.BITS),
    Attempt("experts-last-bit-of-the-last", _expert(W2, _flip((-1, -1, -1), 0x8000)), Kind.BITS),
    Attempt("experts-exchanged", _expert(W2, _exchange), Kind.BITS),
    Attempt("experts-exchanged-in-both", _each(_expert(W13, _exchange), _expert(W2, _exchange)),
            Kind.BITS),
    Attempt("experts-as-strings-sorted", _expert(W13, lambda a: np.copyto(a, a[::-1].copy())),
            Kind.BITS),
    Attempt("experts-gate-and-up-exchanged", _expert(W13, _halves), Kind.BITS),
    Attempt("experts-transposed", _expert(W2, _transposed), Kind.BITS),
    Attempt("experts-zeroed", _expert(W2, _put(7, 0)), Kind.BITS),
    Attempt("experts-never-written", _expert(W13, _put(slice(None), 0xDEAD)), Kind.BITS),
    Attempt("experts-last-rows-missing", _expert(W2, _put((slice(None), slice(-4, None)), 0)),
            Kind.BITS),
    Attempt("experts-rolled-by-a-row", _expert(W2, lambda a: np.copyto(a, np.roll(a, 1, axis=1))),
            Kind.BITS),
    Attempt("experts-of-another-layer", _other_layer, Kind.BITS),
    Attempt("experts-of-the-decoder-in-the-draft", _drafts_of_the_decoder, Kind.BITS, FUSED_MTP),
    Attempt("experts-sign-of-zero", _expert(W2, _zeros_signed), Kind.BITS),
    Attempt("experts-through-float16", _expert(W2, _through_f16), Kind.BITS),
    Attempt("experts-subnormals-flushed", _expert(W2, _subnormals_flushed), Kind.BITS),
    Attempt("experts-padding-dirty", _expert(W13, _flip((0, 0, 127))), Kind.PADDING),
    Attempt("experts-layer-lost", _layer_lost, Kind.MISSING),
    Attempt("experts-layer-more", _layer_more, Kind.EXTRA),
    Attempt("experts-dtype", _mend(_W2_OF_1, _as("F16")), Kind.DTYPE),
    Attempt("experts-on-each-others-devices", _mend(_W2_OF_1, on(_NEIGHBOURS)), Kind.SHARDING),
    Attempt("experts-on-no-device", _mend(_W2_OF_1, without_shard("cpu:2")), Kind.SHARDING),
    Attempt("experts-zero-on-no-device", _each(
        _in_reference(_bytes(f"{LAYERS}.1.mlp.experts.down_proj", lambda d: _blank(d))),
        _mend(_W2_OF_1, without_shard("cpu:2")),
    ), Kind.SHARDING),
    Attempt("experts-selected-one-bit", _each(
        _options(selection=Selection(experts="6")), _expert(W2, _flip((6, 7, 3)))), Kind.BITS),
    Attempt("experts-by-digests-one-bit", _each(
        _options(method=Method.DIGESTS), _expert(W2, _flip((6, 7, 3)))), Kind.BITS),
    Attempt("experts-by-digests-padding", _each(
        _options(method=Method.DIGESTS), _expert(W13, _flip((0, 0, 127)))), Kind.PADDING),
    Attempt("nan-canonical-forgives-no-sign", _each(
        _options(nan=Nan.CANONICAL), _expert(W2, _flip((6, 7, 3), 0x8000))), Kind.BITS),
    Attempt("nan-canonical-forgives-no-number", _each(
        _options(nan=Nan.CANONICAL), _expert(W2, _put((6, 7, 3), 0x7FC0))), Kind.BITS),
]  # fmt: skip


def _blank(data: bytearray) -> None:
    data[:] = bytes(len(data))


def _parameter(end: str, change: Callable[[Array], object]) -> Tamper:
    return lambda world: change(world.packed(end).array)


def _replica(world: World) -> None:
    device = world.parameters[Part.DECODER]
    (name,) = [n for n in device.packed if n.endswith("language_model.model.norm.weight")]
    device.reading[name, "cpu:3"] = lambda bits: np.where(np.arange(bits.size) == 9, bits ^ 1, bits)


def _packed_as(end: str, **fields: Any) -> Tamper:
    def change(world: World) -> None:
        packed = world.packed(end)
        for name, value in fields.items():
            setattr(packed, name, value)

    return change


def _planted(change: Change) -> Tamper:
    return lambda world: change(world.parameters[Part.DECODER])


#: The same of all other parameters.
PARAMETERS = [
    *(
        Attempt(
            f"parameters-{change.__name__.strip('_').replace('_', '-')}-{recipe.split('-')[0]}",
            _planted(change),
            Kind.BITS,
            recipe,
        )
        for recipe, change, _, _ in FAULTS
    ),
    Attempt("parameters-one-replica", _replica, Kind.BITS),
    Attempt("parameters-dtype", _packed_as("lm_head.weight", dtype="F16"), Kind.DTYPE),
    Attempt("parameters-replicated", _packed_as("lm_head.weight", axis=None), Kind.SHARDING),
    Attempt("parameters-cut-elsewhere", _packed_as("lm_head.weight", axis=1), Kind.SHARDING),
    Attempt("parameters-on-each-others-devices",
            _mend("lm_head.weight", on(_NEIGHBOURS)), Kind.SHARDING),
    Attempt("parameters-on-no-device",
            _mend("lm_head.weight", without_shard("cpu:2")), Kind.SHARDING),
    Attempt("parameters-outside-the-mesh", _mend("lm_head.weight", on({"cpu:2": "cpu:0"})),
            Kind.SHARDING),
    Attempt("parameters-state-below-bf16", _parameter("layers.0.linear_attn.A_log", _flip(3)),
            Kind.BITS, Q),
    Attempt("parameters-sign-of-zero",
            _each(_in_reference(_bytes("model.language_model.norm.weight", lambda d: _blank(d))),
                  _parameter("language_model.model.norm.weight", _put(slice(None), 0x8000))),
            Kind.BITS),
]  # fmt: skip

#: What pads the vocabulary has to be zero.
PADDING = [
    Attempt("vocabulary-padding-dirty", _parameter("lm_head.weight", _flip((505, 9))),
            Kind.PADDING, UNEVEN),
    Attempt("vocabulary-padding-unwritten",
            _parameter("embed_tokens.weight", _put(slice(500, None), 0xDEAD)), Kind.PADDING,
            UNEVEN),
    Attempt("vocabulary-last-row", _parameter("lm_head.weight", _flip((499, 127))), Kind.BITS,
            UNEVEN),
    Attempt("vocabulary-row-more", _in_reference(lambda t: t.update({HEAD: some((501, 128))})),
            Kind.BITS, UNEVEN),
]  # fmt: skip

LEDGERS = [
    Attempt("ledger-not-finished", _ledger(finished=False), "did not see its end"),
    Attempt("ledger-past-the-recorder", _ledger(bypassed=["a"]), "what wrote 1 parameters"),
    Attempt("ledger-nothing-streamed", _ledger(streamed=[]), "a streamed tensor"),
    Attempt("ledger-no-call", _ledger(streamed=[], calls=[]), "a call of a weight_loader"),
    Attempt(
        "ledger-tensor-unread", _ledger(streamed=[HEAD], calls=[call(source="a")]), Kind.UNREAD
    ),
    Attempt("ledger-streamed-from-nowhere", _ledger(streamed=["foo"]), Kind.UNREAD),
    Attempt("ledger-parameter-unwritten", _ledger(unwritten=["a.weight"]), Kind.UNWRITTEN),
]

ATTEMPTS = [*ACCOUNTS, *FILES, *REFERENCES, *EXPERTS, *PARAMETERS, *PADDING, *LEDGERS]


def _canonical(world: World) -> None:
    """NaNs on the devices as they are after a cast to f32 and back."""
    world.options["nan"] = Nan.CANONICAL
    for layer in world.experts[Part.DECODER].arrays.values():
        for array in layer.values():
            array[:] = canonical_nans(array)


def _backwards(tensors: Tensors) -> None:
    for name in list(tensors)[::-1]:
        tensors[name] = tensors.pop(name)


def _tied(world: World) -> None:
    """Both say that the head is the embedding, and hold one all the same."""
    for path in (world.checkpoint, world.reference):
        change_config(path, lambda c: c.update(tie_word_embeddings=True))
    for part, device in world.parameters.items():
        start = "vllm_model.language_model." if part is Part.DECODER else "vllm_model."
        device.packed[f"{start}lm_head.weight"] = next(
            packed for name, packed in device.packed.items() if "embed_tokens" in name
        )


def _only(*parts: Part) -> Tamper:
    """Ask for these, and load them alone."""

    def change(world: World) -> None:
        world.options["parts"] = parts
        for part in set(world.parameters) - set(parts):
            del world.parameters[part], world.experts[part]

    return change


def _state_as_f16(world: World) -> None:
    """Stored as F16, and so read: the devices hold the values in f32."""
    values = np.linspace(-4, 4, 16, dtype="<f2")

    def store(tensors: Tensors) -> None:
        tensors[_A_LOG] = Tensor("F16", tensors[_A_LOG].shape, values.tobytes())

    _in_both(store)(world)
    world.packed("layers.0.linear_attn.A_log").array = values.astype("<f4").view("<u4")


#: By id: what is done to an honest world that stays one, and the recipe.
HONEST: dict[str, tuple[Tamper, str]] = {
    **{f"untouched-{recipe}": (lambda world: None, recipe) for recipe in (VL, Q, FUSED_MTP, MTP)},
    "single-file-reference": (_in_reference(lambda tensors: None), VL),
    "reference-in-another-order": (_in_reference(_backwards), VL),
    "checkpoint-in-another-order": (_in_checkpoint(_backwards), FUSED_MTP),
    "reference-per-expert": (_in_reference(_one_by_one), FUSED_MTP),
    "checkpoint-per-expert": (_in_checkpoint(_one_by_one), FUSED_MTP),
    "tied-with-a-head": (_tied, FUSED_MTP),
    "nan-canonical": (_canonical, VL),
    "state-stored-as-f16": (_state_as_f16, Q),
    "vocabulary-of-500-on-eight-devices": (lambda world: None, UNEVEN),
    "layers-left-out": (_cut, VL),
    "decoder-only": (_only(Part.DECODER), FUSED_MTP),
    "draft-only": (_only(Part.MTP), MTP),
    "decoder-only-reference-without-mtp": (
        _each(_reference_without_mtp, _only(Part.DECODER)), FUSED_MTP,
    ),
    "dropped-draft": (_dropped(), FUSED_MTP),
    "dropped-draft-per-expert": (_dropped(), MTP),
    "dropped-draft-nobody-asked-for": (_each(_dropped(), _options(parts=(Part.DECODER,))), MTP),
    "some-experts": (_options(selection=Selection(layers="0", experts="0,-1")), VL),
    "some-bytes": (_options(selection=Selection(max_bytes=10**6)), MTP),
    "bit-of-what-was-not-selected": (
        _each(_options(selection=Selection(experts="0-5")), _expert(W2, _flip((6, 7, 3)))), VL,
    ),
    "by-digests": (_options(method=Method.DIGESTS), VL),
}  # fmt: skip


class _Guessed:
    """Experts as vLLM 0.26 takes them where 2F = D: gate and up by rows that are inputs."""

    def __init__(self, part: ReferencePart, wrong: Callable[[ExpertKey], bool]) -> None:
        self.part, self.shape = part.part, part.shape
        self._reference, self._wrong = part, wrong

    def __getitem__(self, key: ExpertKey) -> Bits:
        if key.projection is Projection.DOWN or not self._wrong(key):
            return self._reference[key]
        gate, up = (self._reference[key._replace(projection=p)] for p in GATE_AND_UP)
        taken = np.concatenate([gate, up]).T
        return taken[: len(gate)] if key.projection is Projection.GATE else taken[len(gate) :]


GATE_AND_UP = (Projection.GATE, Projection.UP)


def _guessed(wrong: Callable[[ExpertKey], bool]) -> Tamper:
    def change(world: World) -> None:
        device = world.experts[Part.DECODER]
        (part,) = reference_parts(ModelCheckpoint(world.checkpoint))
        guessed: Any = _Guessed(part, wrong)
        device.arrays = {layer: pack(guessed, layer, device.backend, 4) for layer in part.layers}

    return change


#: A known issue, as it is; and what is taken for it at a glance.
ORIENTATION_GUESSED = _guessed(lambda key: True)
UNKNOWN: dict[str, Tamper] = {
    "known-issue-16-differences": _guessed(lambda key: key.layer == 0),
    "known-issue-30-differences": _guessed(lambda key: (key.layer, key.expert) != (1, 7)),
    "known-issue-and-a-stray-tensor": _each(ORIENTATION_GUESSED, _in_reference(_added("foo"))),
    "known-issue-and-a-tensor-unread": _each(
        ORIENTATION_GUESSED, _ledger(streamed=["foo"], calls=[call(source="a")])
    ),
    "known-issue-and-a-bit": _each(ORIENTATION_GUESSED, _expert(W2, _flip((6, 7, 3)))),
    "known-issue-and-other-gates": _each(
        ORIENTATION_GUESSED, _expert(W13, lambda array: np.copyto(array[3], array[3][::-1].copy()))
    ),
}

_FAILURE = Failure(error="RuntimeError", message="no")
_UNREAD = unread("foo")

#: Reports that say "equal", and something else.
REPORTS: dict[str, dict[str, Any]] = {
    "report-equal-with-a-difference": {"differences": [_UNREAD]},
    "report-equal-with-a-failure": {"failure": _FAILURE},
    "report-equal-with-both": {"differences": [_UNREAD], "failure": _FAILURE},
    "report-equal-of-nothing": {"tallies": []},
    "report-equal-of-fewer-experts": {
        "tallies": [Tally(part=Part.DECODER, layers=1, experts=8, experts_compared=7)]
    },
    "report-equal-with-a-tensor-unaccounted": {
        "accounts": [Account(side=Side.REFERENCE, tensors=3, compared=2, unaccounted=1)]
    },
    "report-equal-to-another-digest-file": {
        "digests": DigestsUsed(file="a", definition=1, revision="", checksum="")
    },
    "report-equal-with-a-tensor-uncounted": {
        "accounts": [Account(side=Side.REFERENCE, tensors=3, compared=1, left_alone={"a": 1})]
    },
}
