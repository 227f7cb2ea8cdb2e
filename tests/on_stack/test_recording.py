"""The recorder notes every call, poisons what it must, and changes nothing else."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from harness.base.errors import InternalError
from harness.base.progress import Meter
from harness.load.ledger import POISON, Ledger
from harness.load.process import LoadProcess
from harness.load.recording import Recorder
from harness.load.target import Target


@pytest.fixture(scope="module")
def facts(load_process: LoadProcess, target: Target) -> dict[str, Any]:
    answer = load_process.run("tests.support.jobs:record_a_module", b"", target, timeout=120)
    return dict(json.loads(answer))


def test_calls_are_noted_in_order(facts: dict[str, Any]) -> None:
    assert facts["calls"] == [
        ["first", ["q"], {"expert_id": 3}, False],
        ["second", [], {}, False],
        ["second", [], {}, True],
        ["second", [], {}, False],
    ]
    assert facts["site"] == "jobs.py"


def test_the_loader_is_what_it_was(facts: dict[str, Any]) -> None:
    assert (facts["answer"], facts["attribute"]) == ("kept", True)


def test_an_error_passes_and_is_noted(facts: dict[str, Any]) -> None:
    assert facts["failed"]
    assert facts["processed"] == ["written"]


def test_what_was_not_written_holds_poison(facts: dict[str, Any]) -> None:
    signed = POISON[2] - (1 << 16)
    assert facts["unwritten"] == ["never"]
    assert facts["partly"][2:] == [signed, signed]
    assert facts["partly"][:2] != [signed, signed]


def test_what_was_written_by_no_loader_is_named_and_left_alone(facts: dict[str, Any]) -> None:
    assert facts["bypassed"] == ["around"]
    assert facts["around"] == [1.0] * 4


def test_integers_are_left_alone(facts: dict[str, Any]) -> None:
    assert facts["counter"] == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def copies(load_process: LoadProcess, target: Target) -> dict[str, Any]:
    answer = load_process.run("tests.support.jobs:record_copies", b"", target, timeout=120)
    return dict(json.loads(answer))


def test_a_copy_past_every_loader_is_noted(copies: dict[str, Any]) -> None:
    """With what was streamed, and whether it filled the parameter; what a loader does is its."""
    assert copies["calls"] == [
        ["experts.w13_weight", "whole", "copy_", 4],
        ["experts.w2_weight", "half", "copy_", 0],
        ["experts.w2_bias", "item", "__setitem__", 0],
        ["experts.loaded", "called", "", 0],
        ["experts.w2_bias", "too large", "copy_", 4],
    ]
    assert copies["sites"] == ["jobs.py"]
    assert copies["failed"]


def test_what_a_copy_left_out_holds_poison(copies: dict[str, Any]) -> None:
    signed, one = POISON[2] - (1 << 16), 0x3F80
    assert copies["item"] == [[signed] * 2, [one] * 2, [signed] * 2, [signed] * 2]
    assert copies["half"][:2] == [[one] * 2] * 2


def test_what_is_no_copy_is_past_the_recorder(copies: dict[str, Any]) -> None:
    assert copies["bypassed"] == ["experts.filled"]


class Undone:
    """A parameter, and a module that has lost its parameters when it is looked at again."""

    data, device = None, SimpleNamespace(type="meta")
    _buffers: ClassVar[dict[str, Undone]] = {}
    _parameters: ClassVar[dict[str, Undone]] = {}

    def named_modules(self) -> list[tuple[str, Undone]]:
        return [("a", self)]

    def named_parameters(self, recurse: bool = True) -> list[tuple[str, Undone]]:
        if recurse:
            raise AttributeError("no parameters")
        return [("weight", self)]

    def named_buffers(self, recurse: bool = True) -> list[tuple[str, Undone]]:
        return []

    def is_floating_point(self) -> bool:
        return True

    def element_size(self) -> int:
        return 2


@pytest.mark.parametrize("method", ["note_processed", "finish"])
def test_a_record_that_breaks_off_is_not_the_loads_failure(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called from within upstream's load, whose errors are taken for upstream's."""
    utils = SimpleNamespace(default_weight_loader=print)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader.weight_utils", utils)
    model = Undone()
    recorder = Recorder(model, Ledger(), Meter())
    recorder.attach()
    monkeypatch.delattr(Undone, "_parameters")
    with pytest.raises(InternalError, match="not the load under test: AttributeError"):
        getattr(recorder, method)()
