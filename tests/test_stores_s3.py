"""Checkpoints in an S3 bucket, through the real stack: equal, spoiled, and what goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint import Checkpoint
from harness.experts import reference_parts
from harness.load import LoadProcess
from harness.report import Status
from harness.target import Target
from harness.verification import verify
from tests.stores import BUCKET, Proxy, s3_client, s3_environment, s3_server, upload


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with s3_server() as url:
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server; the environment points everything else to it, too."""
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return s3_client(s3_url)


def test_the_reference_is_the_same_as_on_disk(
    s3: Any, tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    stored = Checkpoint(upload(s3, tiny_checkpoints[recipe], recipe))
    local = Checkpoint(tiny_checkpoints[recipe])
    assert stored.require_checksums() == len(stored.place.files)
    for there, here in zip(reference_parts(stored), reference_parts(local), strict=True):
        assert list(there) == list(here)
        for key in here:
            assert (there[key] == here[key]).all()
            assert there.source(key) == here.source(key)


@pytest.mark.parametrize("family", ["qwen3-vl-moe", "qwen3.5-moe"])
def test_equal(
    s3: Any,
    tiny_checkpoints: dict[str, Path],
    family: str,
    target: Target,
    load_process: LoadProcess,
) -> None:
    url = upload(s3, tiny_checkpoints[family], f"equal/{family}")
    report = verify(url, target, process=load_process, timeout=300)
    assert (report.status, report.failure) == (Status.EQUAL, None)
    assert (report.checkpoint, report.reference) == (url, url)
    assert report.experts_compared == 16
