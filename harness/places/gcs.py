"""A GCS bucket, read with google-cloud-storage; credentials from where that looks for them.

``RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS`` counts here as it does for the streamer
(runai-model-streamer-gcs 0.15, ``credentials/credentials.py``); an emulator is named by
``STORAGE_EMULATOR_HOST`` for this client and by ``CLOUD_STORAGE_EMULATOR_ENDPOINT`` for the
streamer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from harness.errors import BadInput
from harness.places.store import Bucket, StoredObject

_SECONDS = (10, 60)  # to connect, to read
_DEADLINE = 120.0


class GcsBucket(Bucket):
    """A bucket.

    Raises:
        BadInput: there are no credentials.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        with _as_bad_input(f"gs://{name}"):
            self._bucket: Any = _client().bucket(name)

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See :meth:`Bucket.list`."""
        with _as_bad_input(f"gs://{self._name}/{prefix}"):
            blobs = self._bucket.client.list_blobs(
                self._name, prefix=prefix, delimiter="/", timeout=_SECONDS, retry=_retry()
            )
            return {
                blob.name.removeprefix(prefix): StoredObject(blob.size, str(blob.generation))
                for blob in blobs
                if not blob.name.endswith("/")
            }

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        """See :meth:`Bucket.read`."""
        with _as_bad_input(f"gs://{self._name}/{key}"):
            content: bytes = self._bucket.blob(key).download_as_bytes(
                start=start,
                end=stop - 1,
                raw_download=True,
                checksum=None,  # of a range there is none
                if_generation_match=int(version) if version.isdigit() else None,
                timeout=_SECONDS,
                retry=_retry(),
            )
            return content

    def checksums(self, key: str) -> Mapping[str, str]:
        """``md5Hash``, which composed objects lack, and ``crc32c``."""
        with _as_bad_input(f"gs://{self._name}/{key}"):
            blob = self._bucket.get_blob(key, timeout=_SECONDS, retry=_retry())
        sums = {"MD5": blob.md5_hash, "CRC32C": blob.crc32c} if blob else {}
        return {name: value for name, value in sums.items() if value}


def _client() -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    flag = os.environ.get("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", "")
    if flag.lower() in ("1", "true"):
        project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")
        return storage.Client(project=project, credentials=AnonymousCredentials())
    return storage.Client()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_DEADLINE)


_MEANING = {
    401: ("the credentials are not accepted", "credentials of this store"),
    403: ("access denied", "credentials that may list and read"),
    404: ("no such bucket or object", "a bucket and objects that exist"),
    412: ("the object changed while it was read", "an object nobody writes to"),
}


class _as_bad_input:  # noqa: N801 - used like a function
    """Turn the client's errors into :class:`BadInput`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError
        from requests.exceptions import RequestException

        if isinstance(error, GoogleAPICallError):
            what = (str(error), "a bucket that can be read")
            raise self._refusal(*_MEANING.get(error.code or 0, what)) from error
        if isinstance(error, GoogleAuthError | RetryError | RequestException):
            raise self._refusal(str(error), "a store that answers and credentials") from error
        if isinstance(error, OSError):  # no credentials, no project
            raise self._refusal(str(error), "credentials of a project") from error

    def _refusal(self, what: str, expected: str) -> BadInput:
        return BadInput(
            what.split("\n")[0],
            where=self._url,
            expected=expected,
            hint="gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
        )
