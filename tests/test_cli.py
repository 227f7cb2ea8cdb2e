from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.stack import require_stack


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["verify", "/nowhere"], 2, "no such directory"),
        (["verify", "/nowhere", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["verify", "/nowhere", "--devices", "0"], 2, "0 devices"),
        (["verify", "/nowhere", "--json", "/nowhere/out.json"], 2, "no directory for the report"),
        (["checkpoint", "mixtral", "OUT"], 2, "unknown family 'mixtral'"),
        (["doctor", "--target", "gpu"], 2, "unknown target 'gpu'"),
    ],
)
def test_bad_input(arguments: list[str], exit_code: int, message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Expected: " in result.stderr
    assert "Try: " in result.stderr


def test_a_target_this_machine_lacks_is_not_available() -> None:
    result = CliRunner().invoke(main, ["verify", "/nowhere", "--target", "tpu"])
    assert result.exit_code == 4
    assert "no TPU chip (/dev/accel*, /dev/vfio/*)" in result.stderr


@pytest.mark.parametrize(("target", "exit_code"), [("emulated", 0), ("tpu", 4)])
def test_doctor_of_one_target(target: str, exit_code: int) -> None:
    result = CliRunner().invoke(main, ["doctor", "--target", target])
    assert result.exit_code == exit_code, result.output
    assert f"target    {target}: would " in result.stdout


def test_an_absent_stack_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoints: dict[str, Path]
) -> None:
    monkeypatch.setattr("harness.stack.PACKAGES", ("jax", "torch", "runai-model-streamer"))
    result = CliRunner().invoke(main, ["verify", str(tiny_checkpoints["qwen3.5-moe"])])
    assert result.exit_code == 4
    assert "not installed: vllm, tpu-inference" in result.stderr


def test_checkpoint_says_what_it_wrote(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["checkpoint", "qwen3-vl-moe", str(tmp_path / "c")])
    assert result.exit_code == 0
    assert "70 tensors, 2095872 bytes in 4 files" in result.stdout


def test_doctor_states_versions() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    for package, number in require_stack().items():
        assert f"{package} {number}" in result.stdout
    assert "emulated: would run: emulated, 4 devices" in result.stdout
    assert "tpu: would not run: no TPU chip" in result.stdout
