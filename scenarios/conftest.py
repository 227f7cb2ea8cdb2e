"""Fixtures of the scenarios: the object stores some of them lie in."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from scenarios.scenario import Store

pytest_plugins = ["scenarios.urls"]

Stored = Callable[[Store, str | Path], str | Path]


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
