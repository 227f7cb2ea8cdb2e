"""A device made of numpy arrays: experts packed forward, as tpu-inference's documentation tells it.

Written from the description (cut F into n pieces, pad each to 128, lay w1 and w3 pieces side by
side, shard the last axis), not from :mod:`harness.layout`, so that the two check each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from harness.device import DevicePart, DeviceShard, DeviceTensor
from harness.dtypes import Bits
from harness.experts import ExpertKey, ReferencePart
from harness.family import Projection
from harness.layout import Parameter, Span

Array = npt.NDArray[np.uint16]


def pack(reference: ReferencePart, layer: int, devices: int) -> dict[Parameter, Array]:
    """A layer's w13 [E, D, 2 * padded F] and w2 [E, F, D]."""
    w13, w2 = [], []
    for expert in range(reference.shape.experts):
        gate, up, down = (
            np.asarray(reference[ExpertKey(reference.part, layer, expert, projection)])
            for projection in Projection
        )
        pieces = []
        for shard in range(devices):
            for matrix in (gate, up):
                piece = np.split(matrix, devices)[shard]
                pieces.append(np.pad(piece, ((0, -len(piece) % 128), (0, 0))))
        w13.append(np.concatenate(pieces).T)
        w2.append(down.T)
    return {
        Parameter.W13: np.stack(w13).astype(np.uint16),
        Parameter.W2: np.stack(w2).astype(np.uint16),
    }


def sharded(name: str, array: Array, axis: int, mesh: tuple[str, ...]) -> DeviceTensor:
    """``array`` cut along ``axis`` over ``mesh``, in order."""
    size = array.shape[axis] // len(mesh)
    shards = []
    for number, device in enumerate(mesh):
        index = [Span(0, n) for n in array.shape]
        index[axis] = Span(number * size, (number + 1) * size)
        part = array[tuple(span.as_slice() for span in index)]
        shards.append(DeviceShard(device, tuple(index), _expert_reader(part)))
    return DeviceTensor(name, "BF16", array.shape, tuple(shards))


def replicated(tensor: DeviceTensor, array: Array) -> DeviceTensor:
    """The tensor as it is when every device holds all of ``array``."""
    whole = tuple(Span(0, n) for n in array.shape)
    shards = tuple(
        DeviceShard(shard.device, whole, _expert_reader(array)) for shard in tensor.shards
    )
    return replace(tensor, shards=shards)


def _expert_reader(part: Array) -> Callable[[int], Bits]:
    return lambda expert: part[expert]


class PackedDevice:
    """A part's experts on a numpy device; change ``arrays`` to plant a fault, then ``part()``."""

    def __init__(self, reference: ReferencePart, devices: int = 4) -> None:
        self.mesh = tuple(f"cpu:{number + 1}" for number in range(devices))
        self.arrays = {layer: pack(reference, layer, devices) for layer in reference.layers}

    def tensor(self, layer: int, parameter: Parameter) -> DeviceTensor:
        """One array, sharded as its layout says."""
        axis = 2 if parameter is Parameter.W13 else 1
        name = f"vllm_model.model.layers.{layer}.mlp.experts.routed_experts.{parameter}"
        return sharded(name, self.arrays[layer][parameter], axis, self.mesh)

    def part(self) -> DevicePart:
        """What the comparison sees."""
        layers = {
            layer: {parameter: self.tensor(layer, parameter) for parameter in Parameter}
            for layer in self.arrays
        }
        return DevicePart(layers, (), self.mesh)
