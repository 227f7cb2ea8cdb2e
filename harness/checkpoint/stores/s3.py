"""An S3 bucket, read with boto3; credentials and endpoint from where boto3 looks for them.

``RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING`` and ``RUNAI_STREAMER_S3_UNSIGNED`` count here as they
do for the streamer's own boto3 client (runai-model-streamer-s3 0.15, ``files/files.py``).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.base import secrets
from harness.base.errors import BadInput
from harness.checkpoint.stores.object_store import Bucket, StoredObject, listed
from harness.checkpoint.stores.trouble import (
    CHANGED,
    CLOCK,
    CONNECTIONS,
    FAILING,
    LIMITS,
    NOT_THERE,
    REDIRECTED,
    THROTTLED,
    StoreLimits,
    T,
    Trouble,
    asked,
    of_status,
    unforeseen,
    words,
)

_MD5_ETAG = re.compile(r"[0-9a-f]{32}")  # of an upload in parts: "…-N", no digest of the whole
_CONNECT_SECONDS, _READ_SECONDS = 10, 60


class S3Bucket(Bucket):
    """A bucket.

    Args:
        name: of it.
        limits: on requests and listings.

    Raises:
        BadInput: there are no credentials, half a pair, or none of the profile; the endpoint is
            no URL.
        ModuleNotFoundError: boto3 is not installed.
    """

    def __init__(self, name: str, limits: StoreLimits = LIMITS) -> None:
        import boto3

        self._name, self._limits = name, limits
        self._client: Any = self._asked("", lambda: _client(boto3.session.Session, limits))
        self.endpoint = self._client.meta.endpoint_url

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See :meth:`Bucket.list`."""
        url, most = f"s3://{self._name}/{prefix}", self._limits.most_objects
        return self._asked(
            f"/{prefix}", lambda: listed(url, prefix, self._objects(url, prefix), most)
        )

    def _objects(self, url: str, prefix: str) -> Iterator[tuple[object, object, object]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._name, Prefix=prefix, Delimiter="/"
        )
        for page in pages:
            if not any(name in page for name in _LISTS):
                raise BadInput(_NOT_S3.what, where=url, expected=_NOT_S3.expected, hint=_ENDPOINT)
            for found in page.get("Contents", []):
                yield found.get("Key"), found.get("Size"), found.get("ETag")

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        """See :meth:`Bucket.read`."""

        def get() -> bytes:
            answer = self._client.get_object(
                Bucket=self._name, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=version
            )
            # One byte more than was asked for is enough to tell, whatever the store sends.
            content: bytes = answer["Body"].read(stop - start + 1)
            return content

        return self._asked(f"/{key}", get, stop - start)

    def checksums(self, key: str) -> Mapping[str, str]:
        """The MD5 that an ETag is for an upload in one part, and the ``x-amz-checksum-*``."""
        head = self._asked(
            f"/{key}",
            lambda: self._client.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED"),
        )
        sums = {
            name.removeprefix("Checksum"): value
            for name, value in head.items()
            if name.startswith("Checksum") and name != "ChecksumType" and "-" not in value
        }
        if head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            sums = {}
        etag = head.get("ETag", "").strip('"')
        if _MD5_ETAG.fullmatch(etag) and "kms" not in head.get("ServerSideEncryption", ""):
            sums["MD5"] = base64.b64encode(bytes.fromhex(etag)).decode()
        return sums

    def _asked(self, path: str, call: Callable[[], T], nbytes: int = 0) -> T:
        return asked(f"s3://{self._name}{path}", explain, call, nbytes, self._limits)


def _client(session_of: Callable[[], Any], limits: StoreLimits) -> Any:
    """A client; what it signs with is remembered as a secret."""
    session = session_of()
    if found := session.get_credentials():
        frozen = found.get_frozen_credentials()
        secrets.remember("AWS_ACCESS_KEY_ID", frozen.access_key)
        secrets.remember("AWS_SECRET_ACCESS_KEY", frozen.secret_key)
        secrets.remember("AWS_SESSION_TOKEN", frozen.token)
    return session.client("s3", config=_config(limits))


