"""Checkpoints in an S3 bucket, through the real stack: equal, spoiled, and what goes wrong."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.checkpoint import Checkpoint
from harness.cli import main
from harness.diagnosis import Cause
from harness.errors import BadInput
from harness.experts import reference_parts
from harness.load import LoadProcess
from harness.report import Status
from harness.target import Target
from harness.verification import verify
from scenarios.stores import (
    BUCKET,
    KEY_ID,
    SECRET,
    free_port,
    s3_client,
    s3_environment,
    s3_server,
    upload,
)
from tests.proxy import Proxy, Spoil


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


FAMILY = "qwen3-vl-moe"
FILE = "model-00002-of-00004.safetensors"
TENSOR = "model.language_model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture
def stored(s3: Any, tiny_checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> str:
    """The URL of a checkpoint of this test's own."""
    return upload(s3, tiny_checkpoints[FAMILY], request.node.name)


def element(url: str) -> int:
    """Where in its file the last byte pair of expert 7's up_proj lies."""
    entry = Checkpoint(url).entries[TENSOR]
    return entry.offset + entry.nbytes - 2


def cli(*arguments: str) -> tuple[int, str]:
    """The command as a user runs it, in a process of its own: its exit status and its output."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def no_bucket(s3: Any, url: str) -> str:
    return url.replace(BUCKET, "no-such-bucket")


def no_prefix(s3: Any, url: str) -> str:
    return f"{url}-elsewhere"


def object_absent(s3: Any, url: str) -> str:
    s3.delete_object(Bucket=BUCKET, Key=key(url, FILE))
    return url


def object_truncated(s3: Any, url: str) -> str:
    content = s3.get_object(Bucket=BUCKET, Key=key(url, FILE))["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key(url, FILE), Body=content[:-1000])
    return url


def object_empty(s3: Any, url: str) -> str:
    s3.put_object(Bucket=BUCKET, Key=key(url, FILE), Body=b"")
    return url


def consolidated_beside(s3: Any, url: str) -> str:
    source = {"Bucket": BUCKET, "Key": key(url, FILE)}
    s3.copy_object(Bucket=BUCKET, Key=key(url, "consolidated.safetensors"), CopySource=source)
    return url


def another_scheme(s3: Any, url: str) -> str:
    return url.replace("s3://", "az://")


def credentials_in_the_url(s3: Any, url: str) -> str:
    return f"s3://{KEY_ID}:{SECRET.replace('/', '%2F')}@{BUCKET}/x"


def key(url: str, name: str) -> str:
    return f"{url.removeprefix(f's3://{BUCKET}/')}/{name}"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (no_bucket, "no such bucket"),
        (no_prefix, "no objects under this prefix"),
        (object_absent, f"absent file: '{FILE}'"),
        (object_truncated, "the file is truncated"),
        (object_empty, "the file has 0"),
        (consolidated_beside, "the index does not name: 'consolidated.safetensors'"),
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


@pytest.fixture
def behind(s3_url: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Put a proxy between everything and the server."""
    proxies = []

    def put(spoil: Spoil) -> Proxy:
        proxies.append(Proxy(s3_url, spoil))
        for name in ("AWS_ENDPOINT_URL", "RUNAI_STREAMER_S3_ENDPOINT"):
            monkeypatch.setenv(name, proxies[-1].url)
        return proxies[-1]

    yield put
    for proxy in proxies:
        proxy.close()


def from_streamer(head: bytes) -> bool:
    """Whether the streamer's C++ client asks, not boto3."""
    return b"boto3" not in head.lower()


def test_wrong_credentials(behind: Callable[..., Proxy], stored: str) -> None:
    body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"

    def refuse(head: bytes, client: socket.socket, answer: bytes) -> bool:
        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n" % len(body))
        client.sendall(b"Connection: close\r\nContent-Type: application/xml\r\n\r\n" + body)
        return True

    behind(refuse)
    result = CliRunner().invoke(main, ["verify", stored])
    assert result.exit_code == 2
    assert "the secret key is wrong" in result.stderr


