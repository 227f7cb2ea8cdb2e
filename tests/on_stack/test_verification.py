"""End to end on the real stack: equal is equal, one byte is one byte, a failed load is data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.bits import Nan
from harness.base.errors import BadInput, InternalError
from harness.base.progress import Figures
from harness.compare.words import source_words
from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.overlay import Overlay
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.message import failure_text
from harness.report.report import Report, Status, report_from_json
from harness.synthetic.values import Values
from harness.synthetic.writer import write_checkpoint
from harness.verification import verify as verification
from harness.verification.job import VerifyRequest
from harness.verification.verify import verify
from tests.support.differences import elements
from tests.support.flips import FLIPS, D, F, with_one_byte_flipped


@pytest.mark.parametrize("recipe", sorted(FLIPS))
def test_one_byte_of_one_expert(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    recipe: str,
    target: Target,
    load_processes: LoadProcesses,
) -> None:
    tensor, element, key, index = FLIPS[recipe]
    reference = with_one_byte_flipped(
        tiny_checkpoints[recipe], tmp_path / "reference", tensor, element
    )
    report = verify(tiny_checkpoints[recipe], target, reference=reference, processes=load_processes)
    assert report.status is Status.DIFFERENT
    (difference,) = report.differences
    assert (difference.key, elements(difference).index, elements(difference).count) == (
        key,
        index,
        1,
    )
    assert tensor in source_words(difference)
    (diagnosis,) = report.diagnoses
    assert diagnosis.cause is Cause.BIT_FLIP
    text = failure_text(report)
    assert f"{key}, first at [output, input] {list(index)}" in text
    assert f"--reference {reference}" in text


def test_the_command_line(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint is written, verified, and compared with a spoiled copy, by hand."""
    runner, at = CliRunner(), str(tmp_path / "c")
    assert runner.invoke(main, ["checkpoint", "qwen3.5-mtp", at]).exit_code == 0
    spoiled = str(with_one_byte_flipped(Path(at), tmp_path / "spoiled", *FLIPS["qwen3.5-mtp"][:2]))
    out = tmp_path / "out.json"
    result = runner.invoke(main, ["verify", at, "--reference", spoiled, "--json", str(out)])
    assert result.exit_code == 1
    assert "one bit of mtp layer 0 expert 7 gate_proj is flipped [bit-flip]" in result.stdout
    report = report_from_json(out.read_bytes())
    assert len(report.differences) == 1
    assert json.loads(out.read_text())["status"] == "different"
    assert report.experts_compared == 24


@pytest.mark.parametrize("parts", [(), (Part.MTP,)])
def test_what_compares_nothing_is_refused(
    tiny_checkpoints: dict[str, Path], parts: tuple[Part, ...]
) -> None:
    with pytest.raises(BadInput, match="nothing to compare"):
        verify(tiny_checkpoints["qwen3-vl-moe"], parts=parts)


ENDS: dict[str, Callable[[Report], Report]] = {
    "equal": lambda report: msgspec.structs.replace(report, status=Status.EQUAL),
    "different": lambda report: msgspec.structs.replace(report, status=Status.DIFFERENT),
    "a failed load": lambda report: report,
    "a broken comparison": lambda _: broken(),
}


def broken() -> Report:
    raise InternalError("SIGBUS", where="", expected="", hint="")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("side", ["checkpoint", "reference"])
def test_whatever_was_found_in_files_that_changed_is_no_verdict(
    end: str, side: str, tiny_checkpoints: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths = {name: tmp_path / name for name in ("checkpoint", "reference")}
    for path in paths.values():
        shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], path)

    def disturbed(_: VerifyRequest, report: Report, *__: object) -> list[Report]:
        next(paths[side].glob("*.safetensors")).touch()
        return [ENDS[end](report)]

    monkeypatch.setattr(verification, "outcomes", disturbed)
    with pytest.raises(BadInput, match="changed while it was loaded: it was written to") as raised:
        verify(paths["checkpoint"], reference=paths["reference"])
    assert raised.value.where.startswith(str(paths[side]))


def rewritten(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-2] + b"xx")


