"""Why a load failed: causes that its error and the loader hook's last call show."""

from __future__ import annotations

from harness.contract import HookCall
from harness.diagnosis import NEXT_STEP, Cause, Diagnosis, experts_text

#: The fixes of positional ids, by the file of the call site; all released with vLLM 0.22.0.
FIXES: dict[str, str] = {
    "qwen3_5.py": "vLLM #42521",
    "qwen3_vl_moe.py": "vLLM #42671 and #42716",
    "qwen3_5_mtp.py": "vLLM #42716",
}


def diagnose_failure(call: HookCall | None, call_site: str) -> list[Diagnosis]:
    """The cause of a failed load, if the hook's last call explains it; else "unexplained".

    Args:
        call: the hook's call in the error's traceback.
        call_site: its caller as ``vllm/…/file.py:line``.
    """
    if call is None:
        return [_diagnosis(Cause.UNEXPLAINED, "the stack under test raised an error", "see above")]
    evidence = f"{call_site} called {call.as_call} of a {call.layer_type}"
    if call.ids_are_positional:
        summary = (
            "the hook received shard_id and expert_id positionally and reads them from the "
            f"keyword arguments; {_lost(call)}"
        )
        return [_diagnosis(Cause.ARGUMENT_CONTRACT, summary, evidence, _fix(call_site))]
    if call.layer_type == "QKVParallelLinear" and not call.positional:
        summary = "the hook wants a shard_id for a tensor that is stored fused and has none"
        return [_diagnosis(Cause.FUSED_WITHOUT_SHARD, summary, evidence)]
    return [_diagnosis(Cause.UNEXPLAINED, "the loader hook raised an error", evidence)]


def _diagnosis(cause: Cause, summary: str, evidence: str, fix: str = "") -> Diagnosis:
    next_step = f"{NEXT_STEP[cause]}{fix}"
    return Diagnosis(cause=cause, summary=summary, evidence=evidence, next_step=next_step)


def _lost(call: HookCall) -> str:
    if not call.undelivered:
        return "its experts never arrived"
    layers = "; ".join(
        f"layer {layer}: {experts_text(experts)}" for layer, experts in call.undelivered.items()
    )
    return f"never arrived: {layers}"


def _fix(call_site: str) -> str:
    file = call_site.rsplit("/", 1)[-1].split(":")[0]
    return f"; fixed by {FIXES[file]}, released with vLLM 0.22.0" if file in FIXES else ""