def _config(limits: StoreLimits) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    path = os.environ.get("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "1") == "0"
    unsigned = os.environ.get("RUNAI_STREAMER_S3_UNSIGNED", "0") == "1"
    return Config(
        max_pool_connections=CONNECTIONS,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"total_max_attempts": limits.attempts, "mode": "standard"},
        response_checksum_validation="when_required",
        **({"s3": {"addressing_style": "path"}} if path else {}),
        **({"signature_version": UNSIGNED} if unsigned else {}),
    )


_CREDENTIALS = (
    "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for other stores"
)
_REGION = "AWS_REGION, or region of the profile, set to the bucket's own region"
_ENDPOINT = (
    "AWS_ENDPOINT_URL=http://host:port, or https://; without it AWS_REGION decides on the host"
)
_NOT_S3 = Trouble("what answers does not speak S3", "the endpoint of an S3 store", _ENDPOINT)
_NO_BUCKET = Trouble(
    "no such bucket",
    "the name of a bucket that exists",
    f"look at the name; {_ENDPOINT}",
)
_NO_OBJECT = NOT_THERE._replace(what="no such object", expected="an object that exists")
_DENIED = Trouble("access denied", "credentials that may list and read", _CREDENTIALS)
_SIGN_IN = "renew them: aws sso login, or new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
_EXPIRED = Trouble(
    "the session token has expired",
    "credentials that are valid now",
    f"{_SIGN_IN}AWS_SESSION_TOKEN",
)
_WRONG_REGION = Trouble(
    "the request was signed for another region than the bucket's", "the bucket's region", _REGION
)

#: By S3's error code (its API reference, "List of error codes") or, of an answer without a body,
#: the HTTP status that botocore puts in its place.
_OF_CODE: Mapping[str, Trouble] = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NO_BUCKET._replace(what="no bucket can have this name"),
    "NoSuchKey": _NO_OBJECT,
    "404": _NO_OBJECT,
    "412": CHANGED,
    "416": CHANGED,
    "PreconditionFailed": CHANGED,
    "InvalidRange": CHANGED,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    "InvalidAccessKeyId": Trouble(
        "the access key is unknown", "credentials of this store", _CREDENTIALS
    ),
    "SignatureDoesNotMatch": Trouble(
        "the secret key is wrong", "credentials of this store", _CREDENTIALS
    ),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": Trouble(
        "the session token is wrong", "credentials of this store", f"{_SIGN_IN}AWS_SESSION_TOKEN"
    ),
    "RequestTimeTooSkewed": CLOCK,
    "RequestExpired": CLOCK,
    "RequestInTheFuture": CLOCK,
    "PermanentRedirect": REDIRECTED,
    "TemporaryRedirect": REDIRECTED,
    "Redirect": REDIRECTED,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "AuthorizationQueryParametersError": _WRONG_REGION,
    "IllegalLocationConstraintException": _WRONG_REGION,
    "InvalidObjectState": Trouble(
        "the object is archived",
        "an object that can be read at once",
        "restore it from its archive: aws s3api restore-object",
    ),
    "SlowDown": THROTTLED,
    "Throttling": THROTTLED,
    "ThrottlingException": THROTTLED,
    "ThrottledException": THROTTLED,
    "RequestThrottled": THROTTLED,
    "RequestThrottledException": THROTTLED,
    "RequestLimitExceeded": THROTTLED,
    "BandwidthLimitExceeded": THROTTLED,
    "LimitExceededException": THROTTLED,
    "TooManyRequests": THROTTLED,
    "TooManyRequestsException": THROTTLED,
    "ServiceUnavailable": THROTTLED,
    "Busy": THROTTLED,
    "RequestTimeout": THROTTLED,
    "InternalError": FAILING,
    "NotImplemented": _NOT_S3,
    "MethodNotAllowed": _NOT_S3,
}
_LISTS = ("Name", "Contents", "CommonPrefixes", "IsTruncated", "KeyCount", "MaxKeys")


