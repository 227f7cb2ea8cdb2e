"""Fixtures of the scenarios: the object stores some of them lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from scenarios.scenario import Store

Stored = Callable[[Store, str | Path], str | Path]


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server of this session's own, with a bucket."""
    from scenarios.stores import BUCKET, s3_client, s3_server

    with s3_server() as url:
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url


@pytest.fixture(scope="session")
def gcs_url() -> Iterator[str]:
    """A GCS emulator of this session's own, with a bucket."""
    from scenarios.stores import gcs_server

    with gcs_server() as url:
        yield url


@pytest.fixture
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """Put a checkpoint into a store and point the environment there; gives its URL."""

    def put(store: Store, path: str | Path) -> str | Path:
        if store is Store.NONE:
            return path
        if find_spec(store.server) is None:
            pytest.skip(f"no {store.server} here, which serves {store}:// for the scenarios")
        from scenarios import stores

        url = request.getfixturevalue(f"{'s3' if store is Store.S3 else 'gcs'}_url")
        s3 = store is Store.S3
        environment = stores.s3_environment(url) if s3 else stores.gcs_environment(url)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        prefix = Path(path).name
        if s3:
            return stores.upload(stores.s3_client(url), Path(path), prefix)
        return stores.gcs_upload(url, Path(path), prefix)

    return put
