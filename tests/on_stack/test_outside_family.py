"""A family that a file outside the project describes is loaded and compared like any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.errors import BadInput
from harness.explain.causes import Cause
from harness.families import registry
from harness.families.registry import bring
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.flips import with_one_byte_flipped

FILE = Path(__file__).parents[1] / "support" / "outside_family.py"
BIAS = "model.layers.1.self_attn.k_proj.bias"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """The file, where no package is; what it brings goes with the test."""
    yield Path(shutil.copy(FILE, tmp_path / "my_moe.py"))
    registry.forget()


def test_it_is_loaded_and_every_tensor_of_it_compared(
    file: Path, tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    """One bit of a bias that only the file describes is flipped, and named."""
    bring([file])
    written = write_checkpoint("qwen2-moe", tmp_path / "written").path
    reference = with_one_byte_flipped(written, tmp_path / "reference", BIAS, 33)
    report = verify(written, target, reference=reference, families=[file], processes=load_processes)
    assert report.failure is None
    assert (report.family, report.status) == ("qwen2-moe", Status.DIFFERENT)
    (difference,) = report.differences
    assert difference.name.endswith("layers.1.self_attn.qkv_proj.bias")
    assert [diagnosis.cause for diagnosis in report.diagnoses] == [Cause.BIT_FLIP]
    assert report.experts_compared == 16
    assert [account.unaccounted for account in report.accounts] == [0, 0]
    assert f"--family {file}" in report.repeat


def test_a_loading_process_says_what_is_wrong_with_it(
    file: Path,
    tmp_path: Path,
    target: Target,
    load_processes: LoadProcesses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads the file by itself: one that was spoiled in between is bad input there."""
    bring([file])
    written = write_checkpoint("qwen2-moe", tmp_path / "written").path
    monkeypatch.setattr("harness.verification.verify.bring", lambda files: tuple(files))
    file.write_text("FAMILY = 1")
    with pytest.raises(BadInput, match="its FAMILY is a int") as raised:
        verify(written, target, families=[str(file)], processes=load_processes)
    assert raised.value.where == str(file)
