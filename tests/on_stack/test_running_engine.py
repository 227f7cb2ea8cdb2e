"""An engine that nobody of the harness started, real loads: what its workers hold, in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.base.errors import BadInput
from harness.explain.causes import Cause
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.verification.engine_side import ENTRY
from harness.verification.running import verify_engine


@pytest.fixture(scope="module")
def asked(
    load_process: LoadProcess,
    target: Target,
    tiny_checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, Any]]:
    """The array that was changed, and what each way of asking told."""
    argument = (str(tiny_checkpoints["qwen3.5-mtp"]), str(tmp_path_factory.mktemp("engine")))
    answer = load_process.run(
        "tests.support.engine_jobs:ask_an_engine",
        msgspec.json.encode(argument),
        target,
        timeout=600,
    )
    return msgspec.json.decode(answer, type=tuple[str, dict[str, Any]])


@pytest.mark.parametrize("way", ["checkpoint", "digests"])
def test_an_engine_that_holds_its_checkpoint_is_equal(
    asked: tuple[str, dict[str, Any]], way: str
) -> None:
    assert asked[1][way] == ["equal", 24, [59, 16], [], ENTRY]


@pytest.mark.parametrize("way", ["changed", "changed, by digests", "changed, over http"])
def test_one_bit_that_changed_after_the_load_is_named(
    asked: tuple[str, dict[str, Any]], way: str
) -> None:
    status, experts, _, diagnoses, _ = asked[1][way]
    assert (status, experts) == ("different", 24)
    (flip,) = diagnoses
    assert flip == [Cause.BIT_FLIP, "one bit of decoder layer 0 expert 0 down_proj is flipped"]


def test_workers_without_the_extension_are_asked_by_the_function(
    asked: tuple[str, dict[str, Any]],
) -> None:
    """The decoder alone was loaded: the draft model is left out."""
    assert asked[1]["without the extension"][:2] == ["equal", 16]


@pytest.mark.parametrize("engine", [object(), "localhost:8000", None])
def test_what_is_no_engine_is_refused(engine: object) -> None:
    with pytest.raises(BadInput, match="no engine that can be asked"):
        verify_engine(engine)
