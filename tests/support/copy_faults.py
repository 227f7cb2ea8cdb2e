"""Faults in what a model is given that copies tensors into its parameters itself: gpt-oss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from harness.base.progress import Meter
from harness.load.loader_layers import LoaderLayer
from harness.verification.job import VerifyRequest
from tests.support.faults import mapping, verified_with, without

LAYER = "layers.1."
_FUSED = ("experts.gate_up_proj", "experts.gate_up_proj_bias")


def _lost(*ends: str) -> LoaderLayer:
    return mapping(without(lambda name: LAYER in name and name.endswith(ends)))


def _made(ends: tuple[str, ...], change: Callable[[Any], Any]) -> LoaderLayer:
    def stream(tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, tensor in tensors:
            spoiled = LAYER in name and name.endswith(ends)
            yield name, change(tensor) if spoiled else tensor

    return mapping(stream)


def _in_turn(tensor: Any) -> Any:
    """Halves are made of columns in turn, as for a model that wants those."""
    import torch

    return torch.cat([tensor[..., ::2], tensor[..., 1::2]], dim=-1)


PLANTED: dict[str, LoaderLayer] = {
    "a bias is lost": _lost("gate_up_proj_bias"),
    "all biases are lost": _lost("_proj_bias"),
    "sinks are lost": _lost("sinks"),
    "experts are lost": _lost("experts.down_proj"),
    "a bias is cut elsewhere": _made(("down_proj_bias",), lambda t: t.roll(32, dims=1)),
    "columns in turn become halves": _made(_FUSED[:1], _in_turn),
    "one expert is copied to all": _made(_FUSED[:1], lambda t: t[3:4]),
    "another shape": _made(_FUSED[1:], lambda t: t[:, 1:]),
}


def verify_with_fault(argument: bytes, _: Meter) -> bytes:
    """Verify a checkpoint with one of these planted; the report."""
    request, fault = msgspec.json.decode(argument, type=tuple[VerifyRequest, str])
    return verified_with(request, [PLANTED[fault]])
