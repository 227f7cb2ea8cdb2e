"""Checkpoints in an S3 bucket, through the real stack: equal, spoiled, and what goes wrong."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.verify import verify
from scenarios.stores import (
    BUCKET,
    KEY_ID,
    SECRET,
    upload,
)
from tests.support.s3 import FILE, key_of


def test_the_reference_is_the_same_as_on_disk(
    s3: Any, tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    stored = ModelCheckpoint(upload(s3, tiny_checkpoints[recipe], recipe))
    local = ModelCheckpoint(tiny_checkpoints[recipe])
    assert stored.require_checksums() == len(stored.location.files)
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
    load_processes: LoadProcesses,
) -> None:
    url = upload(s3, tiny_checkpoints[family], f"equal/{family}")
    report = verify(url, target, processes=load_processes, timeout=300)
    assert (report.status, report.failure) == (Status.EQUAL, None)
    assert (report.checkpoint, report.reference) == (url, url)
    assert report.experts_compared == 16


def no_bucket(s3: Any, url: str) -> str:
    return url.replace(BUCKET, "no-such-bucket")


def no_prefix(s3: Any, url: str) -> str:
    return f"{url}-elsewhere"


def object_absent(s3: Any, url: str) -> str:
    s3.delete_object(Bucket=BUCKET, Key=key_of(url, FILE))
    return url


def object_truncated(s3: Any, url: str) -> str:
    content = s3.get_object(Bucket=BUCKET, Key=key_of(url, FILE))["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key_of(url, FILE), Body=content[:-1000])
    return url


def object_empty(s3: Any, url: str) -> str:
    s3.put_object(Bucket=BUCKET, Key=key_of(url, FILE), Body=b"")
    return url


def consolidated_beside(s3: Any, url: str) -> str:
    """The last tensor of the copy is another one."""
    content = s3.get_object(Bucket=BUCKET, Key=key_of(url, FILE))["Body"].read()
    copy = content[:-1] + bytes([content[-1] ^ 1])
    s3.put_object(Bucket=BUCKET, Key=key_of(url, "consolidated.safetensors"), Body=copy)
    return url


def another_scheme(s3: Any, url: str) -> str:
    return url.replace("s3://", "az://")


def credentials_in_the_url(s3: Any, url: str) -> str:
    return f"s3://{KEY_ID}:{SECRET.replace('/', '%2F')}@{BUCKET}/x"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (no_bucket, "no such bucket"),
        (no_prefix, "no objects under this prefix"),
        (object_absent, f"absent file: '{FILE}'"),
        (object_truncated, "the file is truncated"),
        (object_empty, "the file has 0"),
        (consolidated_beside, "with other bytes than in"),
        (another_scheme, "not the URL of a store"),
        (credentials_in_the_url, "not the URL of a store"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_input(s3: Any, stored: str, spoil: Callable[[Any, str], str], match: str) -> None:
    url = spoil(s3, stored)
    result = CliRunner().invoke(main, ["verify", url])
    assert (result.exit_code, match in result.stderr) == (2, True), result.stderr
    assert KEY_ID not in result.stderr
    assert SECRET not in result.stderr


def test_no_credentials(s3: Any, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    result = CliRunner().invoke(main, ["verify", stored])
    assert result.exit_code == 2
    assert "Unable to locate credentials" in result.stderr


def test_no_server(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:  # bound, so that nobody else listens there
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        result = CliRunner().invoke(main, ["verify", "s3://weights/x"])
    assert result.exit_code == 2
    assert "Could not connect" in result.stderr


def test_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    result = CliRunner().invoke(main, ["verify", "s3://weights/x"])
    assert result.exit_code == 2
    assert "needs boto3, which is not installed" in result.stderr
