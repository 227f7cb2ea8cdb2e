"""A device made of numpy arrays: parameters as tpu-inference's own Gemma-4 holds them.

Written from upstream's loader (``models/jax/utils/weight_utils.py``, ``JaxAutoWeightsLoader``, and
``models/jax/{gemma4,gemma4_mm}.py``, 0.32), not from :mod:`harness.families.own_models`, so that
the two check each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.parameter_packing import Array, Packed, PackedParameters, side_by_side

_TEXT, _TOWER = "model.language_model", "model.vision_tower"


class OwnParameters(PackedParameters):
    """All parameters of a Gemma-4 but its experts; change ``packed`` to plant a fault."""

    def __init__(self, checkpoint: ModelCheckpoint, devices: int = 4) -> None:
        self.checkpoint = checkpoint
        self.devices = tuple(f"cpu:{number + 1}" for number in range(devices))
        self.n = devices
        self.text = checkpoint.config["text_config"]
        self.reading = {}
        self.packed = dict(self._all())

    def _all(self) -> Iterator[tuple[str, Packed]]:
        names = [name for name in self.checkpoint.entries if ".experts." not in name]
        for name in names:
            if ".up_proj.weight" in name:
                continue  # of the MLP, which is made where gate is met
            if ".gate_proj.weight" in name:
                halves = [self.get(name), self.get(name.replace("gate_proj", "up_proj"))]
                fused = side_by_side(halves, self.n).T
                yield name.replace("gate_proj", "gate_up_proj"), Packed(fused, 1)
                continue
            called = name.replace(f"{_TOWER}.encoder.", f"{_TOWER}.").replace(".linear.", ".")
            yield called, self._packed(name)

    def _packed(self, name: str) -> Packed:
        bits, seen = self.get(name), name.startswith(_TOWER)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) or (
            seen and name.endswith(tuple(f"{p}_proj.linear.weight" for p in "qkv"))
        ):
            heads = self._heads(name)
            array = bits.reshape(heads, -1, bits.shape[1]).transpose(2, 0, 1)
            return Packed(array, 2 if heads % self.n else 1)
        if ".o_proj." in name:
            heads = self._heads(name)
            return Packed(bits.reshape(bits.shape[0], heads, -1).transpose(1, 2, 0), 0)
        if name == f"{_TEXT}.embed_tokens.weight":
            return Packed(bits, 0)
        if name.endswith("position_embedding_table"):
            return Packed(bits.transpose(1, 0, 2), None)
        if ".down_proj." in name:
            return Packed(bits.T, 0)
        if bits.ndim == 2:
            return Packed(bits.T, None if ".router." in name else 1)
        return Packed(bits, None)

    def _heads(self, name: str) -> int:
        if name.startswith(_TOWER):
            return int(self.checkpoint.config["vision_config"]["num_attention_heads"])
        if not name.endswith(("k_proj.weight", "v_proj.weight")):
            return int(self.text["num_attention_heads"])
        full = ".layers.1." in name
        return int(self.text["num_global_key_value_heads" if full else "num_key_value_heads"])


def changed(array: Array, at: tuple[int, ...]) -> Array:
    """The array with the lowest bit of one element turned."""
    copy = np.array(array, copy=True)
    copy[at] ^= 1
    return copy
