"""Checkpoints in a GCS bucket, through the real stack, against an emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.verify import verify
from scenarios.stores import gcs_environment, gcs_put, gcs_upload

FAMILY = "qwen3.5-moe"
FILE = "model-00002-of-00004.safetensors"


@pytest.fixture
def gcs(gcs_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The emulator's URL; the environment points everything to it."""
    for name, value in gcs_environment(gcs_url).items():
        monkeypatch.setenv(name, value)
    return gcs_url


def test_the_reference_is_the_same_as_on_disk(
    gcs: str, tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    stored = ModelCheckpoint(gcs_upload(gcs, tiny_checkpoints[recipe], recipe))
    local = ModelCheckpoint(tiny_checkpoints[recipe])
    assert stored.require_checksums() == len(stored.location.files)
    for there, here in zip(reference_parts(stored), reference_parts(local), strict=True):
        for key in here:
            assert (there[key] == here[key]).all()


@pytest.mark.parametrize("family", ["qwen3-vl-moe", "qwen3.5-moe"])
def test_equal(
    gcs: str,
    tiny_checkpoints: dict[str, Path],
    family: str,
    target: Target,
    load_processes: LoadProcesses,
) -> None:
    url = gcs_upload(gcs, tiny_checkpoints[family], f"equal/{family}")
    report = verify(url, target, processes=load_processes, timeout=300)
    assert (report.status, report.failure) == (Status.EQUAL, None)
    assert report.experts_compared == 16


def test_truncated_and_absent(gcs: str, tiny_checkpoints: dict[str, Path]) -> None:
    at = tiny_checkpoints[FAMILY]
    url = gcs_upload(gcs, at, "truncated")
    gcs_put(gcs, f"truncated/{FILE}", (at / FILE).read_bytes()[:-1000])
    with pytest.raises(BadInput, match="the file is truncated"):
        ModelCheckpoint(url)
    for wrong in ("gs://no-such-bucket/x", f"{url}-elsewhere"):
        result = CliRunner().invoke(main, ["verify", wrong])
        assert result.exit_code == 2
        assert "no such bucket" in result.stderr or "no objects" in result.stderr


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    monkeypatch.delenv("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", raising=False)
    result = CliRunner().invoke(main, ["verify", "gs://bucket/x"])
    assert result.exit_code == 2
    assert "absent.json was not found" in result.stderr
