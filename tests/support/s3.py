"""Fixtures of the tests that read S3: a server, a checkpoint in it, a proxy before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scenarios.stores import BUCKET, s3_client, s3_environment, upload
from tests.support.proxy import Proxy, Spoil

FAMILY = "qwen3-vl-moe"
FILE = "model-00002-of-00004.safetensors"
TENSOR = "model.language_model.layers.1.mlp.experts.gate_up_proj"


def key_of(url: str, name: str) -> str:
    return f"{url.removeprefix(f's3://{BUCKET}/')}/{name}"


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server; the environment points everything else to it, too."""
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return s3_client(s3_url)


@pytest.fixture
def stored(s3: Any, tiny_checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> str:
    """The URL of a checkpoint of this test's own."""
    return upload(s3, tiny_checkpoints[FAMILY], request.node.name)


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
