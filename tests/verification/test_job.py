"""The job of a loading process, with a load made of arrays: what it must not call equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.base.errors import HarnessError, InternalError
from harness.base.progress import Meter
from harness.compare import equality
from harness.compare.expert_comparison import PartComparison, tally_of
from harness.compare.selection import Chosen
from harness.devices import digest
from harness.devices.expert_layout import Backend
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part, Storage
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.ledger import Ledger
from harness.load.loaded import Loaded
from harness.load.target import Parallelism, Target
from harness.load.targets.known_targets import target_named
from harness.report.maps import State
from harness.report.report import Report, Status
from harness.verification import job
from harness.verification.coverage import NOT_ASKED
from harness.verification.job import VerifyRequest, run, verify_job
from tests.support.ledgers import call
from tests.support.packing import PackedDevice
from tests.support.parameter_packing import PackedParameters
from tests.support.reports import a_report, an_environment
from tests.support.silent_worlds import world

MESH = ("cpu:1", "cpu:2", "cpu:3", "cpu:4")
Given = Callable[..., tuple[VerifyRequest, Report]]


def loaded(part: ReferencePart, backend: Backend, local: frozenset[str] | None = None) -> Loaded:
    """What a load without a fault leaves on four devices."""
    experts = PackedDevice(part, 4, backend).part().layers.values()
    tensors = [tensor for layer in experts for tensor in layer.values()]
    tensors += PackedParameters(part.checkpoint, Part.DECODER).tensors()
    if local is not None:
        tensors = [
            replace(t, shards=tuple(s for s in t.shards if s.device in local)) for t in tensors
        ]
    return Loaded({Part.DECODER: tensors}, MESH, "entry", 1.0, 2.0, (("model", 4),), local)


@pytest.fixture
def given(tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Given:
    """A request and an unfinished report, and such a load for them; its ledger may be changed."""
    path = str(tiny_checkpoints["qwen3-vl-moe"])
    (part,) = reference_parts(ModelCheckpoint(path))

    def make(
        target: Target | None = None, local: frozenset[str] | None = None, **ledger: Any
    ) -> tuple[VerifyRequest, Report]:
        target = target or target_named("emulated")
        calls = [call("some.weight", source=name) for name in part.checkpoint.entries]
        names = list(part.checkpoint.entries)
        facts: dict[str, Any] = {"finished": True, "streamed": names, "calls": calls}

        def load(*_: Any, ledgers: dict[Part, Ledger], **__: Any) -> Loaded:
            ledgers[Part.DECODER] = Ledger(**facts | ledger)
            return loaded(part, target.backend, local)

        monkeypatch.setattr(engine, "load", load)
        monkeypatch.setattr(engine, "leave", lambda target: None)
        report = a_report(
            checkpoint=path, reference=path, status=Status.LOAD_FAILED, tallies=[tally_of(part)],
            environment=an_environment(
                versions={"tpu-inference": "0.26.0"}, target=str(target)
            ),
        )  # fmt: skip
        request = VerifyRequest(
            checkpoint=path, reference=path, target=target, parts=(Part.DECODER,)
        )
        return request, report

    return make


def test_a_load_without_a_fault_is_equal(given: Given) -> None:
    report = run(*given())
    assert (report.status, report.experts_compared, report.timings.load) == (Status.EQUAL, 16, 2.0)
    assert report.maps[0].count(State.EQUAL) == 16 * 3


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        ({"finished": False}, "its end"),
        ({"streamed": []}, "a streamed tensor"),
        ({"calls": []}, "a call of a weight_loader"),
        ({"streamed": [], "calls": []}, "a streamed tensor, a call of a weight_loader"),
        ({"bypassed": ["a"]}, "what wrote 1 parameters, first a"),
    ],
)
def test_a_load_that_went_past_the_recorder(
    given: Given, fault: dict[str, Any], missing: str
) -> None:
    with pytest.raises(InternalError, match=f"decoder .* did not see {missing} ") as raised:
        run(*given(**fault))
    assert raised.value.exit_code == 5


def test_nothing_compared_is_not_equal(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chosen, "of", lambda self, layer: [])
    with pytest.raises(InternalError, match="not all was compared: decoder 0 of 16"):
        run(*given())


def test_a_part_that_was_not_compared_is_not_equal(given: Given) -> None:
    request, report = given()
    request = msgspec.structs.replace(request, parts=(Part.DECODER, Part.MTP))
    with pytest.raises(InternalError, match="not all was compared") as raised:
        run(request, report)
    assert raised.value.expected.endswith("of decoder, mtp")


def test_a_host_marks_the_experts_it_holds(given: Given) -> None:
    """Experts whole: a host with two of four devices holds half of them, and says no more."""
    target = replace(target_named("emulated", 4, Parallelism.EXPERT), hosts=2, host=1)
    report = run(*given(target, frozenset(MESH[2:])))
    assert (report.status, report.experts_compared) == (Status.EQUAL, 8)
    assert report.maps[0].count(State.EQUAL) == 8 * 3
    assert report.maps[0].count(State.NOT_COMPARED) == 8 * 3


def test_an_error_in_comparing_is_not_the_loads(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PartComparison) -> None:
        raise ZeroDivisionError("as planted")

    monkeypatch.setattr(PartComparison, "differences", fail)
    with pytest.raises(InternalError, match="not the load under test: ZeroDivisionError") as raised:
        verify_job(msgspec.json.encode(given()), Meter())
    assert raised.value.where.startswith("test_job.py:")
    assert "in findings" in raised.value.hint


def test_a_refusal_stays_one(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = HarnessError("no", where="here", expected="yes", hint="ask")

    def refuse(*_: Any, **__: Any) -> None:
        raise refusal

    argument = msgspec.json.encode(given())
    monkeypatch.setattr(engine, "load", refuse)
    with pytest.raises(HarnessError) as raised:
        verify_job(argument, Meter())
    assert raised.value is refusal


def test_another_host_that_is_gone_is_a_load_that_failed(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(target: Target) -> None:
        raise RuntimeError("barrier timed out")

    request, report = given()
    monkeypatch.setattr(engine, "leave", alone)
    report = run(request, report)
    assert report.failure is not None
    assert (report.status, report.failure.message) == (Status.LOAD_FAILED, "barrier timed out")


@pytest.mark.parametrize(("part", "other"), [tuple(Part), tuple(Part)[::-1]])
def test_a_request_for_one_part_leaves_the_other_alone(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: Part,
    other: Part,
) -> None:
    """A request that does not say what was asked for asks for what it loads."""
    whole = world(tiny_checkpoints["qwen3.6-mtp"], tmp_path)
    left = whole.loaded()
    names = list(ModelCheckpoint(whole.checkpoint).entries)
    calls = [call("some.weight", source=name) for name in names]

    def load(*_: Any, ledgers: dict[Part, Ledger], **__: Any) -> Loaded:
        ledgers[part] = Ledger(finished=True, streamed=names, calls=calls)
        return left

    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setattr(engine, "leave", lambda target: None)
    path = str(whole.checkpoint)
    request = VerifyRequest(
        checkpoint=path, reference=path, target=target_named("emulated"), parts=(part,)
    )
    report = run(request, a_report(tallies=[]))
    assert report.status is Status.EQUAL
    (account,) = report.accounts
    assert list(account.left_alone) == [NOT_ASKED.format(part=other)]


def test_one_checkpoint_is_opened_once(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def noted(path: str, storage: Storage | None, *, experts_only: bool) -> ModelCheckpoint:
        opened.append((path, time.monotonic()))
        return ModelCheckpoint(path, storage, experts_only=experts_only)

    request, report = given()
    monkeypatch.setattr(job, "ModelCheckpoint", noted)
    run(request, report)
    assert len(opened) == 1


def test_what_compares_is_compiled_before_the_first_load(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    for kernels in (equality, digest):
        monkeypatch.setattr(kernels, "warm_up", lambda name=kernels.__name__: prepared.append(name))
    job.prepare()
    assert prepared == ["harness.compare.equality", "harness.devices.digest"]
