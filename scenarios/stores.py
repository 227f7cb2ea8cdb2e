"""An S3 server and a GCS emulator on 127.0.0.1, for scenarios and tests; ended by their ids."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from botocore.config import Config

KEY_ID, SECRET = "AKIAPLANTED0KEY0ID00", "planted/secret+access/key/of/forty/chars"
BUCKET = "weights"


def free_port() -> int:
    """A port nobody listens on right now."""
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
    """Return when the server takes connections; fail when it ends or takes too long."""
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
    """What boto3 and the streamer need to find the server and nothing else."""
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
    """A client of the server, whatever the environment says."""
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
    """What google-cloud-storage and the streamer need to find the emulator."""
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
    """Store one object."""
    asked = urllib.request.Request(
        f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}",
        data=content,
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()
