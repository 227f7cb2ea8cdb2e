"""The servers of a session, for the scenarios and for the tests alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server of this session's own, with a bucket."""
    from .stores import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def gcs_url() -> Iterator[str]:
    """A GCS emulator of this session's own, with a bucket."""
    from .stores import gcs_server

    with gcs_server() as url:
        yield url
