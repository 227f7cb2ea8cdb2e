"""An S3 server and a GCS emulator on 127.0.0.1, and a proxy that spoils what they answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from botocore.config import Config

KEY_ID, SECRET = "AKIAPLANTED0KEY0ID00", "planted/secret+access/key/of/forty/chars"
BUCKET = "weights"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(*command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers, and end it, by its id, when the block ends."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as server:
        try:
            wait_for_port(port, server)
            yield server
        finally:
            server.kill()


def wait_for_port(port: int, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no server on port {port} after {seconds} s")


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's server; gives its URL."""
    port = free_port()
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    with serving(*command, port=port):
        yield f"http://127.0.0.1:{port}"


def s3_environment(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "RUNAI_STREAMER_S3_ENDPOINT": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }


def s3_client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def upload(client: Any, directory: Path, prefix: str) -> str:
    """Put the files of a directory under a prefix, each in one part; gives the URL."""
    for file in sorted(directory.iterdir()):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{file.name}", Body=file.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


Spoil = Callable[[bytes, socket.socket, bytes], bool]


class Proxy:
    """Passes connections on to a server; ``spoil`` sees each request first and may answer it.

    One request a connection. ``spoil(head, client, answer)`` is given the request's head, the
    client's socket and the server's whole answer; true says that it has answered by itself.
    """

    def __init__(self, upstream: str, spoil: Spoil) -> None:
        self._upstream = int(upstream.rpartition(":")[2])
        self._spoil = spoil
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                head = self._read_head(client)
                if not head:
                    return
                self.requests.append(head.split(b"\r\n")[0].decode())
                answer = self._ask(head)
                if not self._spoil(head, client, answer):
                    client.sendall(answer)
        except OSError:
            pass

    @staticmethod
    def _read_head(client: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                return b""
            head += byte
        return head

    def _ask(self, head: bytes) -> bytes:
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        asked = b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
        with socket.create_connection(("127.0.0.1", self._upstream), timeout=60) as server:
            server.sendall(asked)
            answer = b""
            while part := server.recv(1 << 16):
                answer += part
        return answer


@contextmanager
def gcs_server() -> Iterator[str]:
    """The GCS emulator, in memory, with the bucket; gives its URL."""
    port = free_port()
    command = (
        sys.executable, "-W", "ignore", "-m", "gcp_storage_emulator", "start", "--in-memory",
        "--host", "127.0.0.1", "--port", str(port), "--default-bucket", BUCKET,
    )  # fmt: skip
    with serving(*command, port=port):
        yield f"http://127.0.0.1:{port}"


def gcs_environment(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "1",
        "GOOGLE_CLOUD_PROJECT": "emulated",
    }


def gcs_upload(url: str, directory: Path, prefix: str) -> str:
    """Put the files of a directory under a prefix; gives the URL."""
    for file in sorted(directory.iterdir()):
        gcs_put(url, f"{prefix}/{file.name}", file.read_bytes())
    return f"gs://{BUCKET}/{prefix}"


def gcs_put(url: str, key: str, content: bytes) -> None:
    asked = urllib.request.Request(
        f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}",
        data=content,
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()
