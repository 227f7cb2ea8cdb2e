"""An S3 bucket, read with boto3; credentials and endpoint from where boto3 looks for them.

``RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING`` and ``RUNAI_STREAMER_S3_UNSIGNED`` count here as they
do for the streamer's own boto3 client (runai-model-streamer-s3 0.15, ``files/files.py``).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from typing import Any

from harness import secrets
from harness.errors import BadInput
from harness.places.store import Bucket, StoredObject

_MD5_ETAG = re.compile(r"[0-9a-f]{32}")  # of an upload in parts: "…-N", no digest of the whole
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 10, 60, 3


class S3Bucket(Bucket):
    """A bucket.

    Raises:
        BadInput: there are no credentials.
    """

    def __init__(self, name: str) -> None:
        import boto3

        session = boto3.session.Session()
        found = session.get_credentials()
        if found:
            frozen = found.get_frozen_credentials()
            secrets.remember("AWS_ACCESS_KEY_ID", frozen.access_key)
            secrets.remember("AWS_SECRET_ACCESS_KEY", frozen.secret_key)
            secrets.remember("AWS_SESSION_TOKEN", frozen.token)
        self._name = name
        self._client: Any = session.client("s3", config=_config())

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See :meth:`Bucket.list`."""
        with _as_bad_input(f"s3://{self._name}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=prefix, Delimiter="/"
            )
            return {
                found["Key"].removeprefix(prefix): StoredObject(found["Size"], found["ETag"])
                for page in pages
                for found in page.get("Contents", [])
                if not found["Key"].endswith("/")
            }

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        """See :meth:`Bucket.read`."""
        with _as_bad_input(f"s3://{self._name}/{key}"):
            answer = self._client.get_object(
                Bucket=self._name, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=version
            )
            content: bytes = answer["Body"].read()
            return content

    def checksums(self, key: str) -> Mapping[str, str]:
        """The MD5 that an ETag is for an upload in one part, and the ``x-amz-checksum-*``."""
        with _as_bad_input(f"s3://{self._name}/{key}"):
            head = self._client.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED")
        sums = {
            name.removeprefix("Checksum"): value
            for name, value in head.items()
            if name.startswith("Checksum") and name != "ChecksumType" and "-" not in value
        }
        if head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            sums = {}
        etag = head["ETag"].strip('"')
        if _MD5_ETAG.fullmatch(etag) and "kms" not in head.get("ServerSideEncryption", ""):
            sums["MD5"] = base64.b64encode(bytes.fromhex(etag)).decode()
        return sums


def _config() -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    path = os.environ.get("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "1") == "0"
    unsigned = os.environ.get("RUNAI_STREAMER_S3_UNSIGNED", "0") == "1"
    return Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        response_checksum_validation="when_required",
        **({"s3": {"addressing_style": "path"}} if path else {}),
        **({"signature_version": UNSIGNED} if unsigned else {}),
    )


_MEANING = {
    "NoSuchBucket": ("no such bucket", "the name of a bucket that exists"),
    "NoSuchKey": ("no such object", "an object that exists"),
    "404": ("no such object", "an object that exists"),
    "412": ("the object changed while it was read", "an object nobody writes to"),
    "PreconditionFailed": ("the object changed while it was read", "an object nobody writes to"),
    "AccessDenied": ("access denied", "credentials that may list and read"),
    "403": ("access denied", "credentials that may list and read"),
    "InvalidAccessKeyId": ("the access key is unknown", "credentials of this store"),
    "SignatureDoesNotMatch": ("the secret key is wrong", "credentials of this store"),
    "ExpiredToken": ("the session token has expired", "credentials that are valid now"),
    "InvalidToken": ("the session token is wrong", "credentials of this store"),
}


class _as_bad_input:  # noqa: N801 - used like a function
    """Turn botocore's errors into :class:`BadInput`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            what, expected = _MEANING.get(code, (str(error), "a bucket that can be read"))
            raise self._refusal(what, expected) from error
        if isinstance(error, BotoCoreError | HTTPClientError):
            what = str(error).replace(" when calling the ListObjectsV2 operation", "")
            raise self._refusal(what, "a store that answers and credentials for it") from error

    def _refusal(self, what: str, expected: str) -> BadInput:
        hint = "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for "
        return BadInput(what, where=self._url, expected=expected, hint=f"{hint}other stores")
