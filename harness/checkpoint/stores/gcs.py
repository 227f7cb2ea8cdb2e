"""A GCS bucket, read with google-cloud-storage; credentials from where that looks for them.

``RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS`` counts here as it does for the streamer
(runai-model-streamer-gcs 0.15, ``credentials/credentials.py``); an emulator is named by
``STORAGE_EMULATOR_HOST`` for this client and by ``CLOUD_STORAGE_EMULATOR_ENDPOINT`` for the
streamer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.checkpoint.stores.object_store import Bucket, StoredObject, listed
from harness.checkpoint.stores.trouble import (
    CLOCK,
    CONNECTIONS,
    LIMITS,
    THROTTLED,
    StoreLimits,
    T,
    Trouble,
    asked,
    of_status,
    unforeseen,
    unreachable,
    words,
)

_SECONDS = (10, 60)  # to connect, to read
_CREDENTIALS = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"
_ENDPOINT = "look at the network, at HTTPS_PROXY and, for an emulator, at STORAGE_EMULATOR_HOST"


class GcsBucket(Bucket):
    """A bucket.

    Args:
        name: of it.
        limits: on requests and listings.

    Raises:
        BadInput: there are no credentials, or a file of them that is none; the emulator's host is
            no URL.
        ModuleNotFoundError: google-cloud-storage is not installed.
    """

    def __init__(self, name: str, limits: StoreLimits = LIMITS) -> None:
        from google.cloud import storage

        self._name, self._limits = name, limits
        self._bucket: Any = self._asked("", lambda: _client(storage.Client).bucket(name))
        self.endpoint = self._bucket.client.api_endpoint

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See :meth:`Bucket.list`."""
        url, most = f"gs://{self._name}/{prefix}", self._limits.most_objects
        return self._asked(f"/{prefix}", lambda: listed(url, prefix, self._objects(prefix), most))

    def _objects(self, prefix: str) -> Iterator[tuple[object, object, object]]:
        blobs = self._bucket.client.list_blobs(
            self._name, prefix=prefix, delimiter="/", timeout=_SECONDS, retry=self._retry()
        )
        for blob in blobs:
            version = blob.generation
            yield blob.name, blob.size, None if version is None else str(version)

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        """See :meth:`Bucket.read`."""
        get: Callable[[], bytes] = self._retry()(lambda: self._range(key, version, start, stop))
        return self._asked(f"/{key}", get, stop - start)

    def _range(self, key: str, version: str, start: int, stop: int) -> bytes:
        """One request, its answer taken in one piece.

        The client's own download takes it by 8 KiB (google-cloud-storage 3.17,
        ``_media/requests``), at a sixth of the rate (docs/stores.md); or whole, without a bound.
        """
        from google.api_core.exceptions import from_http_response

        client, path = self._bucket.client, self._bucket.blob(key).path
        answer = client._http.get(
            f"{client.api_endpoint}/download/storage/v1{path}",
            params={"alt": "media", "ifGenerationMatch": version},
            # What is stored compressed is sent as it is.
            headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "gzip"},
            timeout=_SECONDS,
            stream=True,
        )
        with answer:
            if not answer.ok:
                raise from_http_response(answer)
            # One byte more than was asked for is enough to tell, whatever the store sends.
            content: bytes = answer.raw.read(stop - start + 1, decode_content=False)
        if len(content) > stop - start:
            raise _TooMuch
        return content

    def checksums(self, key: str) -> Mapping[str, str]:
        """``md5Hash``, which composed objects lack, and ``crc32c``."""
        blob: Any = self._asked(
            f"/{key}",
            lambda: self._bucket.get_blob(key, timeout=_SECONDS, retry=self._retry()),
        )
        sums = {"MD5": blob.md5_hash, "CRC32C": blob.crc32c} if blob else {}
        return {name: value for name, value in sums.items() if value}

    def _asked(self, path: str, call: Callable[[], T], nbytes: int = 0) -> T:
        return asked(f"gs://{self._name}{path}", explain, call, nbytes, self._limits)

    def _retry(self) -> Any:
        """The client's own, for so long; a host that is not there is asked once."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        worth: Callable[[Exception], bool] = DEFAULT_RETRY._predicate
        return DEFAULT_RETRY.with_timeout(self._limits.retry_seconds).with_predicate(
            lambda error: worth(error) and not _is_absent(error)
        )


class _TooMuch(Exception):
    """A store sends more than it was asked for."""


def _client(client_of: Callable[..., Any]) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from requests.adapters import HTTPAdapter

    flag = os.environ.get("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", "")
    if flag.lower() in ("1", "true"):
        project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")
        client = client_of(project=project, credentials=AnonymousCredentials())
    else:
        client = client_of()
    if not client._http.is_mtls:  # whose certificates its own connections have
        for scheme in ("https://", "http://"):
            client._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return client


def _is_absent(error: BaseException) -> bool:
    """Whether a connection was refused, or no host has the name."""
    from urllib3.exceptions import LocationValueError, NewConnectionError

    seen: list[object] = [error]
    for one in seen:
        if isinstance(one, NewConnectionError | LocationValueError):
            return True
        if isinstance(one, BaseException) and len(seen) < _DEEPEST:
            seen += [*one.args, getattr(one, "reason", None)]
    return False


_DEEPEST = 50


def explain(error: Exception) -> Trouble:
    """What an error of google-cloud-storage means; of any other, that it is not foreseen."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    if isinstance(error, RetryError) and isinstance(error.cause, Exception):
        return explain(error.cause)
    if isinstance(error, GoogleAPICallError):
        status = error.code if isinstance(error.code, int) else 0
        plain = Trouble(words(error), "a bucket that can be read", _CREDENTIALS)
        return _of_reason(error) or of_status(status, _CREDENTIALS) or plain
    if isinstance(error, TransportError | RequestException | HTTPError):
        return unreachable(error, _ENDPOINT)
    if isinstance(error, GoogleAuthError):
        return _of_credentials(error)
    if isinstance(error, _TooMuch):
        return Trouble(
            "the store sends more than the range that was asked for",
            "a store that answers a request for a range with that range",
            "another endpoint: this one does not speak GCS",
        )
    if isinstance(error, OSError):  # no credentials, no project
        return Trouble(words(error), "credentials of a project", _CREDENTIALS)
    if isinstance(error, ValueError):
        return Trouble(words(error), "a store that speaks GCS, and its URL", _ENDPOINT)
    return unforeseen(error, _CREDENTIALS)


