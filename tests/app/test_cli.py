from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import InternalError
from harness.compare.digest_file import read_digest_file
from harness.load.process import LoadProcesses
from harness.load.stack import require_stack


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["verify", "/nowhere"], 2, "no such directory"),
        (["verify", "/nowhere", "--target", "abacus"], 2, "unknown target 'abacus'"),
        (["verify", "/nowhere", "--devices", "0"], 2, "0 devices"),
        (["verify", "/nowhere", "--json", "/nowhere/out.json"], 2, "no directory for the report"),
        (["verify", "/nowhere", "--stack", "path:/nowhere"], 2, "no package vllm in the checkout"),
        (["checkpoint", "no-such", "OUT"], 2, "unknown recipe 'no-such'"),
        (["digest", "/nowhere", "-o", "/dev/null"], 2, "no such directory"),
        (["digest", "/nowhere", "-o", "/nowhere/out"], 2, "no directory for the report"),
        (["doctor", "--target", "abacus"], 2, "unknown target 'abacus'"),
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


def test_digest_says_what_it_wrote(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path, out = tiny_checkpoints["qwen3.5-mtp"], tmp_path / "digests"
    result = CliRunner().invoke(main, ["digest", str(path), "-o", str(out)])
    assert result.exit_code == 0
    assert result.stdout.startswith("72 experts' matrices and 82 other tensors, 2.7 MB read in ")
    assert f"{out}, {out.stat().st_size / 1000:.1f} kB" in result.stdout
    assert read_digest_file(out).matrices == 72


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "broken safetensors file"),
        ("model-00001-of-00004.safetensors", "it is not one"),
    ],
)
def test_a_reference_that_is_a_file_is_a_digest_file(
    name: str, message: str, tiny_checkpoints: dict[str, Path]
) -> None:
    path = tiny_checkpoints["qwen3.5-mtp"]
    result = CliRunner().invoke(main, ["verify", str(path), "--reference", str(path / name)])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("target", "exit_code"), [("emulated", 0), ("tpu", 4)])
def test_doctor_of_one_target(target: str, exit_code: int) -> None:
    result = CliRunner().invoke(main, ["doctor", "--target", target])
    assert result.exit_code == exit_code, result.output
    assert f"target    {target}: would " in result.stdout


def test_an_absent_stack_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoints: dict[str, Path]
) -> None:
    def installed(package: str) -> str:
        if package in ("vllm", "tpu-inference"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("harness.load.stack.version", installed)
    result = CliRunner().invoke(main, ["verify", str(tiny_checkpoints["qwen3.5-moe"])])
    assert result.exit_code == 4
    assert "not installed: vllm, tpu-inference" in result.stderr


def test_checkpoint_says_what_it_wrote(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["checkpoint", "qwen3-vl-moe", str(tmp_path / "c")])
    assert result.exit_code == 0
    assert "70 tensors, 2095872 bytes in 4 files" in result.stdout


@pytest.mark.parametrize(
    ("command", "option"),
    [("verify", "--hook"), ("checkpoint", "--files"), ("checkpoint", "--values")],
)
def test_options_of_the_library_alone(command: str, option: str) -> None:
    assert option not in CliRunner().invoke(main, [command, "--help"]).output


def test_a_part_the_checkpoint_has_not_is_bad_input(tiny_checkpoints: dict[str, Path]) -> None:
    path = str(tiny_checkpoints["qwen3-vl-moe"])
    result = CliRunner().invoke(main, ["verify", path, "--only", "mtp"])
    assert result.exit_code == 2
    assert "nothing to compare: mtp was asked for" in result.stderr


def test_an_error_of_ours_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InternalError.of(ValueError("as planted"))

    monkeypatch.setattr("harness.app.cli.verify", fail)
    result = CliRunner().invoke(main, ["verify", "/nowhere"])
    assert (result.exit_code, "ValueError: as planted" in result.stderr) == (5, True)


@pytest.mark.parametrize(
    "command", [["verify", "/nowhere"], ["merge", "/nowhere", "--wait", "9", "--output", "m.json"]]
)
def test_ctrl_c_is_no_difference(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.app.cli.verify", interrupted)
    monkeypatch.setattr("time.sleep", interrupted)
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.output) == (130, "interrupted\n")


def test_checkouts_are_given_to_the_loading_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    seen = []

    def verify(*_: object, processes: LoadProcesses, **__: object) -> None:
        seen.append(processes.overlay.packages)
        raise InternalError.of(ValueError("enough"))

    monkeypatch.setattr("harness.app.cli.verify", verify)
    CliRunner().invoke(main, ["verify", "/nowhere", "--stack", f"path:{tmp_path}"])
    assert seen == [{"vllm": tmp_path / "vllm"}]


def test_doctor_states_versions() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    for package, number in require_stack().items():
        assert f"{package} {number}" in result.stdout
    assert "emulated: would run: emulated, 4 devices" in result.stdout
    assert "tpu: would not run: no TPU chip" in result.stdout