@pytest.mark.parametrize(
    "change",
    [Path.unlink, lambda path: os.truncate(path, path.stat().st_size // 2), rewritten],
    ids=["deleted", "cut short", "replaced"],
)
def test_a_file_that_changes_while_the_load_streams(
    change: Callable[[Path], object], tiny_checkpoints: dict[str, Path], tmp_path: Path,
    target: Target, load_processes: LoadProcesses, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A real load; the figures of its progress say when it is at it."""
    path = shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "c")
    phases: list[str] = []

    @contextmanager
    def watching(_: object) -> Iterator[Callable[[Figures], None]]:
        def watch(figures: Figures) -> None:
            if not phases:
                change(max(path.glob("*.safetensors")))
            phases.append(figures.phase)

        yield watch

    monkeypatch.setattr("harness.base.progress.shown", watching)
    with pytest.raises(BadInput, match="the file changed while it was loaded"):
        verify(path, target, processes=load_processes, timeout=120)
    assert phases[0] == "stream"


def repeated(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """The command of a verification that was not carried out."""
    monkeypatch.setattr(verification, "outcomes", lambda request, report, *_: [report])
    return verify(path, **options).repeat


def test_the_command_repeats_what_was_asked_for(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_checkpoints["qwen3.6-mtp"]
    plain = f"harness verify {path} --target emulated --devices 4"
    assert repeated(path, monkeypatch) == plain
    assert repeated(path, monkeypatch, parts=[Part.DECODER]) == f"{plain} --only decoder"
    assert repeated(path, monkeypatch, timeout=60.0) == f"{plain} --timeout 60"
    with LoadProcesses(Overlay({"vllm": tmp_path / "vllm"})) as processes:
        found = repeated(path, monkeypatch, processes=processes)
    assert f" --stack=path:{tmp_path}/vllm " in found
    vl = tiny_checkpoints["qwen3-vl-moe"]
    assert "--only" not in repeated(vl, monkeypatch, parts=[Part.DECODER])


def test_equal_reports_say_what_was_compared(
    tiny_checkpoints: dict[str, Path], target: Target, load_processes: LoadProcesses
) -> None:
    report = verify(tiny_checkpoints["qwen3.6-mtp"], target, processes=load_processes)
    assert (report.status, report.exit_code, failure_text(report)) == (Status.EQUAL, 0, "")
    assert {t.part: (t.experts_compared, t.experts) for t in report.tallies} == {
        Part.DECODER: (16, 16),
        Part.MTP: (8, 8),
    }
    assert report.bytes_compared == 24 * 3 * D * F * 2
    assert report.environment.mesh == ("cpu:1", "cpu:2", "cpu:3", "cpu:4")
    assert report.environment.versions["vllm"]


def test_nan_payloads_are_seen_and_named(
    tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    """Without the rule for NaNs the same load is unequal, for that reason alone."""
    path = write_checkpoint("qwen3-vl-moe", tmp_path / "c", values=Values.NAN_PAYLOADS).path
    strict = verify(path, target, processes=load_processes)
    assert {d.cause for d in strict.diagnoses} == {Cause.NAN_CANONICALISED}
    assert sum(d.expert is not None for d in strict.differences) == 16 * 3
    assert verify(path, target, nan=Nan.CANONICAL, processes=load_processes).status is Status.EQUAL


@pytest.fixture(scope="module")
def failed(
    tmp_path_factory: pytest.TempPathFactory, target: Target, load_processes: LoadProcesses
) -> Report:
    """A load that upstream refuses: config.json promises more attention heads than there are."""
    path = write_checkpoint("qwen3-vl-moe", tmp_path_factory.mktemp("f") / "c").path
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 16
    (path / "config.json").write_text(json.dumps(config))
    return verify(path, target, processes=load_processes)


def test_a_failed_load_is_an_outcome(failed: Report) -> None:
    assert (failed.status, failed.exit_code) == (Status.LOAD_FAILED, 3)
    assert failed.failure is not None
    assert failed.failure.error
    files = [frame.file for frame in failed.failure.frames]
    assert any(file.startswith("vllm/model_executor/") for file in files)
    assert failed.experts_compared == 0


def test_a_failed_load_shows_the_frames(failed: Report) -> None:
    text = failure_text(failed)
    assert "the load under test failed, nothing was compared" in text
    assert "tpu_inference/" in text
    assert "vllm/model_executor/models/" in text


def test_a_load_that_takes_too_long_is_an_outcome(
    tiny_checkpoints: dict[str, Path], target: Target, load_processes: LoadProcesses
) -> None:
    report = verify(tiny_checkpoints["qwen3-vl-moe"], target, processes=load_processes, timeout=0.5)
    assert report.status is Status.LOAD_FAILED
    assert report.failure is not None
    assert report.failure.error == "the load did not end within 0.5 s"
