"""What transformers saves is verified without an option, or refused with its cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.families.known_families import families
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Report, Status
from harness.verification.verify import verify
from scenarios.by_rule import OPTIONS
from tests.support.other_stacks import verified_on
from tests.support.saved import SAVED, save_all

NAMES = {family.name for family in families()}
#: A model in float16 is refused by upstream; in float32 it is made as bfloat16.
ROWS = [n for n in SAVED if n.partition(",")[0] in NAMES and SAVED[n].dtype != "float16"]
#: What vLLM wants of config.json and transformers 5 does not write, so that it builds no such model
#: or, for DeepSeek-V3 without topk_method, one without the bias (``deepseek_v2.py``, 0.26).
REFUSED = {"minimax-m2": "rotary_dim", "deepseek-v3": "topk_method"}
#: What announces a draft model that transformers does not save.
DROPPED_DRAFTS = {"glm4-moe", "deepseek-v3"}
#: The rows that 0.32 loads otherwise than 0.26.
ON_0_32 = ("qwen3-vl-moe", "qwen3-vl-moe, tied", "qwen3.5-moe")
HEADS_UNWRITTEN = {Cause.TENSOR_UNREAD, Cause.PARAMETER_UNWRITTEN}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(ROWS, tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("row", ROWS)
def test_what_transformers_saves(
    row: str, saved: dict[str, Path], target: Target, load_processes: LoadProcesses
) -> None:
    options = OPTIONS.get(row, {}).get("stream_options")
    require_as_known(
        row, verify(saved[row], target, processes=load_processes, stream_options=options)
    )


def test_on_0_32(saved: dict[str, Path]) -> None:
    """One storage that the release misreads, with and without a head, and one it reads."""
    reports = verified_on("0.32", [saved[row] for row in ON_0_32])
    for row, report in zip(ON_0_32, reports, strict=True):
        assert report.environment.stack == "0.32"
        require_as_known(row, report)


def require_as_known(row: str, report: Report) -> None:
    """A row ends on the release it was loaded by as is known of it, and not otherwise."""
    assert report.absent == ([Part.MTP] if row in DROPPED_DRAFTS else [])
    since_0_32 = Version(report.environment.versions["vllm"]) >= Version("0.32")
    if since_0_32 and row.startswith("qwen3-vl-moe"):
        assert causes(report) == {Cause.STORAGE_MISREAD}
        assert "gate_up_proj" in report.diagnoses[0].evidence or "down_proj" in (
            report.diagnoses[0].evidence
        )
        assert "is_fused_checkpoint_transposed" in report.diagnoses[0].evidence
        assert report.status is Status.LOAD_FAILED
    elif since_0_32 and row == "qwen3.5-moe":
        assert causes(report) == HEADS_UNWRITTEN
        assert {d.tensor for d in report.differences if hasattr(d, "tensor")} == {"lm_head.weight"}
    elif row in REFUSED:
        assert report.status is Status.LOAD_FAILED
        assert causes(report) == {Cause.CONFIG_LACKS_KEY}
        assert f"config.json has no {REFUSED[row]}, " in report.diagnoses[0].summary
    else:
        assert report.status is Status.EQUAL, (report.diagnoses, report.failure)


def causes(report: Report) -> set[Cause]:
    return {diagnosis.cause for diagnosis in report.diagnoses}
