"""Finds the place that a user's words mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.stores.directory import Directory
from harness.checkpoint.stores.gcs import GcsBucket
from harness.checkpoint.stores.hub import HUB_ID, hub_snapshot
from harness.checkpoint.stores.location import Location
from harness.checkpoint.stores.object_store import Bucket, Store
from harness.checkpoint.stores.s3 import S3Bucket

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.S)
#: No bucket's name has a colon, an at-sign or a percent sign (S3 and GCS, "Bucket naming rules").
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: In a prefix: a user and a password, pasted behind the bucket. They would stand in every report.
_USERINFO = re.compile(r"[^/]*(:|%3A)[^/]*(@|%40)", re.I)
#: By scheme, what makes the client of a bucket.
BUCKETS: dict[str, Callable[[str], Bucket]] = {"s3": S3Bucket, "gs": GcsBucket}

#: Variables by which the stores, the hub and the streamer find their way: a load has them as
#: they are when it starts, not as they were when its process was made.
_PREFIXES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "RUNAI_STREAMER_", "CLOUD_STORAGE_", "HF_", "STORAGE_")


def open_location(checkpoint: str | os.PathLike[str]) -> Location:
    """The place of a checkpoint: a directory if there is one, a URL, or a hub id.

    Args:
        checkpoint: a path, ``s3://bucket/prefix``, ``gs://bucket/prefix``, or
            ``org/name[@revision]``.

    Raises:
        BadInput: it is none of them, or not to be had.
    """
    text = os.fspath(checkpoint)
    if not text or not isinstance(text, str) or "\0" in text or not _is_utf8(text):
        raise BadInput(
            "neither a path nor a URL",
            where=shown(text),
            expected="text in UTF-8: a directory, s3://…, gs://… or a hub id",
            hint="./ for the directory you are in",
        )
    if url := _URL.fullmatch(text):
        return _store(text, url["scheme"], url["rest"])
    if HUB_ID.fullmatch(text) and not os.path.lexists(text):
        return hub_snapshot(text)
    return Directory(Path(text))


def _is_utf8(text: str) -> bool:
    """Whether a report in JSON, and a request, can name it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_store(model: str) -> bool:
    """Whether a model's path is the URL of an object store."""
    return _URL.fullmatch(model) is not None


def store_environment() -> dict[str, str]:
    """The variables of stores, hub and streamer, as they are now. They hold secrets."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


def _shown(scheme: str, rest: str) -> str:
    """A URL without what may be a credential: its query, and all before an at-sign or colon."""
    path = re.split(r"[?#]", rest)[0]
    if re.search(r"[@:%]", path):
        path = "…"
    return f"{scheme}://{path}" + ("?…" if "?" in rest else "")


def _store(text: str, scheme: str, rest: str) -> Store:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    named = scheme in BUCKETS and _BUCKET.fullmatch(bucket)
    if not named or "?" in rest or _USERINFO.search(prefix):
        raise BadInput(
            "not the URL of a store",
            where=_shown(scheme, rest),
            expected="s3://bucket/prefix or gs://bucket/prefix",
            hint="put credentials in the environment, never in the URL",
        )
    path = f"{bucket}/{prefix}".rstrip("/")
    try:
        client = BUCKETS[scheme](bucket)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{scheme}:// needs {error.name}, which is not installed",
            where=text,
            expected="boto3 for s3://, google-cloud-storage for gs://",
            hint="pip install boto3 google-cloud-storage",
        ) from error
    return Store(f"{scheme}://{path}", client, f"{prefix}/" if prefix else "")
