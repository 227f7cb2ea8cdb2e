"""What a format of quantised experts is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.base.bits import Bits, converted
from harness.checkpoint.grids import Quantised, Values
from harness.families.storage import ExpertNaming, Part, Storage

#: Keeps tpu-inference from quantising anew, where the format's loader asks (``envs.py``).
UNCHANGED = "DISABLE_WEIGHT_REQUANTIZATION"

#: Variables by which a user chooses the grid that is quantised onto (tpu-inference ``envs.py``).
OWN_GRID = (
    "MOE_REQUANTIZE_WEIGHT_DTYPE", "MOE_REQUANTIZE_BLOCK_SIZE", "MOE_REQUANTIZE_CLIP_PERCENTILE",
)  # fmt: skip

Fill = Callable[[npt.NDArray[np.uint16]], npt.NDArray[np.uint16]]


class Stored(NamedTuple):
    """Bits of a tensor, or of an expert's part of it, and their dtype."""

    bits: Bits
    dtype: str

    @property
    def f32(self) -> Values:
        """The values, as f32."""
        wide = converted(np.ascontiguousarray(self.bits), self.dtype, "F32")
        return np.ascontiguousarray(wide).view(np.float32)

    @property
    def as_bf16(self) -> Values:
        """The values as bf16 has them, as f32."""
        bits = converted(np.ascontiguousarray(self.bits), self.dtype, "BF16")
        return Stored(bits, "BF16").f32

    def nibbles(self) -> Bits:
        """Codes of four bits, the lower bits first: the last axis is as many times as long.

        Of words of four bytes the least byte comes first.
        """
        whole = np.ascontiguousarray(self.bits)
        octets = whole.view("<u1")
        both = np.stack([octets & 0xF, octets >> 4], axis=-1)
        return both.reshape(*whole.shape[:-1], -1)


@dataclass(frozen=True)
class TensorKind:
    """One kind of tensor that a matrix [outputs, inputs] is stored in.

    Attributes:
        suffix: what its name ends with: after the matrix's own name and a dot, or, where experts
            are fused, an underscore.
        dtype: what it is published as.
        shape: of the matrix's sizes, outputs and inputs.
        fill: makes what it may hold of random words of two bytes.
        weighs: whether the weights follow from it; what does not, as the scale of activations,
            is read by the loader and compared with nothing.
        optional: whether releases leave it out.
        left: upstream leaves it on the device as well, as ``w13_weight_scale_2`` [E, 2] and
            ``w2_weight_scale_2`` [E].
        sizes: it holds the matrix's sizes, as integers of eight bytes.
    """

    suffix: str
    dtype: str
    shape: Callable[[int, int], tuple[int, ...]]
    fill: Fill
    weighs: bool = True
    optional: bool = False
    left: bool = False
    sizes: bool = False

    @property
    def converted(self) -> bool:
        """Whether another type does as well: loaders copy what is a number, of any type."""
        return self.dtype in ("BF16", "F16", "F32") or not self.weighs

    def content(self, outputs: int, inputs: int) -> Fill:
        """What makes the content of the tensor of one matrix."""
        if not self.sizes:
            return self.fill
        held = np.array([outputs, inputs], dtype="<i8").view("<u2")
        return lambda words: held


@dataclass(frozen=True)
class Form:
    """What upstream makes of a format on a device.

    Attributes:
        dtype: of the codes there.
        block: inputs that share a scale; None for all of a matrix.
        kept: codes and scales are the checkpoint's, bit for bit.
        padded: inputs are padded to whole blocks, and outputs of the other array alike.
    """

    dtype: str
    block: int | None
    kept: bool = False
    padded: bool = False


@dataclass(frozen=True)
class WeightFormat(ABC):
    """A format as one checkpoint has it.

    Attributes:
        name: as scenarios and reports call it.
        summary: what it is, for a list.
        fused: all experts of a layer are in one tensor.
        can_be_kept: ``DISABLE_WEIGHT_REQUANTIZATION`` keeps its codes and scales.
        tensors: the kinds of tensor that a matrix is stored in; the codes come first.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    fused: ClassVar[bool] = False
    can_be_kept: ClassVar[bool] = False

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorKind, ...]:
        """The kinds of tensor that a matrix is stored in; the codes come first."""

    @classmethod
    @abstractmethod
    def of(cls, quantization: Mapping[str, Any]) -> WeightFormat | None:
        """The format, if ``quantization_config`` of config.json announces it."""

    @abstractmethod
    def config(self, plain: Sequence[str]) -> dict[str, Any]:
        """``quantization_config``, where the modules of ``plain`` are not quantised."""

    @abstractmethod
    def decoded(self, stored: Mapping[str, Stored], outputs: int, inputs: int) -> Quantised:
        """What the tensors of a matrix [outputs, inputs] mean.

        Args:
            stored: by suffix, those that the weights follow from; of one matrix alone.
            outputs: rows of the matrix.
            inputs: columns.
        """

    def misread(
        self, stored: Mapping[str, Stored], outputs: int, inputs: int
    ) -> Iterator[tuple[str, str, Quantised]]:
        """What the tensors of a matrix may be mistaken for, besides what any may be.

        Yields:
            Of what kind the mistake is, ``scale``, ``zero`` or ``order``; in words; and that.
        """
        yield from ()

    @property
    @abstractmethod
    def form(self) -> Form:
        """What becomes of it on a device, with the variables of this process."""

    def naming(self, published: ExpertNaming) -> ExpertNaming:
        """How a part's experts are named in it, from how they are named in bf16."""
        return replace(single(published), suffix=self.tensors[0].suffix)


def single(naming: ExpertNaming) -> ExpertNaming:
    """Every expert's matrices as tensors of their own."""
    if naming.storage is Storage.PER_EXPERT:
        return naming
    return ExpertNaming(naming.part, naming.prefix, Storage.PER_EXPERT)


def unchanged(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the user asks tpu-inference not to quantise anew (its ``envs.py``)."""
    return environment.get(UNCHANGED, "").lower() in ("1", "true")


def parts_of(namings: Sequence[ExpertNaming]) -> dict[Part, ExpertNaming]:
    """Of several namings of a part the one per expert, else the first: what formats start from."""
    first = {naming.part: naming for naming in reversed(namings)}
    own = {n.part: n for n in namings if n.storage is Storage.PER_EXPERT}
    return {part: own.get(part, naming) for part, naming in reversed(first.items())}


def masked(least: int, mask: int) -> Fill:
    """Words whose bits besides ``mask`` are those of ``least``."""

    def fill(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        words &= np.uint16(mask)
        words |= np.uint16(least)
        return words

    return fill


def as_they_are(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Any bits at all."""
    return words


def e4m3_codes(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """No code that is NaN."""
    codes = words.view(np.uint8)
    codes[(codes & 0x7F) == 0x7F] ^= 0x08
    return words


#: bf16 and the upper half of f32: from 2^-7 to 2^-4, positive.
BF16_SCALES = masked(0x3C00, 0x01FF)


def f32_scales(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """f32 from 2^-7 to 2^-4, positive: every other word is the upper half of a number."""
    BF16_SCALES(words[1::2])
    return words
