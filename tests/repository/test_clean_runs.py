"""The short form of ``ci/clean_runs.py``, and what the long one covers."""

from __future__ import annotations

import pytest

from harness.families.registry import recipes
from harness.load.stack import installed_versions, stack_name
from tests.support.pipelines import script

clean = script("clean_runs")


def test_fifty_runs_vary_everything() -> None:
    fifty = list(clean.runs(50))
    settings = {(run.concurrency, run.memory_limit) for run in fifty}
    assert len(settings) == len(clean.CONCURRENCY) * len(clean.MEMORY_LIMIT)
    assert {run.files for run in fifty} == set(clean.FILES)
    assert {run.recipe for run in fifty} == {row.recipe for row in clean.faultless()}
    assert len({run.seed for run in fifty}) == len(fifty)
    assert len({(run.recipe, run.concurrency, run.memory_limit) for run in fifty}) > len(settings)


def test_what_has_a_known_issue_is_left_out() -> None:
    left_out = set(recipes()) - {row.recipe for row in clean.faultless()}
    assert "minimax-m2" in left_out
    assert not left_out & {"qwen3-moe", "olmoe", "deepseek-v3", "lfm2-moe"}


@pytest.mark.skipif(
    stack_name(installed_versions()) == "0.21", reason="no checkpoint of a family loads on 0.21"
)
def test_clean_runs_find_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean.main(["--runs", "6"]) == 0
    assert capsys.readouterr().out.endswith("6 runs, no finding\n")