def explain(error: Exception) -> Trouble:
    """What an error of boto3's means; of whatever else its calls raise, that it is not foreseen."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return _of_answer(error)
    if trouble := _of_client(error):
        return trouble
    if isinstance(error, RecursionError):  # each redirection leads to the next
        return REDIRECTED._replace(hint=_to_region({}, {}))
    return unforeseen(error, _CREDENTIALS)


def _of_answer(error: Any) -> Trouble:
    """What the store itself says."""
    answer = error.response if isinstance(error.response, Mapping) else {}
    said, head = answer.get("Error") or {}, answer.get("ResponseMetadata") or {}
    code, status = str(said.get("Code", "")), head.get("HTTPStatusCode")
    if code not in _OF_CODE and re.fullmatch(r"[1-5]\d\d", code):
        status = int(code)
    if status == 404 and not code.startswith("NoSuch") and error.operation_name == "ListObjectsV2":
        return _NOT_S3  # a store that knows no such bucket says so
    if code.startswith("KMS"):
        return Trouble(
            f"the object's key cannot be used: {words(error)}",
            "credentials that may decrypt it", "kms:Decrypt on the bucket's key",
        )  # fmt: skip
    trouble = _OF_CODE.get(code) or of_status(
        status if isinstance(status, int) else 0, _CREDENTIALS
    )
    if trouble is None:
        return Trouble(words(error), "a bucket that can be read", _CREDENTIALS)
    if trouble is FAILING and code != "InternalError":  # boto3 takes for that what is no XML, too
        return FAILING._replace(
            what=f"{FAILING.what}, or does not speak S3", hint=f"{FAILING.hint}; {_ENDPOINT}"
        )
    if trouble in (REDIRECTED, _WRONG_REGION):
        return trouble._replace(hint=_to_region(said, head))
    return trouble


def _to_region(said: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    """Where the bucket is, as far as the answer says."""
    headers = head.get("HTTPHeaders") or {}
    region = str(said.get("Region") or headers.get("x-amz-bucket-region") or "")
    region = region if re.fullmatch(r"[a-z0-9-]{2,40}", region) else ""
    return f"AWS_REGION={region}" if region else f"{_REGION}; {_ENDPOINT}"


def _of_client(error: Exception) -> Trouble | None:
    """What stopped the client before, or instead of, an answer."""
    import botocore.exceptions as raised
    from botocore.parsers import ResponseParserError

    said = words(error)
    rows: tuple[tuple[Any, str, str], ...] = (
        (raised.ProfileNotFound, "a profile that the AWS configuration has",
         "aws configure list-profiles; AWS_PROFILE, AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE"),
        ((raised.ConfigNotFound, raised.ConfigParseError, raised.InvalidConfigError,
          raised.InfiniteLoopConfigError),
         "an AWS configuration that can be read",
         "look at AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, by default files in ~/.aws"),
        (raised.PartialCredentialsError, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both",
         "set the other half of the pair, or neither"),
        ((raised.NoRegionError, raised.InvalidRegionError, raised.UnknownRegionError,
          raised.ServiceNotInRegionError), "the name of a region", _REGION),
        (raised.ProxyConnectionError, "a proxy that answers", "HTTP_PROXY, HTTPS_PROXY, NO_PROXY"),
        (raised.InvalidProxiesConfigError, "a proxy's URL", "HTTP_PROXY, HTTPS_PROXY, NO_PROXY"),
        (raised.SSLError, "a certificate that this machine trusts",
         "AWS_CA_BUNDLE for a store with its own authority; http:// for one without TLS"),
        ((raised.EndpointConnectionError, raised.ConnectTimeoutError),
         "a store that answers", _ENDPOINT),
        ((raised.HTTPClientError, raised.IncompleteReadError),
         "a store that answers to the end", f"try again; {_ENDPOINT}"),
        ((ResponseParserError, raised.PaginationError, raised.ChecksumError,
          raised.FlexibleChecksumError), _NOT_S3.expected, _ENDPOINT),
        (raised.ParamValidationError, _NO_BUCKET.expected, "look at the name of the bucket"),
        ((raised.BaseEndpointResolverError, raised.EndpointProviderError, ValueError),
         "the URL of an S3 store, and answers as S3 gives them", _ENDPOINT),
    )  # fmt: skip
    for kinds, expected, hint in rows:
        if isinstance(error, kinds):
            return Trouble(said, expected, hint)
    if isinstance(error, raised.BotoCoreError | OSError):
        return Trouble(said, "credentials, and a configuration that boto3 takes", _CREDENTIALS)
    return None
