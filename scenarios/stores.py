"""An S3 server and a GCS emulator on 127.0.0.1, for scenarios and tests; ended by their ids."""

from __future__ import annotations

import subprocess
import sys
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
SERVER = Path(__file__).with_name("server.py")


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run a server of ``server.py`` and end it, by its id, when the block ends; gives its URL."""
    command = [sys.executable, "-P", "-W", "ignore", str(SERVER), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert port, f"the server ended with {server.wait()}"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's server, with the bucket; gives its URL."""
    with serving("s3") as url:
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url


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
    with serving("gcs", BUCKET) as url:
        yield url


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
