"""The audit at run time: every row's model is built, fed, and its calls judged.

Static reading cannot see what a loader is handed through ``**kwargs``, or that an id is None; a
run sees all of it, of those models that can be built here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from enum import StrEnum

import msgspec

from harness.audit.feeding import ModelSource, Recording
from harness.audit.undescribed import UNDESCRIBED, Undescribed
from harness.base.bounds import require_seconds
from harness.base.errors import BadInput
from harness.families.family import Family, Part, Recipe
from harness.families.known_families import families, recipes
from harness.load.process import LoadProcess, LoadProcessError
from harness.load.target import Target

_JOB = "record"
_IDS = 2


class Outcome(StrEnum):
    """What a row's run shows.

    - ``keyword``: every expert of every layer came with both ids by keyword.
    - ``positional``: an expert's loader was called with ids by position.
    - ``no ids``: called without one of the ids, or with None: no hook knows the expert.
    - ``incomplete``: all calls were right and yet some experts of the stream never came.
    - ``no experts``: no expert parameter's loader was called.
    - ``not built``: the model raised before its weights were loaded.
    - ``load failed``: the model raised while it loaded them.
    """

    KEYWORD = "keyword"
    POSITIONAL = "positional"
    NO_IDS = "no ids"
    INCOMPLETE = "incomplete"
    NO_EXPERTS = "no experts"
    NOT_BUILT = "not built"
    LOAD_FAILED = "load failed"


#: The outcomes under which a hook does not learn which expert it is handed.
BROKEN = (Outcome.POSITIONAL, Outcome.NO_IDS)


class RunRow(msgspec.Struct, kw_only=True):
    """One model's result; ``why`` says where, or which error."""

    model: str
    outcome: Outcome
    recording: Recording
    why: str = ""

    @property
    def expert_calls(self) -> int:
        """Calls of expert parameters' loaders."""
        return sum(site.count for site in self.recording.sites)

    @property
    def by_keyword(self) -> int:
        """Those with both ids by keyword."""
        return sum(s.count for s in self.recording.sites if len(s.ids) == _IDS)

    @property
    def positional(self) -> int:
        """Those with ids by position."""
        return sum(s.count for s in self.recording.sites if s.ids_are_positional)


def sources() -> dict[str, ModelSource]:
    """Every row by its id: what families describe, then the architectures that none does."""
    own = {
        f"{family.architecture} {recipe.name}": _of_recipe(family, recipe)
        for family, recipe in recipes().values()
    }
    others = {model.id: model.source() for model in UNDESCRIBED if not described(model)}
    return own | others


def described(model: Undescribed) -> Family | None:
    """The family that describes a row's architecture.

    Of the rows here there is none but one that a user brings: a family of the harness takes the
    place of its row.
    """
    architecture, model_type = model.architecture, model.model_type
    for family in families():
        config = family.write_config(family.tiny, 0, False)
        if architecture == family.architecture or model_type == config.get("model_type"):
            return family
    return None


def run_audit(
    target: Target,
    names: Iterable[str] = (),
    *,
    timeout: float = 600.0,
    process: LoadProcess | None = None,
) -> Iterator[RunRow]:
    """Build, feed and judge the rows whose id holds one of ``names``; all without names.

    Args:
        target: the device platform the models are built on.
        names: parts of ids.
        timeout: seconds a row may take.
        process: a running load process of this target to use.

    Raises:
        BadInput: there is no such row, or the seconds are none.
    """
    timeout = require_seconds(timeout, "--timeout")
    chosen = _chosen(list(names))
    with nullcontext(process) if process else LoadProcess(target) as running:
        for name, source in chosen.items():
            yield judged(name, _recorded(running, source, timeout))


def _chosen(names: list[str]) -> dict[str, ModelSource]:
    every = sources()
    parts = [name.lower() for name in names]
    chosen = {n: s for n, s in every.items() if not parts or any(p in n.lower() for p in parts)}
    if not chosen:
        raise BadInput(
            "no model of this name",
            where=" ".join(names),
            expected="a part of one of: " + ", ".join(every),
            hint="harness audit-run qwen3-vl-moe",
        )
    return chosen


def _recorded(process: LoadProcess, source: ModelSource, timeout: float) -> Recording:
    argument = msgspec.json.encode((source, process.target))
    try:
        answer = process.run(_JOB, argument, process.target, timeout=timeout)
        return msgspec.json.decode(answer, type=Recording)
    except LoadProcessError as error:
        last = [line for line in error.details.splitlines() if line.strip()][-1:]
        return Recording(error=f"{error.what}: {''.join(last)}")


def judged(name: str, recording: Recording) -> RunRow:
    """The row's outcome. What was called wrongly counts more than how the load ended."""
    row = RunRow(model=name, outcome=Outcome.KEYWORD, recording=recording)
    wrong = [s for s in recording.sites if s.ids_are_positional]
    without = [s for s in recording.sites if len(s.ids) < _IDS and s not in wrong]
    if wrong or without:
        row.outcome = Outcome.POSITIONAL if wrong else Outcome.NO_IDS
        row.why = ", ".join(dict.fromkeys(f"{s.place} ({s.parameter})" for s in wrong or without))
    elif recording.error:
        row.outcome = Outcome.LOAD_FAILED if recording.stage == "load" else Outcome.NOT_BUILT
    elif not recording.sites:
        row.outcome = Outcome.NO_EXPERTS
    elif recording.complete < recording.layers:
        row.outcome = Outcome.INCOMPLETE
        row.why = f"{recording.complete} of {recording.layers} expert layers complete"
    row.why = "; ".join(filter(None, [row.why, recording.error]))
    return row


def _of_recipe(family: Family, recipe: Recipe) -> ModelSource:
    shape = family.shape_named("tiny")
    part = Part.MTP if recipe.mtp else Part.DECODER
    return ModelSource(
        config=family.write_config(shape, 1 if recipe.mtp else 0, False),
        tensors=tuple((spec.name, spec.shape) for spec in family.tensors(shape, recipe.mtp)),
        part=part,
    )
