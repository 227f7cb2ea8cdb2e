"""A device made of numpy arrays: parameters besides experts, packed forward as upstream does it.

Written from upstream's description (concatenate, repeat k and v heads, cut each tensor into n and
lay the i-th pieces side by side, transpose), not from :mod:`harness.devices.parameter_layout`, so
that the two check each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.devices.expert_layout import Span
from harness.devices.mesh import Mesh
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.packing import held

Array = npt.NDArray[Any]
LANGUAGE = "vllm_model.language_model.model."


@dataclass
class Packed:
    """One array and the axis it is cut along; None for a copy on every device."""

    array: Array
    axis: int | None
    dtype: str = "BF16"


class PackedParameters:
    """A part's parameters on a numpy device; change ``packed`` to plant a fault."""

    def __init__(self, checkpoint: ModelCheckpoint, part: Part, devices: int = 4) -> None:
        self.checkpoint = checkpoint
        self.devices = tuple(f"cpu:{number + 1}" for number in range(devices))
        self.n = devices
        self.text = checkpoint.config["text_config"]
        make = self._decoder if part is Part.DECODER else self._mtp
        self.packed: dict[str, Packed] = dict(make())
        #: Shards that are replaced as a whole: device, and how its reading is changed.
        self.reading: dict[tuple[str, str], Callable[[Array], Array]] = {}

    def tensors(self) -> list[DeviceTensor]:
        """What the comparison sees."""
        return [self.tensor(name, packed) for name, packed in self.packed.items()]

    def tensor(self, name: str, packed: Packed) -> DeviceTensor:
        shards = []
        for number, device in enumerate(self.devices):
            index = [Span(0, size) for size in packed.array.shape]
            if packed.axis is not None:
                part = packed.array.shape[packed.axis] // self.n
                index[packed.axis] = Span(number * part, (number + 1) * part)
            bits = packed.array[tuple(span.as_slice() for span in index)]
            change = self.reading.get((name, device), _unchanged)
            part = change(bits)
            shards.append(
                DeviceShard(
                    device, tuple(index), _reader(part), in_host_memory=True, held=held(part)
                )
            )
        return DeviceTensor(name, packed.dtype, packed.array.shape, tuple(shards))

    def get(self, name: str) -> Array:
        return np.array(self.checkpoint.bits(name), copy=True)

    def _decoder(self) -> Iterator[tuple[str, Packed]]:
        yield f"{LANGUAGE}embed_tokens.weight", self._vocabulary("embed")
        yield "vllm_model.language_model.lm_head.weight", self._vocabulary("head")
        yield f"{LANGUAGE}norm.weight", Packed(self.get("model.language_model.norm.weight"), None)
        for layer in range(self.text["num_hidden_layers"]):
            here = f"model.language_model.layers.{layer}."
            yield from self._layer(f"{LANGUAGE}layers.{layer}.", here)
        yield from self._visual()

    def _mtp(self) -> Iterator[tuple[str, Packed]]:
        yield "vllm_model.model.embed_tokens.weight", self._vocabulary("embed")
        yield "vllm_model.lm_head.weight", self._vocabulary("head")
        yield "vllm_model.model.fc.weight", Packed(self.get("mtp.fc.weight").T, 1)
        for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            yield f"vllm_model.model.{norm}.weight", Packed(self.get(f"mtp.{norm}.weight"), None)
        yield from self._layer("vllm_model.model.layers.0.", "mtp.layers.0.")

    def _vocabulary(self, which: str) -> Packed:
        names = {"embed": "model.language_model.embed_tokens.weight", "head": "lm_head.weight"}
        rows = self.get(names[which])
        missing = -len(rows) % 64
        return Packed(np.concatenate([rows, np.zeros((missing, rows.shape[1]), "<u2")]), 0)

    def _layer(self, name: str, here: str) -> Iterator[tuple[str, Packed]]:
        def get(tail: str) -> Array:
            return self.get(here + tail)

        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}{norm}.weight", Packed(get(f"{norm}.weight"), None)
        router = get("mlp.gate.weight")
        vl = self.checkpoint.family.name == "qwen3-vl-moe"
        yield f"{name}mlp.gate.weight", Packed(router.T if vl else router, None)
        if not vl:
            expert = "mlp.shared_expert"
            halves = [get(f"{expert}.{p}_proj.weight") for p in ("gate", "up")]
            yield f"{name}{expert}.gate_up_proj.weight", Packed(side_by_side(halves, self.n).T, 1)
            down = get(f"{expert}.down_proj.weight")
            yield f"{name}{expert}.down_proj.weight", Packed(down.T, 0)
            gate = get("mlp.shared_expert_gate.weight")
            yield f"{name}mlp.shared_expert_gate.weight", Packed(gate, None)
        if f"{here}self_attn.q_proj.weight" in self.checkpoint.entries:
            yield from self._attention(f"{name}self_attn.", f"{here}self_attn.")
        else:
            yield from self._linear(f"{name}linear_attn.", f"{here}linear_attn.")

    def _attention(self, name: str, here: str) -> Iterator[tuple[str, Packed]]:
        q, k, v = (self.get(f"{here}{p}_proj.weight") for p in "qkv")
        heads, width = self.text["num_key_value_heads"], self.text["head_dim"]
        k, v = (repeated(rows, heads, width, max(1, self.n // heads)) for rows in (k, v))
        yield f"{name}qkv_proj.weight", Packed(side_by_side([q, k, v], self.n).T, 1)
        yield f"{name}o_proj.weight", Packed(self.get(f"{here}o_proj.weight").T, 0)
        for norm in ("q_norm", "k_norm"):
            yield f"{name}{norm}.weight", Packed(self.get(f"{here}{norm}.weight"), None)
        for scale in ("q", "k", "v", "prob"):
            one = np.array(0x3F800000, dtype="<u4")
            yield f"{name}attn._{scale}_scale", Packed(one, None, "F32")
        yield f"{name}rotary_emb.cos_sin_cache", Packed(np.zeros((8, 4), "<u2"), None)

    def _linear(self, name: str, here: str) -> Iterator[tuple[str, Packed]]:
        keys = self.text["linear_num_key_heads"] * self.text["linear_key_head_dim"]
        mixed, z = self.get(f"{here}in_proj_qkv.weight"), self.get(f"{here}in_proj_z.weight")
        parts = [mixed[:keys], mixed[keys : 2 * keys], mixed[2 * keys :], z]
        yield f"{name}in_proj_qkvz.weight", Packed(side_by_side(parts, self.n).T, 1)
        parts = [self.get(f"{here}in_proj_{p}.weight") for p in "ba"]
        yield f"{name}in_proj_ba.weight", Packed(side_by_side(parts, self.n).T, 1)
        yield f"{name}out_proj.weight", Packed(self.get(f"{here}out_proj.weight").T, 0)
        for leaf in ("conv1d.weight", "dt_bias", "norm.weight"):
            yield f"{name}{leaf}", Packed(self.get(f"{here}{leaf}"), None)
        decay = self.get(f"{here}A_log").astype("<u4") << 16
        yield f"{name}A_log", Packed(decay, None, "F32")

    def _visual(self) -> Iterator[tuple[str, Packed]]:
        for tensor in self.checkpoint.entries:
            if tensor.startswith("model.visual."):
                yield f"vllm_{tensor}", self._seen(tensor)

    def _seen(self, tensor: str) -> Packed:
        bits, matrix = self.get(tensor), tensor.endswith(".weight")
        if ".attn.qkv." in tensor:
            bits = side_by_side(list(bits.reshape(3, -1, *bits.shape[1:])), self.n)
        if ".attn.qkv." in tensor or ".linear_fc1." in tensor:
            return Packed(bits.T, 1) if matrix else Packed(bits, 0)
        if ".linear_fc2." in tensor or ".attn.proj." in tensor:
            return Packed(bits.T, 0) if matrix else Packed(bits, None)
        return Packed(bits, None)


def line(devices: tuple[str, ...]) -> Mesh:
    """A mesh of one axis."""
    return Mesh((("model", len(devices)),), devices)


def side_by_side(parts: list[Array], n: int) -> Array:
    """Cut each part into n along its rows; piece 0 of all parts, then piece 1 of all …"""
    pieces = [part.reshape(n, -1, *part.shape[1:]) for part in parts]
    return np.concatenate([piece[i] for i in range(n) for piece in pieces])


def repeated(rows: Array, heads: int, width: int, times: int) -> Array:
    """Each head ``times`` in a row."""
    return np.concatenate(
        [rows[h * width : (h + 1) * width] for h in range(heads) for _ in range(times)]
    )


def _unchanged(bits: Array) -> Array:
    return bits


def _reader(bits: Array) -> Callable[[Any], Array]:
    return lambda index: bits[index]
