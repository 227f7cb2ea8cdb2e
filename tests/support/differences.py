"""Differences of every kind, and what a test may ask of one whose kind it knows."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import msgspec

from harness.compare.difference import (
    Difference,
    Fact,
    Kind,
    Subject,
    TensorUnread,
    Unequal,
    ValuesDiffer,
)
from harness.families.experts import TensorSlice
from harness.families.family import Part, Projection

#: The class of each kind.
CLASSES: dict[Kind, type[Fact]] = {
    Kind(cls.__struct_config__.tag): cls for cls in get_args(Difference)
}
_FIELDS: dict[str, Any] = {
    "part": Part.DECODER, "layer": 1, "expert": 0, "projection": Projection.UP, "parameter": "",
    "name": "t", "tensor": "t", "source": TensorSlice("a.safetensors", "t"), "index": (0,),
    "count": 1, "total": 2, "reference": 0x3F80, "device": 0x1A87, "itemsize": 2,
    "reference_device": "cpu:1", "device_name": "cpu:2", "expected": "scales", "share": None,
    "held": (), "times": 2, "pattern": "the scales are lost",
    "subject": Subject.TENSOR_OF_NO_PARAMETER,
}  # fmt: skip
_OF_KIND: dict[Kind, dict[str, Any]] = {
    Kind.SHAPE: {"reference": (1,), "device": (2,)},
    Kind.DTYPE: {"reference": "BF16", "device": "F32"},
    Kind.VALUES: {"reference": "1", "device": "nan"},
    Kind.DIGEST: {"reference": "0" * 32, "dtype": "BF16"},
}
F = TypeVar("F", bound=Fact)


def a_difference(kind: Kind, **given: Any) -> Any:
    """A difference of this kind; what it must have and is not given is made up."""
    made = CLASSES[kind]
    fields = _FIELDS | _OF_KIND.get(kind, {})
    required = {field.name for field in msgspec.structs.fields(made) if field.required}
    return made(**{name: fields[name] for name in required} | given)


def unread(tensor: str = "t") -> TensorUnread:
    return TensorUnread(part=Part.DECODER, tensor=tensor)


def as_a(made: type[F], difference: Fact) -> F:
    """The difference, which is of this class."""
    assert isinstance(difference, made)
    return difference


def elements(difference: Fact) -> Unequal:
    return as_a(Unequal, difference)


def pattern(difference: Fact) -> str:
    return as_a(ValuesDiffer, difference).pattern
