"""Sessions to look at: all equal, the canary, and a rank shift at published sizes."""

from __future__ import annotations

from pathlib import Path

from harness.compare.difference import BitsDiffer, Difference, Tally
from harness.explain.causes import Cause, Diagnosis
from harness.families.experts import TensorSlice
from harness.families.family import Part, Projection
from harness.load.call_rows import Calls
from harness.report.maps import map_of
from harness.report.renderings import session_from
from harness.report.report import Environment, Report, Session, SessionRow, Status, Timings

CANARY = Path(__file__).parents[1] / "data" / "canary-session.json"
_ENVIRONMENT = Environment(
    stack="0.26", python="3.11.7", versions={"vllm": "0.26.0", "tpu-inference": "0.26.0"},
    target="emulated, 4 devices", entry="TPUWorker.load_model",
)  # fmt: skip
_TIMINGS = Timings(setup=1.5, load=9.0, compare=2.0, stream=3.0)


def _calls(layers: int, experts: int) -> list[Calls]:
    """What the two calls for gate and up would leave."""
    return [
        Calls(
            part=Part.DECODER, projection=projection, layers=f"0-{layers - 1}",
            experts=f"0-{experts - 1}", site="qwen3_moe.py:151",
            call=f"weight_loader(param, loaded_weight, shard_id={shard!r}, expert_id={{expert}})",
            source="model.layers.{layer}.mlp.experts.gate_up_proj",
        )
        for projection, shard in ((Projection.GATE, "w1"), (Projection.UP, "w3"))
    ]  # fmt: skip


def a_report(layers: int, experts: int, shifted: tuple[int, ...] = ()) -> Report:
    """A report in which the experts ``shifted`` of every layer hold those of the next rank."""
    differences: list[Difference] = [
        BitsDiffer(
            part=Part.DECODER, layer=layer, expert=expert, projection=projection,
            parameter="", reference=0x3F80, device=0x1A87, itemsize=2,
            source=TensorSlice("model-00001.safetensors", f"layer {layer}"),
            index=(0, expert), count=100, total=6144, shard=1, device_name="cpu:2",
        )
        for layer in range(layers) for projection in Projection for expert in shifted
    ]  # fmt: skip
    diagnoses = [
        Diagnosis(
            cause=Cause.ROLLED, summary="each rank holds the piece of the next", first=0,
            evidence="rolled by one shard it is equal", next_step=Cause.ROLLED.next_step,
            covers=len(differences), members=f"0-{len(differences) - 1}",
        )
    ] if shifted else []  # fmt: skip
    part_map = map_of(
        Part.DECODER, range(layers), experts, lambda layer: range(experts), differences, diagnoses
    )
    tally = Tally(
        part=Part.DECODER, layers=layers, experts=layers * experts,
        experts_compared=layers * experts, bytes_compared=layers * experts * 9_437_184,
    )  # fmt: skip
    return Report(
        checkpoint="/checkpoints/c", reference="/checkpoints/c", family="qwen3-vl-moe",
        status=Status.DIFFERENT if shifted else Status.EQUAL, environment=_ENVIRONMENT,
        tallies=[tally], differences=differences, diagnoses=diagnoses, maps=[part_map],
        calls=_calls(layers, experts), timings=_TIMINGS, repeat="harness verify /checkpoints/c",
    )  # fmt: skip


def all_equal() -> Session:
    """Two scenarios, nothing to see."""
    rows = [SessionRow(scenario="vl-fused", report=a_report(2, 8)),
            SessionRow(scenario="vl-experts-whole", report=a_report(48, 128))]  # fmt: skip
    return Session(complete=True, began="2026-05-01T03:00:00+00:00", rows=rows)


def canary() -> Session:
    """Three scenarios of vLLM 0.21, as a run of them left them."""
    return session_from(CANARY)


def rank_shift() -> Session:
    """Every eighth expert of 94 x 128, half of those of 60 x 512."""
    eighths, half = tuple(range(0, 128, 8)), tuple(range(256, 512))
    reports = {"vl-235b": a_report(94, 128, eighths), "qwen3.5-397b": a_report(60, 512, half)}
    rows = [SessionRow(scenario=name, report=r, failed=True) for name, r in reports.items()]
    return Session(complete=True, began="2026-05-01T03:00:00+00:00", rows=rows)