#: By ``reason`` of an error's body (Cloud Storage's JSON API, "HTTP status and error codes").
_OF_REASON: Mapping[str, Trouble] = {
    "rateLimitExceeded": THROTTLED,
    "userRateLimitExceeded": THROTTLED,
    "SlowDown": THROTTLED,
    "RequestTimeTooSkewed": CLOCK,
    "userProjectMissing": Trouble(
        "the bucket's requester pays, and no project is named",
        "a project that pays",
        "GOOGLE_CLOUD_PROJECT, or a copy of the checkpoint in a bucket of yours",
    ),
}


def _of_reason(error: Any) -> Trouble | None:
    for one in error.errors if isinstance(error.errors, list | tuple) else ():
        reason = one.get("reason") if isinstance(one, Mapping) else None
        if isinstance(reason, str) and reason in _OF_REASON:
            return _OF_REASON[reason]
    return None


def _of_credentials(error: Exception) -> Trouble:
    from google.auth.exceptions import InvalidOperation

    said = words(error)
    if isinstance(error, InvalidOperation):  # a 401, and no credentials that could be renewed
        return Trouble(
            f"the credentials are not accepted: {said}", "credentials of this store",
            f"without RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS; {_CREDENTIALS}",
        )  # fmt: skip
    if "reasonable timeframe" in said or "iat and exp" in said:  # of a token signed here
        return CLOCK
    return Trouble(said, "credentials that are complete and valid now", _CREDENTIALS)
