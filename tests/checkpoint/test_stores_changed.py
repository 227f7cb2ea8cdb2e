"""What is written to a store while it is read: another version, or less than was asked for."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import BadInput
from harness.families.model_checkpoint import ModelCheckpoint
from scenarios.stores import BUCKET, gcs_environment, gcs_upload
from tests.support.proxy import Proxy
from tests.support.s3 import FAMILY, FILE, TENSOR, key_of


def changes(head: bytes, client: socket.socket, answer: bytes) -> bool:
    """The object asked for is another version by now; what lists and describes goes through."""
    if head.startswith(b"GET") and FILE.encode() in head.split(b"\r\n")[0]:
        client.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n")
        client.sendall(b"Connection: close\r\n\r\n")
        return True
    return False


def halves(head: bytes, client: socket.socket, answer: bytes) -> bool:
    """The first half of a range, as if that were all that was asked for."""
    if not (head.startswith(b"GET") and FILE.encode() in head.split(b"\r\n")[0]):
        return False
    top, _, body = answer.partition(b"\r\n\r\n")
    body = body[: len(body) // 2]
    top = re.sub(rb"(?i)(content-length): \d+", rb"\1: %d" % len(body), top)
    client.sendall(top + b"\r\n\r\n" + body)
    return True


def test_an_object_of_s3_is_overwritten(s3: Any, stored: str) -> None:
    """The server itself refuses: what is asked for is the version that was listed."""
    checkpoint = ModelCheckpoint(stored)
    s3.put_object(Bucket=BUCKET, Key=key_of(stored, FILE), Body=b"another")
    with pytest.raises(BadInput, match="the object changed while it was read"):
        checkpoint.bits(TENSOR, (3,))


def facts(url: str) -> tuple[str, ...]:
    found = ModelCheckpoint(url).location.identity()
    assert found
    return found.facts


def test_an_object_of_s3_that_was_overwritten_is_another(s3: Any, s3_url: str, stored: str) -> None:
    before = facts(stored)
    assert (before, before[:2]) == (facts(stored), (s3_url, stored))
    content = s3.get_object(Bucket=BUCKET, Key=key_of(stored, FILE))["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key_of(stored, FILE), Body=content[:-1] + b"\x01")
    assert facts(stored) != before


def test_an_object_of_gcs_that_was_overwritten_is_another(
    gcs_url: str, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another generation, though the bytes are the same."""
    for name, value in gcs_environment(gcs_url).items():
        monkeypatch.setenv(name, value)
    url = gcs_upload(gcs_url, tiny_checkpoints[FAMILY], "overwritten")
    before = facts(url)
    assert (before, before[:2]) == (facts(url), (gcs_url, url))
    gcs_upload(gcs_url, tiny_checkpoints[FAMILY], "overwritten")
    assert facts(url) != before


def test_another_version_on_s3(behind: Callable[..., Proxy], stored: str) -> None:
    checkpoint = ModelCheckpoint(stored)
    behind(changes)
    with pytest.raises(BadInput, match="the object changed while it was read"):
        ModelCheckpoint(stored).bits(TENSOR, (3,))
    assert checkpoint.bits(TENSOR, (3,)).size


def test_less_than_was_asked_for(behind: Callable[..., Proxy], stored: str) -> None:
    behind(halves)
    with pytest.raises(BadInput, match=r"the store gave 4 bytes of range 0-8"):
        ModelCheckpoint(stored)


@pytest.fixture
def gcs_behind(gcs_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the emulator, behind a proxy that says of an object that it has changed."""
    proxy = Proxy(gcs_url, changes)
    for name, value in gcs_environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    yield gcs_url
    proxy.close()


def test_another_version_on_gcs(gcs_behind: str, tiny_checkpoints: dict[str, Path]) -> None:
    url = gcs_upload(gcs_behind, tiny_checkpoints[FAMILY], "changed")
    with pytest.raises(BadInput, match="the object changed while it was read") as raised:
        ModelCheckpoint(url)
    assert raised.value.expected == "an object nobody writes to"
