"""The reference read while the load runs: the same verdict, and the load does not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from harness.base.errors import BadInput, HarnessError, SentError
from harness.base.progress import Meter
from harness.checkpoint.stores.directory import LocalFile
from harness.compare.authority import WEIGHTS, DigestedWeights
from harness.compare.digest_comparison import Method
from harness.compare.digesting import digests_of, work_of
from harness.devices.expert_layout import Parameter
from harness.families.experts import ExpertKey, reference_parts
from harness.families.family import Projection
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.report.report import Report, Status
from harness.verification.job import Verification, VerifyRequest
from harness.verification.reading_along import (
    RULE,
    Along,
    FoundAlong,
    PageCache,
    ReadingAlong,
    read_along,
    threads_along,
)
from tests.support.reports import a_report
from tests.support.silent_worlds import World, judged, world

NEVER = threading.Event()


@pytest.fixture
def checkpoint(tiny_checkpoints: dict[str, Path]) -> ModelCheckpoint:
    return ModelCheckpoint(tiny_checkpoints["qwen3.5-mtp"])


def test_it_finds_what_a_digest_file_has(checkpoint: ModelCheckpoint) -> None:
    made = digests_of(checkpoint)
    known = read_along(work_of(checkpoint), NEVER, 2, lambda _: True)
    authority = known.authority()
    assert len(known.experts) == made.matrices
    for part in reference_parts(checkpoint):
        for key in part:
            found = authority.digest(key, part.shape.dtype)
            assert found is not None
            assert found.tolist() == made.digest(key, part.shape.dtype).tolist()  # type: ignore[union-attr]
    for tensor in made.contents.tensors:
        for dtype in tensor.types:
            found = authority.digest(tensor.name, dtype)
            assert found is not None
            assert found.tolist() == made.digest(tensor.name, dtype).tolist()  # type: ignore[union-attr]


def test_what_is_not_in_memory_is_left(checkpoint: ModelCheckpoint) -> None:
    """It waits for it until the load has ended; a tensor of which a piece lacks is not known."""
    work, ended = list(work_of(checkpoint)), threading.Event()
    missing = {id(each) for each in work[::3]}
    looks = 0

    def is_there(each: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks > 4 * len(work):
            ended.set()
        return id(each) not in missing

    known = read_along(work, ended, 2, is_there)
    keys = [key for key, *_ in known.experts]
    names = {name for name, *_ in known.tensors}
    expected = [each.run() for number, each in enumerate(work) if number % 3]
    assert len(keys) == sum(isinstance(found[0][0], ExpertKey) for found in expected) * 3
    assert names == {f[0][0] for f in expected if isinstance(f[0][0], str)}
    assert isinstance(known.authority(), DigestedWeights)


def test_a_tensor_of_which_a_piece_lacks_is_not_known(
    checkpoint: ModelCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.compare.digesting.spans_of.__defaults__", (4096,))
    work, ended = list(work_of(checkpoint)), threading.Event()
    first = next(each for each in work if each.pieces > 2)
    (name, dtype, _), *_ = first.run()

    def is_there(each: Any) -> bool:
        if each is first:
            ended.set()
        return each is not first

    order = [*(each for each in work if each is not first), first]
    assert read_along(order, ended, 2, is_there).authority().digest(name, dtype) is None


def test_a_file_that_cannot_be_read(
    checkpoint: ModelCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> NoReturn:
        raise BadInput("cannot be read", where="the file", expected="bytes", hint="look")

    monkeypatch.setattr(LocalFile, "by_descriptor", fails)
    known = read_along(work_of(checkpoint), NEVER, 2, lambda _: True)
    with pytest.raises(BadInput, match="cannot be read"):
        known.authority()


def asked(path: Path, **given: Any) -> Along:
    fields = {"storage": None, "families": (), "threads": 2, "parent": os.getpid(), "idle": False}
    return Along(checkpoint=str(path), **fields | given)


def completed(along: ReadingAlong) -> None:
    """Wait until it has said all it has to say."""
    os.waitid(os.P_PID, along.pid, os.WEXITED | os.WNOWAIT)


def test_a_process_of_its_own(checkpoint: ModelCheckpoint) -> None:
    along = ReadingAlong(asked(Path(checkpoint.path)))
    completed(along)
    key = ExpertKey(reference_parts(checkpoint)[0].part, 0, 1, Projection.UP)
    found, made = along.authority().digest(key, "BF16"), digests_of(checkpoint).digest(key, "BF16")
    assert found is not None
    assert made is not None
    assert found.tolist() == made.tolist()


def test_it_runs_when_a_core_has_nothing_else_to_do(checkpoint: ModelCheckpoint) -> None:
    assert RULE.idle
    along = ReadingAlong(asked(Path(checkpoint.path), idle=True))
    end, policy = time.monotonic() + 60, os.SCHED_OTHER
    while policy != os.SCHED_IDLE and time.monotonic() < end:
        policy = os.sched_getscheduler(along.pid)
    along.close()
    assert policy == os.SCHED_IDLE


def test_bad_input_is_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as known:
        ModelCheckpoint(tmp_path / "none")
    along = ReadingAlong(asked(tmp_path / "none"))
    completed(along)
    with pytest.raises(BadInput) as error:
        along.authority()
    assert error.value.paragraph == known.value.paragraph


def test_one_that_says_nothing_in_time_is_not_waited_for(
    checkpoint: ModelCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it has no core, as where all are busy."""
    monkeypatch.setattr(RULE, "end_seconds", 0.2)
    along = ReadingAlong(asked(Path(checkpoint.path)))
    os.kill(along.pid, signal.SIGSTOP)
    assert along.authority() is WEIGHTS


