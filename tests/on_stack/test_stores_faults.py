"""What a store does to a load: damage, delays, silence and death; each ends in a clear verdict."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.compare.words import source_words
from harness.explain.causes import Cause
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.verify import verify
from scenarios.stores import (
    BUCKET,
    SECRET,
)
from tests.support.differences import elements
from tests.support.proxy import Proxy
from tests.support.s3 import FAMILY, FILE, TENSOR, key_of


def element(url: str) -> int:
    """Where in its file the last byte pair of expert 7's up_proj lies."""
    entry = ModelCheckpoint(url).entries[TENSOR]
    return entry.offset + entry.nbytes - 2


def cli(scratch: Path, *arguments: str) -> tuple[int, str]:
    """The command as a user runs it, in a process of its own: its exit status and its output."""
    environment = os.environ | {"TMPDIR": str(scratch)}
    command = [sys.executable, "-c", "from harness.app.cli import main; main()", *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    return ran.returncode, ran.stdout + ran.stderr


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
    behind: Callable[..., Proxy], stored: str, target: Target, load_processes: LoadProcesses
) -> None:
    """Reference and stream read the same damage and are equal: only the checksum tells."""
    at = element(stored)

    def damage(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if head.startswith(b"GET") and FILE.encode() in head.split(b"\r\n")[0]:
            answer = flipped(answer, at)
        client.sendall(answer)
        return True

    behind(damage)
    report = verify(stored, target, processes=load_processes, timeout=300)
    assert (report.status, report.files_checked) == (Status.EQUAL, 0)
    with pytest.raises(BadInput, match=r"the object's (MD5|CRC32) is .* damaged after its upload"):
        verify(stored, target, processes=load_processes, checksums=True)


def test_damaged_before_upload(
    s3: Any,
    stored: str,
    tiny_checkpoints: dict[str, Path],
    target: Target,
    load_processes: LoadProcesses,
) -> None:
    """The store's checksum is of the damaged bytes: only another copy of the files tells."""
    at = element(stored)
    content = bytearray(s3.get_object(Bucket=BUCKET, Key=key_of(stored, FILE))["Body"].read())
    content[at] ^= 1
    s3.put_object(Bucket=BUCKET, Key=key_of(stored, FILE), Body=bytes(content))
    report = verify(
        stored,
        target,
        reference=tiny_checkpoints[FAMILY],
        processes=load_processes,
        checksums=True,
        timeout=300,
    )
    assert (report.status, report.files_checked) == (Status.DIFFERENT, 6)
    assert [str(d.key) for d in report.differences] == ["decoder layer 1 expert 7 up_proj"]


def test_damaged_on_the_streamers_way(
    behind: Callable[..., Proxy], stored: str, target: Target, load_processes: LoadProcesses
) -> None:
    """The reference takes another road: it holds what the store holds."""
    at = element(stored)

    def damage(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            answer = flipped(answer, at)
        client.sendall(answer)
        return True

    behind(damage)
    report = verify(stored, target, processes=load_processes, timeout=300)
    (difference,) = report.differences
    assert (str(difference.key), elements(difference).count) == (
        "decoder layer 1 expert 7 up_proj",
        1,
    )
    assert source_words(difference) == f"{FILE} {TENSOR}[7, :, 48:96]"
    assert [d.cause for d in report.diagnoses] == [Cause.BIT_FLIP]


def test_slow_answers(
    behind: Callable[..., Proxy], stored: str, target: Target, load_processes: LoadProcesses
) -> None:
    def delay(head: bytes, client: socket.socket, answer: bytes) -> bool:
        time.sleep(0.2)
        for start in range(0, len(answer), 1 << 17):
            client.sendall(answer[start : start + (1 << 17)])
            time.sleep(0.05)
        return True

    behind(delay)
    report = verify(stored, target, processes=load_processes, timeout=300)
    assert report.status is Status.EQUAL


def processes_of(scratch: Path) -> list[int]:
    """Processes whose command line names the directory, as loading processes' do."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(scratch) in word for word in process.info["cmdline"] or [])
    ]


def test_the_server_dies_in_the_middle(
    behind: Callable[..., Proxy], stored: str, tmp_path: Path
) -> None:
    """It cuts the streamer's answers short and takes no connection after: the load fails."""
    dead = threading.Event()

    def die(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            client.sendall(answer[: len(answer) // 2])
            proxy.close()
            dead.set()
        return dead.is_set()

    proxy = behind(die)
    status, output = cli(tmp_path, "verify", stored, "--timeout", "120")
    assert (status, dead.is_set()) == (3, True), output
    assert "the load under test failed" in output
    assert SECRET not in output
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("harness-load-*")) == []


def test_a_server_that_never_answers_the_streamer(
    behind: Callable[..., Proxy], stored: str, target: Target, load_processes: LoadProcesses
) -> None:
    over = threading.Event()

    def hang(head: bytes, client: socket.socket, answer: bytes) -> bool:
        if from_streamer(head) and FILE.encode() in head.split(b"\r\n")[0]:
            over.wait(120)
            return True
        return False

    behind(hang)
    load_processes.of(target).run("tests.support.idle_jobs:pid", b"", target, timeout=120)
    report = verify(stored, target, processes=load_processes, timeout=25)
    over.set()
    assert (report.status, report.exit_code) == (Status.LOAD_FAILED, 3)
    assert report.failure is not None
    assert "the load did not end within 25 s" in report.failure.error
    assert SECRET not in report.to_json().decode()
