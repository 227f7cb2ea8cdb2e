"""A device made of numpy arrays: experts packed forward, as tpu-inference's documentation tells it.

Written from the description (cut F into n pieces, pad each to 128, lay w1 and w3 pieces side by
side, shard the last axis; for the fused kernel stack w1 and w3 and pad both axes to 256), not
from :mod:`harness.devices.expert_layout`, so that the two check each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits
from harness.devices.digest import Words, feature_sums, finished
from harness.devices.expert_layout import Backend, Parameter, Span
from harness.devices.programs import Askable, FeatureSums, Programs, Question, Rectangle, Shares
from harness.devices.tensors import DevicePart, DeviceShard, DeviceTensor, device_part
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Projection

Array = npt.NDArray[np.uint16]


Packed = dict[Parameter, Array]

#: The axis each backend cuts its two arrays along.
AXES = {
    Backend.GMM_TP: (2, 1),
    Backend.GMM_EP: (0, 0),
    Backend.FUSED_MOE: (0, 0),
    Backend.XLA_TP: (1, 2),
    Backend.XLA_EP: (0, 0),
}


def pack(reference: ReferencePart, layer: int, backend: Backend, devices: int) -> Packed:
    """A layer's w13 and w2, as ``backend`` lays them out for ``devices``."""
    experts = [_matrices(reference, layer, e) for e in range(reference.shape.experts)]
    match backend:
        case Backend.GMM_TP | Backend.GMM_EP:
            pieces = devices if backend is Backend.GMM_TP else 1
            w13 = [_interleaved(gate, up, pieces) for gate, up, _ in experts]
            w2 = [down.T for *_, down in experts]
        case Backend.FUSED_MOE:
            w13 = [np.stack([_tiled(gate.T), _tiled(up.T)]) for gate, up, _ in experts]
            w2 = [_tiled(down.T) for *_, down in experts]
        case _:
            w13 = [np.concatenate([gate, up]) for gate, up, _ in experts]
            w2 = [down for *_, down in experts]
    return {
        Parameter.W13: np.stack(w13).astype(np.uint16),
        Parameter.W2: np.stack(w2).astype(np.uint16),
    }


def _matrices(reference: ReferencePart, layer: int, expert: int) -> tuple[Array, Array, Array]:
    gate, up, down = (
        np.asarray(reference[ExpertKey(reference.part, layer, expert, p)], dtype=np.uint16)
        for p in Projection
    )
    return gate, up, down


def _interleaved(gate: Array, up: Array, pieces: int) -> Array:
    laid = []
    for number in range(pieces):
        for matrix in (gate, up):
            piece = np.split(matrix, pieces)[number]
            laid.append(np.pad(piece, ((0, -len(piece) % 128), (0, 0))))
    return np.concatenate(laid).T


def _tiled(matrix: Array) -> Array:
    return np.pad(matrix, [(0, -size % 256) for size in matrix.shape])


def sharded(name: str, array: Array, axis: int, mesh: tuple[str, ...]) -> DeviceTensor:
    """``array`` cut along ``axis`` over ``mesh``, in order."""
    size = array.shape[axis] // len(mesh)
    shards = []
    for number, device in enumerate(mesh):
        index = [Span(0, n) for n in array.shape]
        index[axis] = Span(number * size, (number + 1) * size)
        part = array[tuple(span.as_slice() for span in index)]
        shards.append(
            DeviceShard(
                device, tuple(index), _reader(part), in_host_memory=True, held=held(part)
            )
        )  # fmt: skip
    return DeviceTensor(name, "BF16", array.shape, tuple(shards))


def replicated(tensor: DeviceTensor, array: Array) -> DeviceTensor:
    """The tensor as it is when every device holds all of ``array``."""
    whole = tuple(Span(0, n) for n in array.shape)
    shards = tuple(
        replace(shard, index=whole, fetch=_reader(array), held=held(array))
        for shard in tensor.shards
    )
    return replace(tensor, shards=shards)


class HostPrograms(Programs):
    """What a device's programs give, by the host's."""

    def start(self, asked: Sequence[tuple[Any, Question]]) -> Callable[[], Words]:
        words = [
            np.asarray(_answer(array, question), np.uint32).ravel() for array, question in asked
        ]
        return lambda: np.concatenate(words)


def held(part: npt.NDArray[Any]) -> Askable:
    """A part of an array, as a device that makes digests holds it."""
    return Askable(part, HostPrograms())


def _answer(part: npt.NDArray[Any], question: Question) -> Any:
    if isinstance(question, FeatureSums):
        matrix = question.matrix(part)
        by_feature = matrix if question.features_axis == 0 else matrix.T
        return feature_sums(by_feature, first=question.first)
    whole = part.reshape(part.shape[0], -1, part.shape[-1])
    if isinstance(question, Shares):
        return [[_share(expert, r) for expert in whole] for r in question.rectangles]
    return [
        whole[:, rows.as_slice(), columns.as_slice()].any(axis=(1, 2))
        for rows, columns in question.rectangles
    ]


def _share(expert: Array, place: Rectangle) -> Any:
    matrix = expert[place.rows.as_slice(), place.columns.as_slice()]
    by_feature = matrix if place.hidden_axis == 1 else matrix.T
    return finished(feature_sums(by_feature), place.first, place.width)


def _reader(part: Array) -> Callable[[Any], Bits]:
    return lambda index: part[index]


class PackedDevice:
    """A part's experts on a numpy device; change ``arrays`` to plant a fault, then ``part()``."""

    def __init__(
        self, reference: ReferencePart, devices: int = 4, backend: Backend = Backend.GMM_TP
    ) -> None:
        self.mesh = tuple(f"cpu:{number + 1}" for number in range(devices))
        self.backend = backend
        self.arrays = {
            layer: pack(reference, layer, backend, devices) for layer in reference.layers
        }

    def tensor(self, layer: int, parameter: Parameter) -> DeviceTensor:
        """One array, sharded as its layout says."""
        axis = AXES[self.backend][list(Parameter).index(parameter)]
        name = f"vllm_model.model.layers.{layer}.mlp.experts.routed_experts.{parameter}"
        return sharded(name, self.arrays[layer][parameter], axis, self.mesh)

    def part(self) -> DevicePart:
        """What the comparison sees."""
        tensors = [self.tensor(layer, p) for layer in self.arrays for p in Parameter]
        return device_part(tensors, self.mesh, module="mlp.experts")
