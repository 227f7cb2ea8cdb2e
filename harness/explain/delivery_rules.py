"""What became of a slice that was never written: the ledger knows."""

from __future__ import annotations

from harness.explain.causes import Cause, Finding, fix_of
from harness.explain.evidence import Evidence, rule


@rule(
    Cause.ARGUMENT_CONTRACT, Cause.DELIVERED_LATE, Cause.UNWRITTEN, Cause.NOT_STREAMED,
    Cause.PARAMETER_UNWRITTEN, Cause.NOT_DELIVERED,
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
            Cause.ARGUMENT_CONTRACT,
            "weight_loader got shard_id and expert_id positionally, where the hook does not look "
            f"for them; {lost}",
            f"{call.site} called {call.as_call} of a {call.layer_type}; {poison}"
            f"{fix_of(call.site)}",
            call.site,
        )
    if call := next((c for c in known.calls if c.late), None):
        return e.finding(
            Cause.DELIVERED_LATE,
            f"the layer was processed before its pieces had come; {lost}",
            f"{call.site} delivered {e.name} to a parameter the layer no longer held; {poison}",
        )
    if call := next(iter(known.calls), None):
        how = f"{call.site} called {call.as_call} of a {call.layer_type}"
        return e.finding(Cause.UNWRITTEN, lost, f"{how}; {poison}")
    if not known.recorded:
        return e.finding(Cause.UNWRITTEN, lost, poison)
    if not known.streamed:
        return e.finding(
            Cause.NOT_STREAMED,
            f"{lost}: the tensors were never streamed",
            f"the streamer gave {known.of} tensors, {known.tensor} was not among them; {poison}",
        )
    if known.never:
        return e.finding(Cause.PARAMETER_UNWRITTEN, lost, poison)
    return e.finding(
        Cause.NOT_DELIVERED,
        f"{lost}: no weight_loader was called",
        f"{known.tensor} was streamed, no call named {e.name}; {poison}",
    )
