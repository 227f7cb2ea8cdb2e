"""Layers around the loader under test: their order, the one that cuts, the one that records."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.progress import STREAM, Figures, Meter
from harness.families.known_families import families
from harness.load.ledger import Ledger
from harness.load.loader_layers import LoaderLayer, cutting, layered
from harness.load.recording import Recorder
from harness.verification.verify import verify

NAMES = [f"model.language_model.layers.{layer}.input_layernorm.weight" for layer in range(4)]
OTHERS = ["lm_head.weight", "model.visual.blocks.3.attn.qkv.weight"]


class Loader:
    def _get_weights_iterator(self) -> Iterator[tuple[str, Any]]:
        yield from ((name, None) for name in [*NAMES, *OTHERS])

    def names(self) -> list[str]:
        return [name for name, _ in self._get_weights_iterator()]


def marking(mark: str) -> LoaderLayer:
    def layer(base: type[Any]) -> type[Any]:
        class Marked(base):  # type: ignore[misc]
            def names(self) -> list[str]:
                return [*super().names(), mark]

        return Marked

    return layer


def test_the_first_layer_is_the_innermost() -> None:
    assert layered(Loader, [marking("a"), marking("b")])().names()[-2:] == ["a", "b"]
    assert layered(Loader, []) is Loader


@pytest.mark.parametrize("kept", [1, 3, 4])
def test_layers_are_cut_from_a_number_on(kept: int) -> None:
    family = next(f for f in families() if f.name == "qwen3-vl-moe")
    cut = layered(Loader, [cutting(family, kept)])
    assert cut().names() == [*NAMES[:kept], *OTHERS]


def test_what_is_streamed_is_counted_by_ledger_and_meter() -> None:
    meter, ledger = Meter(), Ledger()
    meter.begin(STREAM, 100)
    recorder = Recorder(None, ledger, meter)
    stream = [(name, SimpleNamespace(nbytes=8)) for name in NAMES]
    assert [name for name, _ in recorder.timed(stream)] == NAMES
    assert meter.figures == Figures(STREAM, 32, 100, len(NAMES))
    assert ledger.stream_bytes == 32


def test_no_fault_can_be_asked_of_verify() -> None:
    """What a load goes through is the stack's; faults are planted by jobs of the tests."""
    assert not {"hook", "adapt", "planted", "layers"} & set(inspect.signature(verify).parameters)