def test_one_that_was_killed_has_found_nothing(checkpoint: ModelCheckpoint) -> None:
    along = ReadingAlong(asked(Path(checkpoint.path)))
    os.kill(along.pid, signal.SIGKILL)
    assert along.authority() is WEIGHTS


PARENT = """
import os, sys
from tests.verification.test_reading_along import asked
from harness.verification.reading_along import ReadingAlong
from pathlib import Path
along = ReadingAlong(asked(Path(sys.argv[1])))
print(along.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_ends_with_the_process_that_started_it(checkpoint: ModelCheckpoint) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, checkpoint.path], capture_output=True, check=False
    )
    pid, end = int(ended.stdout), time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_the_page_cache_knows_what_was_read(tmp_path: Path) -> None:
    path, cache = tmp_path / "f", PageCache()
    with path.open("wb") as opened:
        opened.truncate(1 << 20)
    file = LocalFile(path)
    assert not cache.has_bytes(file, 4097, 100_000)
    file.read(0, 1 << 20)
    assert cache.has_bytes(file, 4097, 100_000)


# The choice.


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, RULE.threads),
        ({"cores": RULE.least_cores - 1}, 0),
        ({"by_digests": False}, 0),
        ({"whole": False}, 0),
        ({"read": False}, 0),
    ],
)
def test_who_reads_along(checkpoint: ModelCheckpoint, given: dict[str, Any], threads: int) -> None:
    usual = {"by_digests": True, "whole": True, "read": True, "cores": RULE.least_cores}
    assert threads_along(checkpoint, **usual | given) == threads


# All that harness verify does, but for the load.


@pytest.fixture
def along(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ReadingAlong]]:
    """A machine of many cores, and a load that takes as long as reading does."""
    started: list[ReadingAlong] = []
    authority = ReadingAlong.authority

    def waited(self: ReadingAlong) -> Any:
        started.append(self)
        completed(self)
        return authority(self)

    monkeypatch.setattr(RULE, "least_cores", 1)
    monkeypatch.setattr(RULE, "idle", False)
    monkeypatch.setattr(ReadingAlong, "authority", waited)
    yield started
    for each in started:
        assert each.ended


def judged_along(given: World, patch: pytest.MonkeyPatch) -> Report:
    given.options["method"] = Method.DIGESTS
    return judged(given, patch, given.checkpoint)


@pytest.mark.parametrize("fault", ["none", "expert", "norm", "padding"])
def test_the_verdict_is_the_same(
    fault: str,
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    along: list[ReadingAlong],
) -> None:
    given = world(tiny_checkpoints["qwen3-vl-moe"], tmp_path)
    if fault == "expert":
        given.expert_array(Parameter.W2)[5, 20, 30] ^= 1
    if fault == "norm":
        given.packed("layers.1.input_layernorm.weight").array[5] ^= 1
    if fault == "padding":
        given.expert_array(Parameter.W13)[5, 20, 120] ^= 1
    read = judged_along(given, monkeypatch)
    assert len(along) == 1
    monkeypatch.setattr(RULE, "least_cores", 1 << 20)
    after = judged_along(given, monkeypatch)
    assert len(along) == 1
    assert (read.status, read.differences, read.diagnoses) == (
        after.status, after.differences, after.diagnoses,
    )  # fmt: skip
    assert (read.status is Status.EQUAL) is (fault == "none")
    assert read.tallies == after.tallies


def test_what_was_read_along_is_not_read_again(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    along: list[ReadingAlong],
) -> None:
    def never(*_: Any) -> NoReturn:
        raise AssertionError("weights were read")

    given = world(tiny_checkpoints["qwen3-vl-moe"], tmp_path)
    monkeypatch.setattr(LocalFile, "bits", never)
    monkeypatch.setattr(LocalFile, "stream", never)
    monkeypatch.setattr(LocalFile, "by_descriptor", never)
    assert judged_along(given, monkeypatch).status is Status.EQUAL
    assert along


def test_a_file_it_cannot_read_is_bad_input(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    along: list[ReadingAlong],
) -> None:
    given = world(tiny_checkpoints["qwen3-vl-moe"], tmp_path)
    error = BadInput("cannot be read", where="the file", expected="bytes", hint="look")
    sent = FoundAlong(error=SentError.of(error))
    monkeypatch.setattr(ReadingAlong, "authority", lambda self: (self.close(), sent.authority())[1])
    with pytest.raises(HarnessError, match="cannot be read"):
        judged_along(given, monkeypatch)


def test_it_ends_with_a_load_that_fails(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    start = ReadingAlong.__init__

    def noted(self: ReadingAlong, along: Along) -> None:
        start(self, along)
        pids.append(self.pid)

    def fails(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("the stack's")

    monkeypatch.setattr(RULE, "least_cores", 1)
    monkeypatch.setattr(ReadingAlong, "__init__", noted)
    monkeypatch.setattr(engine, "load", fails)
    given = world(tiny_checkpoints["qwen3-vl-moe"], tmp_path)
    path = str(given.checkpoint)
    request = VerifyRequest(
        checkpoint=path, reference=path, target=given.options["target"], parts=(),
        method=Method.DIGESTS,
    )  # fmt: skip
    with pytest.raises(ValueError, match="the stack's"):
        Verification(request, a_report(checkpoint=path, reference=path), Meter()).load()
    (pid,) = pids
    assert not os.path.exists(f"/proc/{pid}")