def test_no_credentials(s3: Any, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    result = CliRunner().invoke(main, ["verify", stored])
    assert result.exit_code == 2
    assert "Unable to locate credentials" in result.stderr


def test_no_server(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    result = CliRunner().invoke(main, ["verify", "s3://weights/x"])
    assert result.exit_code == 2
    assert "Could not connect" in result.stderr


def flipped(answer: bytes, at: int) -> bytes:
    """An answer with the lowest bit of the object's byte ``at`` flipped, if it holds it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-range: bytes (\d+)-(\d+)/", head, re.I)
    first, last = map(int, found.groups()) if found else (0, len(body) - 1)
    if not first <= at <= last:
        return answer
    body = body[: at - first] + bytes([body[at - first] ^ 1]) + body[at - first + 1 :]
    return head + b"\r\n\r\n" + body


def test_damaged_after_upload(
    behind: Callable[..., Proxy], stored: str, target: Target, load_process: LoadProcess
) -> None:
    """Reference and stream read the same damage and are equal: only the checksum tells."""
    at = element(stored)

    def damage(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if head.startswith(b"GET") and FILE.encode() in head.split(b"\r\n")[0]:
            answer = flipped(answer, at)
        client.sendall(answer)
        return True

    behind(damage)
    report = verify(stored, target, process=load_process, timeout=300)
    assert (report.status, report.files_checked) == (Status.EQUAL, 0)
    with pytest.raises(BadInput, match=r"the object's (MD5|CRC32) is .* damaged after its upload"):
        verify(stored, target, process=load_process, checksums=True)


def test_damaged_before_upload(
    s3: Any,
    stored: str,
    tiny_checkpoints: dict[str, Path],
    target: Target,
    load_process: LoadProcess,
) -> None:
    """The store's checksum is of the damaged bytes: only another copy of the files tells."""
    at = element(stored)
    content = bytearray(s3.get_object(Bucket=BUCKET, Key=key(stored, FILE))["Body"].read())
    content[at] ^= 1
    s3.put_object(Bucket=BUCKET, Key=key(stored, FILE), Body=bytes(content))
    report = verify(
        stored,
        target,
        reference=tiny_checkpoints[FAMILY],
        process=load_process,
        checksums=True,
        timeout=300,
    )
    assert (report.status, report.files_checked) == (Status.DIFFERENT, 6)
    assert [str(d.key) for d in report.differences] == ["decoder layer 1 expert 7 up_proj"]


def test_damaged_on_the_streamers_way(
    behind: Callable[..., Proxy], stored: str, target: Target, load_process: LoadProcess
) -> None:
    """The reference takes another road: it holds what the store holds."""
    at = element(stored)

    def damage(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            answer = flipped(answer, at)
        client.sendall(answer)
        return True

    behind(damage)
    report = verify(stored, target, process=load_process, timeout=300)
    (difference,) = report.differences
    assert (str(difference.key), difference.count) == ("decoder layer 1 expert 7 up_proj", 1)
    assert difference.source == f"{FILE} {TENSOR}[7, :, 48:96]"
    assert [d.cause for d in report.diagnoses] == [Cause.BIT_FLIP]


def test_slow_answers(
    behind: Callable[..., Proxy], stored: str, target: Target, load_process: LoadProcess
) -> None:
    def delay(head: bytes, client: socket.socket, answer: bytes) -> bool:
        time.sleep(0.2)
        for start in range(0, len(answer), 1 << 17):
            client.sendall(answer[start : start + (1 << 17)])
            time.sleep(0.05)
        return True

    behind(delay)
    report = verify(stored, target, process=load_process, timeout=300)
    assert report.status is Status.EQUAL


def test_the_server_dies_in_the_middle(behind: Callable[..., Proxy], stored: str) -> None:
    """It cuts the streamer's answers short and takes no connection after: the load fails."""
    dead = threading.Event()

    def die(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            client.sendall(answer[: len(answer) // 2])
            proxy.close()
            dead.set()
        return dead.is_set()

    proxy = behind(die)
    started = time.monotonic()
    status, output = cli("verify", stored, "--timeout", "120")
    assert (status, dead.is_set()) == (3, True), output
    assert time.monotonic() - started < 200
    assert "the load under test failed" in output
    assert SECRET not in output


def test_a_server_that_never_answers_the_streamer(
    behind: Callable[..., Proxy], stored: str, target: Target, load_process: LoadProcess
) -> None:
    over = threading.Event()

    def hang(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            over.wait(120)
            return True
        return False

    behind(hang)
    load_process.run("tests.jobs:pid", b"", timeout=120)
    started = time.monotonic()
    report = verify(stored, target, process=load_process, timeout=25)
    over.set()
    assert time.monotonic() - started < 60
    assert (report.status, report.exit_code) == (Status.LOAD_FAILED, 3)
    assert report.failure is not None
    assert "the load did not end within 25 s" in report.failure.error
    assert SECRET not in report.to_json().decode()
