"""Experts alone: of an architecture that no family describes, and of one that a family does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.compare.accounting import EXPERTS_ONLY
from harness.families import known_families as registry
from harness.families.known_families import bring, family_of_architecture
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.message import failure_text
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.flips import FLIPS, with_one_byte_flipped

FILE = Path(__file__).parents[1] / "support" / "outside_family.py"
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint of Qwen2-MoE, which nobody here describes once it is written."""
    bring([FILE])
    try:
        path = write_checkpoint("qwen2-moe", tmp_path / "written").path
    finally:
        registry.forget()
    assert family_of_architecture("Qwen2MoeForCausalLM") is None
    return path


def with_another_norm(path: Path, copy: Path) -> Path:
    """A copy whose final norm has another bit: nobody looks at it."""
    return with_one_byte_flipped(path, copy, "model.norm.weight", 7)


def test_experts_of_an_unknown_architecture(
    written: Path, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    """All are compared; a norm that differs is not seen, and the report says it was not."""
    reference = with_another_norm(written, tmp_path / "reference")
    report = verify(
        written, target, reference=reference, experts_only=True, processes=load_processes
    )
    assert report.failure is None
    assert (report.status, report.exit_code) == (Status.EXPERTS_EQUAL, 0)
    assert (report.family, report.experts_only) == ("Qwen2MoeForCausalLM", True)
    assert (report.experts_compared, report.parameters) == (16, [])
    for account in report.accounts:
        assert (account.compared, account.unaccounted) == (48, 0)
        assert account.left_alone == {EXPERTS_ONLY: account.tensors - 48}
    assert "this says nothing of the rest of the checkpoint" in failure_text(report)
    assert "--experts-only" in report.repeat


def test_an_expert_that_differs_is_named(
    written: Path, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    reference = with_one_byte_flipped(written, tmp_path / "reference", EXPERT, 7)
    report = verify(
        written, target, reference=reference, experts_only=True, processes=load_processes
    )
    (difference,) = report.differences
    assert str(difference.key) == "decoder layer 1 expert 5 up_proj"
    assert (report.status, report.exit_code) == (Status.DIFFERENT, 1)
    assert "scope      experts only" in failure_text(report)


def test_a_known_family_on_the_command_line(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A draft model, too; nothing that is printed calls the checkpoint equal."""
    tensor, element, key, _ = FLIPS["qwen3.5-mtp"]
    path = tiny_checkpoints["qwen3.5-mtp"]
    reference = with_one_byte_flipped(path, tmp_path / "reference", tensor, element)
    ended = CliRunner().invoke(
        main, ["verify", str(path), "--reference", str(reference), "--experts-only"]
    )
    assert ended.exit_code == 1, ended.output
    assert str(key) in ended.stdout
    assert "24/24" in ended.stdout
    assert "experts only: no other tensor or parameter was compared" in ended.stdout


def test_a_configuration_of_other_experts_is_bad_input(written: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(written, tmp_path / "spoiled")
    config = (spoiled / "config.json").read_text()
    (spoiled / "config.json").write_text(config.replace('"num_experts": 8', '"num_experts": 9'))
    ended = CliRunner().invoke(main, ["verify", str(spoiled), "--experts-only"])
    assert ended.exit_code == 2
    assert "the files hold 8 experts" in ended.stderr
