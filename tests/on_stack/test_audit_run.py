"""What the recorder remembers of a call, on modules of our own; then on the real stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.audit.feeding import CallRecorder, CallSite, Recording
from harness.audit.run import Outcome, RunRow, judged, run_audit, sources
from harness.audit.run_table import run_exit_code, run_json, run_text
from harness.audit.undescribed import UNDESCRIBED
from harness.families.known_families import recipes
from harness.load.process import LoadProcess
from harness.load.stack import installed_versions, stack_name
from harness.load.target import Target
from tests.support.reverting import call_sites, installed_vllm, revert_fix

BROKEN_AS_RELEASED = stack_name(installed_versions()) == "0.21"


class Parameter:
    def __init__(self, weight_loader: Any) -> None:
        self.weight_loader = weight_loader


class Layer:
    """An expert layer with as many experts as asked for; none is a linear layer."""

    def __init__(self, experts: int) -> None:
        self.global_num_experts = experts
        self.weight = Parameter(self.weight_loader)
        self.calls = 0

    def weight_loader(self, *args: Any, **kwargs: Any) -> bool:
        self.calls += 1
        return True

    def named_parameters(self, recurse: bool) -> Iterator[tuple[str, Parameter]]:
        assert not recurse
        yield "w13_weight", self.weight


class Model:
    def __init__(self, *layers: Layer) -> None:
        self._layers = layers

    def modules(self) -> Iterator[Layer]:
        yield from self._layers


def recorded(call: Any, experts: int = 1) -> tuple[Recording, Layer]:
    """What is recorded of ``call(loader, parameter)``."""
    layer, recorder = Layer(experts), CallRecorder()
    recorder.attach(Model(layer))
    call(layer.weight.weight_loader, layer.weight)
    return recorder.finished(), layer


def by_keyword(load: Any, p: Any) -> None:
    for shard in ("w1", "w2", "w3"):
        assert load(p, 0, "name", shard_id=shard, expert_id=0)


def test_ids_by_keyword_complete_a_layer() -> None:
    recording, layer = recorded(by_keyword)
    (site,) = recording.sites
    assert (site.count, site.positional, site.ids) == (3, 1, ("shard_id", "expert_id"))
    assert site.place.endswith(f"test_audit_run.py:{by_keyword.__code__.co_firstlineno + 2}")
    assert (recording.layers, recording.complete, layer.calls) == (1, 1, 3)
    assert judged("m", recording).outcome is Outcome.KEYWORD


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda load, p: load(p, 0, "name", "w1", 0), Outcome.POSITIONAL),
        (lambda load, p: load(p, 0, "name", "w1", 0, return_success=True), Outcome.POSITIONAL),
        (lambda load, p: load(p, 0, "name", "w1", expert_id=0), Outcome.POSITIONAL),
        (lambda load, p: load(p, 0, "name", shard_id=None, expert_id=None), Outcome.NO_IDS),
        (lambda load, p: load(p, 0, "name", "layer"), Outcome.NO_IDS),
        (lambda load, p: load(p, 0), Outcome.NO_IDS),
        (lambda load, p: load(p, 0, "name", shard_id="w1", expert_id=0), Outcome.INCOMPLETE),
        (
            lambda load, p: load(
                param=p, loaded_weight=0, weight_name="n", shard_id="w1", expert_id=0
            ),
            Outcome.INCOMPLETE,
        ),
        (lambda load, p: None, Outcome.NO_EXPERTS),
    ],
)
def test_every_outcome_of_a_call(call: Any, outcome: Outcome) -> None:
    row = judged("m", recorded(call)[0])
    assert row.outcome is outcome
    assert run_exit_code([row]) == int(outcome in (Outcome.POSITIONAL, Outcome.NO_IDS))


def test_a_linear_layers_calls_are_no_expert_calls() -> None:
    recording, _ = recorded(lambda load, p: load(p, 0, "q"), experts=0)
    assert (recording.calls, recording.sites, recording.layers) == (1, [], 0)


@pytest.mark.parametrize(
    ("stage", "outcome"), [("build", Outcome.NOT_BUILT), ("load", Outcome.LOAD_FAILED)]
)
def test_an_error_says_why(stage: str, outcome: Outcome) -> None:
    row = judged("m", Recording(stage=stage, error="ValueError: as planted"))
    assert (row.outcome, row.why) == (outcome, "ValueError: as planted")


def test_a_wrong_call_counts_more_than_the_error_after_it() -> None:
    site = CallSite(
        place="model.py:3", function="load", parameter="w2", positional=3, ids=(), count=1
    )
    row = judged("m", Recording(sites=[site], layers=1, stage="load", error="E: later"))
    assert (row.outcome, row.why) == (Outcome.POSITIONAL, "model.py:3 (w2); E: later")


def test_the_table_and_its_json() -> None:
    rows = [judged("Tiny a", recorded(by_keyword)[0]), judged("Tiny b", Recording(error="E: b"))]
    text = run_text(rows)
    assert "Tiny a" in text
    assert "not built" in text
    assert text.endswith("1 keyword, 1 not built\n")
    assert msgspec.json.decode(run_json(rows), type=list[RunRow]) == rows


def test_rows_are_told_apart_and_say_what_they_feed() -> None:
    others = {row.id for row in UNDESCRIBED}
    assert len(UNDESCRIBED) == len(others)
    assert len(sources()) == len(others) + len(recipes())
    assert others <= sources().keys()
    for name, source in sources().items():
        assert name.startswith(source.config["architectures"][0])
        names = [tensor for tensor, _ in source.tensors]
        assert len(names) == len(set(names))
        assert not any("{" in tensor for tensor in names)


FAMILIES = ("qwen3-vl-moe", "qwen3.6-mtp")


def test_the_families_call_as_this_release_does(target: Target) -> None:
    rows = list(run_audit(target, FAMILIES))
    assert sorted(row.model.split()[-1] for row in rows) == sorted(FAMILIES)
    expected = Outcome.POSITIONAL if BROKEN_AS_RELEASED else Outcome.KEYWORD
    for row in rows:
        assert row.outcome is expected, row.why
        assert row.expert_calls > 0


@pytest.mark.skipif(BROKEN_AS_RELEASED, reason="this release has no fix to take back")
def test_the_fix_taken_back_is_seen(target: Target, tmp_path: Path) -> None:
    with LoadProcess(target, revert_fix(tmp_path)) as process:
        (row,) = run_audit(target, ["qwen3-vl-moe"], process=process)
    assert row.outcome is Outcome.POSITIONAL
    (*_, last) = call_sites(installed_vllm())
    assert last.file.rpartition("/")[0] in row.why
    assert row.by_keyword == 0
    assert row.positional == row.expert_calls == 2 * 8 * 3
