"""What became of a slice that was never written: the ledger knows."""

from __future__ import annotations

import re

from harness.explain.causes import Cause, Finding, fix_of
from harness.explain.evidence import Evidence, Turn, rule
from harness.load.ledger import Ledger

TURN = Turn.DELIVERIES
_BIAS = re.compile(r"(?P<stem>(?P<module>.*\.)?[^.]*?)[._]?bias")


def is_lone_bias(name: str, ledger: Ledger) -> bool:
    """Whether a tensor or a parameter is a bias that was not delivered, while its weight was.

    Args:
        name: the checkpoint's of a tensor, or the model's of a parameter.
        ledger: of the part that should have it.
    """
    if not ledger.recorded or not (match := _BIAS.fullmatch(name)):
        return False
    stem, module = match["stem"].rstrip("."), match["module"] or ""
    weights = {f"{stem}.weight", stem, f"{stem}_weight", f"{module}weight"}
    came = {call.source for call in ledger.calls}
    came |= set(ledger.parameters) - set(ledger.unwritten)
    return name not in came and bool(weights & came)


#: What is said of all of them.
BIASES_LOST = "biases were lost on the way, while their weights came"
BIAS_LOST = Cause.declared(
    "bias-lost",
    "look for has_bias where the layer is made, and for names that end in bias in "
    "load_weights: vLLM 0.26's RoutedExperts.load_weights drops those of experts",
)


@rule(BIAS_LOST)
def bias_lost(e: Evidence) -> Finding | None:
    """A bias was never written, or is zero, and nothing came for it, while its weight did."""
    if not e.all_held(lambda device: (device == 0) | (device == (e.poison or 0))):
        return None
    known = e.deliveries()
    if not is_lone_bias(known.tensor, known.ledger):
        return None
    evidence = f"no weight_loader was called for {e.name} and nothing copied it; its weight came"
    return e.finding_of_all(BIAS_LOST, BIASES_LOST, evidence)


ARGUMENT_CONTRACT = Cause.declared(
    "argument-contract",
    "pass them by keyword at the call site: shard_id=shard_id, expert_id=expert_id",
)
DELIVERED_LATE = Cause.declared(
    "delivered-late",
    "look at what the hook counts as complete: it processed the layer before all its "
    "pieces had come",
)
UNWRITTEN = Cause.declared(
    "unwritten", "look at the weight_loader that was called: it returned without writing"
)
NOT_STREAMED = Cause.declared(
    "not-streamed",
    "look at the list of files the streamer was given: _prepare_weights, the index, a filter",
)
PARAMETER_UNWRITTEN = Cause.declared(
    "parameter-unwritten",
    "look for the checkpoint tensor that should have come, and at the name mapping it went through",
)
NOT_DELIVERED = Cause.declared(
    "not-delivered",
    "look at the name mapping of the model's load_weights: expert_params_mapping, a "
    "skip under a nested prefix, a filter by expert id",
)


@rule(
    ARGUMENT_CONTRACT, DELIVERED_LATE, UNWRITTEN, NOT_STREAMED,
    PARAMETER_UNWRITTEN, NOT_DELIVERED,
)  # fmt: skip
def never_written(e: Evidence) -> Finding | None:
    """All of it still holds the poison."""
    if (value := e.poison) is None or not e.all_held(lambda device: device == value):
        return None
    known = e.deliveries()
    lost = f"{e.words.they} {{were}} never written"
    poison = f"{e.name} still holds the poison 0x{value:x}"
    if call := next((c for c in known.calls if c.ids_are_positional), None):
        return e.finding(
            ARGUMENT_CONTRACT,
            "weight_loader got shard_id and expert_id positionally, where the hook does not look "
            f"for them; {lost}",
            f"{call.site} called {call.as_call} of a {call.layer_type}; {poison}"
            f"{fix_of(call.site)}",
            call.site,
        )
    if call := next((c for c in known.calls if c.late), None):
        return e.finding(
            DELIVERED_LATE,
            f"the layer was processed before its pieces had come; {lost}",
            f"{call.site} delivered {e.name} to a parameter the layer no longer held; {poison}",
        )
    if call := next(iter(known.calls), None):
        how = f"{call.site} called {call.as_call} of a {call.layer_type}"
        return e.finding(UNWRITTEN, lost, f"{how}; {poison}")
    if not known.ledger.recorded:
        return e.finding(UNWRITTEN, lost, poison)
    if known.tensor not in known.ledger.streamed:
        return e.finding(
            NOT_STREAMED,
            f"{lost}: the tensors were never streamed",
            f"the streamer gave {len(known.ledger.streamed)} tensors, {known.tensor} was not among "
            f"them; {poison}",
        )
    if known.never:
        return e.finding(PARAMETER_UNWRITTEN, lost, poison)
    return e.finding(
        NOT_DELIVERED,
        f"{lost}: no weight_loader was called",
        f"{known.tensor} was streamed, no call named {e.name}; {poison}",
    )
