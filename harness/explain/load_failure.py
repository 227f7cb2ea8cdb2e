"""Why a load failed, from its ledger: what had come by then, and the call it ended in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from harness.explain.causes import Cause, Diagnosis, Suspect, experts_text, fix_of
from harness.explain.delivery_rules import (
    ARGUMENT_CONTRACT,
    DELIVERED_LATE,
    PARAMETER_UNWRITTEN,
)
from harness.explain.metadata import DELIVERED_TWICE
from harness.explain.rules import UNEXPLAINED
from harness.families.misread import Misread
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger, LoaderCall

FUSED_WITHOUT_SHARD = Cause.declared(
    "fused-without-shard",
    "let the hook take a call without shard_id as one that loads all shards; fixed by "
    "tpu-inference #2647, released with 0.22",
)
STORAGE_MISREAD = Cause.declared(
    "storage-misread",
    "save the experts in the storage that this release takes them for, or load them with a "
    "release that reads the one they are in (harness/families/misread.py)",
)
CONFIG_LACKS_KEY = Cause.declared(
    "config-lacks-key",
    "give config.json the key, with the publisher's value: what saved the checkpoint does not "
    "write it, and this release builds no model, or another one, without it",
    suspect=Suspect.CHECKPOINT,
)
HOOKED_AS_EXPERT = Cause.declared(
    "hooked-as-expert",
    "let the hook pass over what the experts' module only shares with another one: a router's "
    "bias has no expert_id and no shard_id",
)

_LAYERS_LISTED = 4


def diagnose_failure(
    ledger: Ledger, layers: Sequence[int], experts: int, misread: Misread | None = None
) -> list[Diagnosis]:
    """The cause of a failed load, if its ledger explains it; else "unexplained".

    Args:
        ledger: of the part whose load raised.
        layers: the part's layers of experts.
        experts: how many each has.
        misread: what the stack takes the part's storage for, where that is another one.
    """
    call = ledger.calls[-1] if ledger.failed else None
    known = _unassigned(ledger) or (
        (_contract(call, ledger.undelivered(layers, experts)) if call else None)
        or (_no_expert(call, ledger, ledger.undelivered(layers, experts)) if call else None)
        or _streamed_twice(ledger)
        or _processed_early(ledger, layers, experts)
        or (_misread(call, misread) if call and misread else None)
    )
    if known:
        return [known]
    if call:
        what = "a copy into a parameter" if call.operation else "a weight_loader"
        return [_failed(UNEXPLAINED, f"{what} raised an error", _called(call))]
    return [_failed(UNEXPLAINED, "the stack under test raised an error", "see above")]


def config_lacks(error: Exception, checkpoint: ModelCheckpoint) -> Diagnosis | None:
    """The key that upstream wanted of config.json, which has none; None where it was not that.

    Args:
        error: what ended the load, as upstream raised it.
        checkpoint: the one that was loaded.
    """
    keys, message = {*checkpoint.config, *checkpoint.text}, str(error)
    asked = getattr(error, "obj", None), getattr(error, "name", None)
    if isinstance(error, AttributeError) and type(asked[0]).__name__.endswith("Config"):
        if not isinstance(asked[1], str) or asked[1] in keys:
            return None
        wants = f"which {checkpoint.family.architecture} of this release asks for"
        return _failed(CONFIG_LACKS_KEY, f"config.json has no {asked[1]}, {wants}", message)
    for module, key in checkpoint.family.built_by.items():
        if module in message and key not in keys:
            summary = f"config.json has no {key}, without which this release builds no {module}"
            return _failed(CONFIG_LACKS_KEY, summary, message)
    return None


def never_arrived(
    diagnosis: Diagnosis, ledger: Ledger, layers: Sequence[int], experts: int
) -> dict[int, tuple[int, ...]]:
    """By layer, the experts that ``diagnosis`` says never arrived; what else did not come is open.

    Args:
        diagnosis: of :func:`diagnose_failure`, with the same ledger, layers and experts.
        ledger: of the part whose load raised.
        layers: the part's layers of experts.
        experts: how many each has.
    """
    if diagnosis.cause in (ARGUMENT_CONTRACT, HOOKED_AS_EXPERT):
        return ledger.undelivered(layers, experts)
    if diagnosis.cause is DELIVERED_LATE:
        return _early(ledger, layers, experts)
    return {}


def _unassigned(ledger: Ledger) -> Diagnosis | None:
    """Parameters that have no memory, since nothing was assigned to them: no program takes them.

    Of tpu-inference's own models (``models/common/model_loader.py``, ``create_jit_model``).
    """
    if not ledger.unassigned:
        return None
    first, more = ledger.unassigned[0], len(ledger.unassigned) - 1
    return _failed(
        PARAMETER_UNWRITTEN,
        f"nothing was ever assigned to {first}" + (f" and {more} more" if more else ""),
        f"of {len(ledger.parameters)} parameters {more + 1} still are shapes without memory; "
        f"{len(ledger.streamed)} tensors were streamed",
    )


def _contract(call: LoaderCall, undelivered: dict[int, tuple[int, ...]]) -> Diagnosis | None:
    """The hook did not find the ids where it looks for them."""
    if call.ids_are_positional:
        summary = (
            "the hook received shard_id and expert_id positionally and reads them from the "
            f"keyword arguments; {_lost(undelivered)}"
        )
        return _failed(ARGUMENT_CONTRACT, summary, _called(call), fix_of(call.site))
    if call.layer_type == "QKVParallelLinear" and not (call.arguments or call.operation):
        summary = "the hook wants a shard_id for a tensor that is stored fused and has none"
        return _failed(FUSED_WITHOUT_SHARD, summary, _called(call))
    return None


def _misread(call: LoaderCall, misread: Misread) -> Diagnosis | None:
    """The load ended at an expert, and the release is known to take this storage for another."""
    if not call.is_of_expert:
        return None
    return _failed(
        STORAGE_MISREAD,
        f"the experts are stored {misread.storage.layout}, and vllm{misread.releases} takes them "
        f"for {misread.taken_for.layout}",
        f"{call.source} ended the load; {misread.upstream}; {_called(call)}",
    )


def _no_expert(
    call: LoaderCall, ledger: Ledger, undelivered: dict[int, tuple[int, ...]]
) -> Diagnosis | None:
    """The hook asked for an expert's ids of a parameter that experts only share.

    tpu-inference wraps the ``weight_loader`` of every parameter of every module; one that is of two
    modules, as MiniMax-M2's correction bias, gets the experts' hook, too (``vllm_model_loader.py``,
    ``attach_incremental_weight_loader``, 0.26 and 0.32).
    """
    module, _, name = call.parameter.rpartition(".")
    shared = re.compile(rf"{re.escape(module)}\.(?:\w+\.)*experts\.(?:\w+\.)*{re.escape(name)}")
    if call.is_of_expert or call.operation or call.ids != (None, None):
        return None
    if not any(shared.fullmatch(parameter) for parameter in ledger.parameters):
        return None
    summary = (
        f"the hook wants an expert's ids for {name}, which the experts only share; "
        f"{_lost(undelivered)}"
    )
    return _failed(HOOKED_AS_EXPERT, summary, _called(call))


def _streamed_twice(ledger: Ledger) -> Diagnosis | None:
    """The tensor it ended with had come before, and its layer was processed meanwhile."""
    *before, last = ledger.streamed or [""]
    if last not in before:
        return None
    return _failed(
        DELIVERED_TWICE,
        "a tensor was streamed a second time, when its layer was processed already",
        f"{last} came as tensor {before.index(last) + 1} and again as {len(before) + 1}",
    )


def _processed_early(ledger: Ledger, layers: Sequence[int], experts: int) -> Diagnosis | None:
    """A layer was processed and some of its experts had not come."""
    early = _early(ledger, layers, experts)
    if not early:
        return None
    layer, lost = next(iter(early.items()))
    return _failed(
        DELIVERED_LATE,
        "a layer was processed before all its pieces had come; never arrived: "
        f"{experts_text(lost)} of layer {layer}",
        f"the load ended at {ledger.streamed[-1]}, with the layer's parameters replaced already",
    )


def _early(ledger: Ledger, layers: Sequence[int], experts: int) -> dict[int, tuple[int, ...]]:
    """By layer that was processed, the experts of it that had not come.

    A last call that found its layer unprocessed counts as come: it had the layer processed, and
    that is where the error came from.
    """
    late = ledger.failed and ledger.calls[-1].late
    undelivered = replace(ledger, failed=late).undelivered(layers, experts)
    return {
        layer: undelivered[layer] for layer in ledger.processed_layers() if layer in undelivered
    }


def _called(call: LoaderCall) -> str:
    return f"{call.site} called {call.as_call} of a {call.layer_type}"


def _failed(cause: Cause, summary: str, evidence: str, fix: str = "") -> Diagnosis:
    next_step = f"{cause.next_step}{fix}"
    return Diagnosis(cause=cause, summary=summary, evidence=evidence, next_step=next_step)


def _lost(undelivered: dict[int, tuple[int, ...]]) -> str:
    layers = [f"layer {layer}: {experts_text(e)}" for layer, e in undelivered.items()]
    if not layers:
        return "its experts never arrived"
    more = len(layers) - _LAYERS_LISTED
    listed = "; ".join(layers[:_LAYERS_LISTED]) + (f"; and {more} layers more" if more > 0 else "")
    return f"never arrived: {listed}"
