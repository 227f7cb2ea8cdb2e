"""Whatever a store or its client says ends as bad input, with advice that fits, and in time."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import socket
import stat
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from botocore import exceptions as of_botocore
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from click.testing import CliRunner
from google.api_core import exceptions as of_google
from google.auth import exceptions as of_google_auth
from google.cloud.storage import exceptions as of_google_storage
from huggingface_hub import errors as of_the_hub
from hypothesis import example, given
from hypothesis import strategies as st
from requests import exceptions as of_requests
from urllib3 import exceptions as of_urllib3

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.checkpoint.stores import gcs, hub, object_store, opening, s3, trouble
from harness.checkpoint.stores.gcs import GcsBucket
from harness.checkpoint.stores.s3 import S3Bucket
from harness.checkpoint.stores.trouble import LIMITS, StoreLimits
from scenarios.stores import KEY_ID, SECRET, gcs_environment, s3_environment
from tests.support.answering import Answer, answering, http

#: One attempt at S3, and half a second of them at GCS.
ONCE = StoreLimits(attempts=1, retry_seconds=0.5)


def limit(monkeypatch: pytest.MonkeyPatch, limits: StoreLimits) -> None:
    """Have the buckets of this test opened with limits of its own."""
    for scheme, client in {"s3": S3Bucket, "gs": GcsBucket}.items():
        made = partial(client, limits=limits)
        monkeypatch.setitem(opening.BUCKETS, scheme, made)


@pytest.fixture
def to_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[str]]]:
    """Put a server in the place of S3; gives the requests it gets. One attempt each."""
    limit(monkeypatch, ONCE)
    with ExitStack() as servers:

        def put(answer: Answer) -> list[str]:
            url, asked = servers.enter_context(answering(answer))
            for name, value in s3_environment(url).items():
                monkeypatch.setenv(name, value)
            return asked

        yield put


@pytest.fixture
def to_gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[str]]]:
    """Put a server in the place of GCS; gives the requests it gets. A second of attempts."""
    limit(monkeypatch, ONCE)
    with ExitStack() as servers:

        def put(answer: Answer) -> list[str]:
            url, asked = servers.enter_context(answering(answer))
            for name, value in gcs_environment(url).items():
                monkeypatch.setenv(name, value)
            return asked

        yield put


def verify(*arguments: str) -> str:
    """What ``harness verify`` says of bad input."""
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert (result.exit_code, result.stderr[:7]) == (2, "error: "), (
        result.stderr,
        result.exception,
    )
    assert "Traceback" not in result.stderr
    assert not any(secret in result.stderr for secret in (KEY_ID, SECRET, "planted"))
    return result.stderr


# ------------------------------------------------------------------------- what an error means


def client_error(code: str, status: int = 400, operation: str = "GetObject") -> ClientError:
    answer = {
        "Error": {"Code": code, "Message": "told"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
    }
    return ClientError(answer, operation)


@pytest.mark.parametrize(
    ("code", "status", "what", "hint"),
    [
        ("NoSuchBucket", 404, "no such bucket", "AWS_ENDPOINT_URL"),
        ("NoSuchKey", 404, "no such object", "case-sensitive"),
        ("404", 404, "no such object", "case-sensitive"),
        ("AccessDenied", 403, "access denied", "AWS_PROFILE"),
        ("403", 403, "access denied", "AWS_PROFILE"),
        ("AccountProblem", 403, "access denied", "AWS_PROFILE"),
        ("Unauthorized", 401, "not accepted", "AWS_PROFILE"),
        ("InvalidAccessKeyId", 403, "access key is unknown", "AWS_PROFILE"),
        ("SignatureDoesNotMatch", 403, "secret key is wrong", "AWS_PROFILE"),
        ("ExpiredToken", 400, "expired", "aws sso login"),
        ("InvalidToken", 400, "session token is wrong", "AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", 403, "clock", "NTP"),
        ("SlowDown", 503, "slow down", "RUNAI_STREAMER_CONCURRENCY"),
        ("ServiceUnavailable", 503, "slow down", "wait"),
        ("Throttling", 400, "slow down", "wait"),
        ("503", 503, "slow down", "wait"),
        ("429", 429, "slow down", "wait"),
        ("TooManyRequestsOfThisStore", 429, "slow down", "wait"),
        ("InternalError", 500, "failed by itself", "wait"),
        ("502", 502, "failed by itself", "wait"),
        ("PermanentRedirect", 301, "redirects", "AWS_REGION"),
        ("301", 301, "redirects", "AWS_REGION"),
        ("TemporaryRedirect", 307, "redirects", "AWS_REGION"),
        ("AuthorizationHeaderMalformed", 400, "another region", "AWS_REGION"),
        ("IllegalLocationConstraintException", 400, "another region", "AWS_REGION"),
        ("PreconditionFailed", 412, "changed while", "upload"),
        ("416", 416, "changed while", "upload"),
        ("InvalidObjectState", 403, "archived", "restore"),
        ("KMS.DisabledException", 400, "key cannot be used", "kms:Decrypt"),
        ("NotImplemented", 501, "does not speak S3", "AWS_ENDPOINT_URL"),
        ("SomethingNew", 400, "SomethingNew", "AWS_PROFILE"),
        ("", 0, "told", "AWS_PROFILE"),
    ],
)
def test_what_s3_says(code: str, status: int, what: str, hint: str) -> None:
    told = s3.explain(client_error(code, status))
    assert what in told.what
    assert hint in told.hint
    assert ("AWS_PROFILE" in told.hint) == (hint == "AWS_PROFILE")


def test_a_redirect_says_where_to() -> None:
    error = client_error("AuthorizationHeaderMalformed")
    error.response["Error"]["Region"] = "eu-west-1"
    assert s3.explain(error).hint == "AWS_REGION=eu-west-1"
    error = client_error("PermanentRedirect", 301)
    error.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] = "eu-west-2"
    assert s3.explain(error).hint == "AWS_REGION=eu-west-2"
    error.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] = "\x1b[31m eu"
    assert "\x1b" not in s3.explain(error).hint


@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [
        (of_google.Unauthorized("no"), "not accepted", "gcloud auth"),
        (of_google.Forbidden("no"), "access denied", "gcloud auth"),
        (of_google.NotFound("no"), "no such bucket or object", "case-sensitive"),
        (of_google.PreconditionFailed("no"), "changed while", "upload"),
        (of_google.RequestRangeNotSatisfiable("no"), "changed while", "upload"),
        (of_google.TooManyRequests("no"), "slow down", "wait"),
        (of_google.ServiceUnavailable("no"), "slow down", "wait"),
        (of_google.InternalServerError("no"), "failed by itself", "wait"),
        (of_google.MovedPermanently("no"), "redirects", "endpoint"),
        (of_google.Forbidden("no", errors=[{"reason": "rateLimitExceeded"}]), "slow down", "wait"),
        (of_google.BadRequest("no", errors=[{"reason": "userProjectMissing"}]), "pays", "PROJECT"),
        (of_google.RetryError("late", of_google.TooManyRequests("no")), "slow down", "wait"),
        (of_google.RetryError("late", None), "late", "gcloud auth"),
        (of_google_auth.DefaultCredentialsError("no file"), "no file", "gcloud auth"),
        (
            of_google_auth.RefreshError("invalid_grant: check your iat and exp values"),
            "clock",
            "NTP",
        ),
        (of_google_auth.TransportError(OSError("refused")), "refused", "HTTPS_PROXY"),
        (of_requests.ProxyError("no proxy"), "no proxy", "HTTPS_PROXY"),
        (OSError("no project"), "no project", "gcloud auth"),
    ],
    ids=repr,
)
def test_what_gcs_says(error: Exception, what: str, hint: str) -> None:
    told = gcs.explain(error)
    assert what in told.what
    assert hint in told.hint
    assert ("gcloud auth" in told.hint) == (hint == "gcloud auth")


def made(kind: type[Exception]) -> Exception:
    """An error of a class, however many arguments that wants; without any where it has too many."""
    fields = [name for _, name, _, _ in string.Formatter().parse(getattr(kind, "fmt", "")) if name]
    answer = {"Error": {"Code": "X", "Message": "told"}}
    given: list[tuple[Any, ...]] = [(answer, "Y"), *(("told",) * count for count in (1, 2, 3, 4))]
    with contextlib.suppress(TypeError, AttributeError, KeyError, ValueError):
        return kind(**dict.fromkeys(fields, "told")) if fields else kind("told")
    for arguments in given:
        with contextlib.suppress(TypeError, AttributeError, KeyError, ValueError):
            return kind(*arguments)
    error = kind.__new__(kind)
    error.args = ("told",)
    return error


def classes(*modules: ModuleType) -> list[type[Exception]]:
    found = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and not issubclass(kind, Warning)
    }
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


ANY = [ValueError, KeyError, AttributeError, OSError, TimeoutError, UnicodeError, RecursionError]


@pytest.mark.parametrize(
    ("explain", "kind"),
    [
        *((s3.explain, kind) for kind in [*classes(of_botocore, of_urllib3), ResponseParserError]),
        *((gcs.explain, kind) for kind in classes(
            of_google, of_google_auth, of_google_storage, of_requests, of_urllib3)),
        *((hub.explain, kind) for kind in classes(of_the_hub, of_requests)),
        *((explain, kind) for explain in (s3.explain, gcs.explain, hub.explain) for kind in ANY),
    ],
    ids=lambda value: getattr(value, "__qualname__", "") + f" {value.__module__}",
)  # fmt: skip
def test_each_error_has_a_meaning(
    explain: Callable[[Exception], trouble.Trouble], kind: type[Exception]
) -> None:
    """None is lost, none comes through, none carries what raised it along."""
    error = made(kind)

    def fail() -> None:
        raise error

    with pytest.raises(BadInput) as raised:
        trouble.asked("s3://b/x", explain, fail)
    said = raised.value
    assert (said.where, said.__suppress_context__, said.__cause__) == ("s3://b/x", True, None)
    assert all((said.what, said.expected, said.hint))
    assert "\n" not in said.what
    assert len(said.what) < 600


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ProfileNotFound", "a profile"),
        ("PartialCredentialsError", "both"),
        ("ConfigParseError", "configuration"),
        ("NoRegionError", "region"),
        ("InvalidRegionError", "region"),
        ("ProxyConnectionError", "proxy"),
        ("SSLError", "certificate"),
        ("EndpointConnectionError", "answers"),
        ("ConnectTimeoutError", "answers"),
        ("ReadTimeoutError", "to the end"),
        ("IncompleteReadError", "to the end"),
        ("PaginationError", "S3"),
        ("ParamValidationError", "bucket"),
        ("NoCredentialsError", "credentials"),
        ("CredentialRetrievalError", "credentials"),
    ],
)
def test_what_boto3_says(name: str, expected: str) -> None:
    assert expected in s3.explain(made(getattr(of_botocore, name))).expected


# ---------------------------------------------------------------- variables that are wrong: S3


PROFILE = "[default]\naws_access_key_id = x\naws_secret_access_key = planted-secret\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"AWS_PROFILE": "nobody"}, r"nobody.*list-profiles"),
        ({"AWS_SECRET_ACCESS_KEY": None}, r"missing: AWS_SECRET_ACCESS_KEY.*other half"),
        ({"AWS_ACCESS_KEY_ID": None}, r"Unable to locate credentials"),
        ({"AWS_CONFIG_FILE": "[broken"}, r"AWS_CONFIG_FILE"),
        ({"AWS_CONFIG_FILE": "[default]\ncredential_process = false", "AWS_ACCESS_KEY_ID": None,
          "AWS_SECRET_ACCESS_KEY": None}, r"credential_process|custom-process"),
        ({"AWS_CONFIG_FILE": "[default]\nsource_profile = default\nrole_arn = x",
          "AWS_ACCESS_KEY_ID": None}, r"default"),
        ({"AWS_ENDPOINT_URL": "not a url"}, r"Invalid endpoint.*http://host:port"),
        ({"AWS_ENDPOINT_URL": "http://"}, r"AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:port"}, r"AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"}, r"AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://[::1"}, r"AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "ftp://127.0.0.1"}, r"AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://user:planted-pw@127.0.0.1:9"},
         r"Could not connect.*http://<credentials>@127.0.0.1:9"),
        ({"AWS_ENDPOINT_URL": "http://user:short@127.0.0.1:9"}, r"//<credentials>@127.0.0.1:9"),
        ({"AWS_DEFAULT_REGION": "no region!"}, r"region"),
        ({"AWS_RETRY_MODE": "never", "AWS_MAX_ATTEMPTS": "many"}, r"Could not connect"),
        ({"AWS_CA_BUNDLE": "/nonexistent", "AWS_ENDPOINT_URL": "https://127.0.0.1:9"}, r"Try:"),
        ({"HTTP_PROXY": "http://user:planted-pw@127.0.0.1:9", "NO_PROXY": ""}, r"HTTP_PROXY"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, r"Try:"),
    ],
    ids=lambda value: ",".join(map("=".join, [(k, v or "") for k, v in value.items()]))
    if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str | None], match: str
) -> None:
    limit(monkeypatch, ONCE)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.socket() as deaf:  # bound, so that nobody else listens there
        deaf.bind(("127.0.0.1", 0))
        given = s3_environment(f"http://127.0.0.1:{deaf.getsockname()[1]}") | variables
        for name, value in given.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
                continue
            if name == "AWS_CONFIG_FILE" and value.startswith("["):
                (tmp_path / "config").write_text(value)
                value = str(tmp_path / "config")
            monkeypatch.setenv(name, value.replace(":9", f":{deaf.getsockname()[1]}", 1))
        said = verify("s3://weights/x")
    said = said.replace(str(given["AWS_ENDPOINT_URL"] or "-").rpartition(":")[2], "9")
    assert re.search(match.replace(":9", r":\d+"), said), said


def test_a_command_for_credentials_that_never_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit(monkeypatch, StoreLimits(call_seconds=0.5))
    for name, value in s3_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\nexec sleep 5\n")
    command.chmod(stat.S_IRWXU)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    started = time.monotonic()
    assert "not complete after" in verify("s3://weights/x")
    assert time.monotonic() - started < 4


# --------------------------------------------------------------------- answers that are wrong: S3


def listing(*objects: str, more: str = "<IsTruncated>false</IsTruncated>") -> str:
    contents = "".join(f"<Contents>{content}</Contents>" for content in objects)
    return f"<ListBucketResult><Name>weights</Name>{more}{contents}</ListBucketResult>"


def error(code: str, more: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>told</Message>{more}</Error>"


WHOLE = "<Key>x/a</Key><Size>3</Size><ETag>e</ETag>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (http("200 OK", listing("<Key>x/a</Key><Size>3</Size>")), "'x/a' without a version"),
        (http("200 OK", listing("<Size>3</Size><ETag>e</ETag>")), "without a name"),
        (http("200 OK", listing("<Key>x/a</Key><ETag>e</ETag>")), "'x/a' without a size"),
        (http("200 OK", listing(WHOLE.replace("3", "-3"))), "'x/a' without a size"),
        (http("200 OK", listing(WHOLE.replace("3", "three"))), "answers as S3 gives them"),
        (http("200 OK", listing(WHOLE.replace("x/", "y/"))), "not under the prefix"),
        (http("200 OK", listing()), "no objects under this prefix"),
        (http("200 OK", "<html><body>Welcome</body></html>"), "does not speak S3"),
        (http("200 OK", "Welcome"), "does not speak S3"),
        (http("200 OK", "{}"), "does not speak S3"),
        (http("200 OK"), "does not speak S3"),
        (http("404 Not Found", "<html>no</html>"), "does not speak S3"),
        (http("404 Not Found"), "does not speak S3"),
        (http("400 Bad Request", "no"), "Try:"),
        (http("301 Moved Permanently", "", "Location: http://127.0.0.1:9/"), "redirects"),
        (http("301 Moved", error("PermanentRedirect"), "x-amz-bucket-region: eu-west-9"),
         "redirects.*AWS_REGION=eu-west-9"),
        (http("503 Slow Down", error("SlowDown")), "slow down.*Try: wait"),
        (http("503 Service Unavailable"), "slow down"),
        (http("403 Forbidden", error("RequestTimeTooSkewed")), "clock.*NTP"),
        (http("500 Internal Server Error", "no"), "failed by itself"),
        (http("403 Forbidden"), "access denied"),
        (http("400 Bad", error("AuthorizationHeaderMalformed", "<Region>eu-west-9</Region>")),
         "another region.*AWS_REGION=eu-west-9"),
        (http("403 Forbidden", error("SignatureDoesNotMatch", f"<AWSAccessKeyId>{KEY_ID}"
                                     "</AWSAccessKeyId>")), "secret key is wrong"),
        (http("400 Bad", error(SECRET)), "<AWS_SECRET_ACCESS_KEY>"),
        (lambda head, client: client.sendall(b"220 welcome to another protocol\r\n"), "Try:"),
        (lambda head, client: client.close(), "Try:"),
        (lambda head, client: client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n<a>"),
         "Try:"),
    ],
)  # fmt: skip
def test_wrong_answers_of_s3(
    to_s3: Callable[[Answer], list[str]], answer: Answer, match: str
) -> None:
    to_s3(answer)
    assert re.search(match, said := verify("s3://weights/x")), said


def test_a_throttled_request_is_tried_three_times(
    to_s3: Callable[[Answer], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = to_s3(http("503 Slow Down", error("SlowDown")))
    limit(monkeypatch, LIMITS)
    verify("s3://weights/x")
    assert len(asked) == 3


def test_more_than_was_asked_for(to_s3: Callable[[Answer], list[str]]) -> None:
    """A store that does not know ranges sends the whole object, however large."""
    sent = []

    def endless(head: bytes, client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n")
        while True:
            client.sendall(bytes(1 << 16))
            sent.append(1 << 16)

    to_s3(endless)
    assert len(S3Bucket("weights", ONCE).read("x", "e", 0, 8)) == 9
    assert sum(sent) < 64 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("what", ["listing", "range"])
def test_an_answer_that_drips_in(to_s3: Callable[[Answer], list[str]], what: str) -> None:
    over = threading.Event()

    def drip(head: bytes, client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.05):
            client.sendall(b" ")

    to_s3(drip)
    bucket = S3Bucket("weights", StoreLimits(attempts=1, call_seconds=3))
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"not complete after \d s"):
        bucket.list("x/") if what == "listing" else bucket.read("x/a", "e", 0, 1000)
    over.set()
    assert time.monotonic() - started < 8


def test_a_listing_without_end(to_s3: Callable[[Answer], list[str]]) -> None:
    number = iter(range(10**6))

    def page(head: bytes, client: socket.socket) -> None:
        at = next(number)
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{at}</NextContinuationToken>"
        objects = [WHOLE.replace("x/a", f"x/{at}-{n}") for n in range(10)]
        http("200 OK", listing(*objects, more=more))(head, client)

    asked = to_s3(page)
    with pytest.raises(BadInput, match="more than 25 objects"):
        S3Bucket("weights", StoreLimits(most_objects=25)).list("x/")
    assert len(asked) == 3


def test_what_lies_deeper_is_left_out() -> None:
    objects = [("x/a", 1, "e"), ("x/b/c", 1, "e"), ("x/", 0, "e"), ("x/d/", 0, "e")]
    assert list(object_store.listed("s3://b/x", "x/", objects)) == ["a"]


def test_a_head_without_a_tag(to_s3: Callable[[Answer], list[str]]) -> None:
    to_s3(http("200 OK", "abc"))
    assert S3Bucket("weights", ONCE).checksums("x") == {}


# ------------------------------------------------------------------------------------------ GCS


ITEM = {"name": "x/a", "size": "3", "generation": "1"}


def items(**changed: object) -> str:
    item = {key: value for key, value in (ITEM | changed).items() if value is not None}
    return json.dumps({"items": [item]})


JSON = "Content-Type: application/json"


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (http("200 OK", items(name=None), JSON), "Try:"),
        (http("200 OK", items(size=None), JSON), "'x/a' without a size"),
        (http("200 OK", items(size="three"), JSON), "Try:"),
        (http("200 OK", items(size="-3"), JSON), "'x/a' without a size"),
        (http("200 OK", items(generation=None), JSON), "'x/a' without a version"),
        (http("200 OK", items(name="y/a"), JSON), "not under the prefix"),
        (http("200 OK", "[]", JSON), "Try:"),
        (http("200 OK", '{"items": 3}', JSON), "Try:"),
        (http("200 OK", "<html>Welcome</html>"), "Try:"),
        (http("401 Unauthorized", "{}", JSON), "not accepted.*gcloud"),
        (http("403 Forbidden", "{}", JSON), "access denied.*gcloud"),
        (http("404 Not Found", "{}", JSON), "no such bucket"),
        (http("429 Too Many Requests", "{}", JSON), "slow down"),
        (http("503 Service Unavailable", "{}", JSON), "slow down"),
        (http("500 Internal", "{}", JSON), "failed by itself"),
        (http("301 Moved", "", "Location: /elsewhere"), "Try:"),
        (lambda head, client: client.close(), "Try:"),
        (lambda head, client: client.sendall(b"220 another protocol\r\n"), "Try:"),
    ],
)
def test_wrong_answers_of_gcs(
    to_gcs: Callable[[Answer], list[str]], answer: Answer, match: str
) -> None:
    to_gcs(answer)
    assert re.search(match, said := verify("gs://weights/x")), said


def test_an_emulator_that_is_not_there_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would try for two minutes."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://user:planted-pw@127.0.0.1:{deaf.getsockname()[1]}"
        for name, value in gcs_environment(url).items():
            monkeypatch.setenv(name, value)
        started = time.monotonic()
        assert "STORAGE_EMULATOR_HOST" in verify("gs://weights/x")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("host", ["not a url", "http://", "http://127.0.0.1:port", "ftp://x"])
def test_an_emulators_host_that_is_no_url(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    limit(monkeypatch, ONCE)
    for name, value in gcs_environment(host).items():
        monkeypatch.setenv(name, value)
    verify("gs://weights/x")


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "{}", '{"type": "service_account"}', '{"type": "no-such-type"}',
        '{"type": "service_account", "private_key": "planted", "client_email": "a@b", '
        '"token_uri": "x"}',
        '{"type": "authorized_user", "refresh_token": "planted-refresh"}', "\x00\x01", None,
    ],
)  # fmt: skip
def test_a_file_of_credentials_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    monkeypatch.delenv("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    if content is None:
        (tmp_path / "key.json").mkdir()
    else:
        (tmp_path / "key.json").write_text(content)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in verify("gs://weights/x")


def test_more_than_was_asked_of_gcs(to_gcs: Callable[[Answer], list[str]]) -> None:
    to_gcs(http("200 OK", bytes(1 << 20)))
    with pytest.raises(BadInput, match="more than the range"):
        GcsBucket("weights", ONCE).read("x", "1", 0, 8)


# --------------------------------------------------------------------------- URLs and the hub


@pytest.mark.parametrize(
    "url",
    [
        "s3://weights/x?X-Amz-Credential=planted&X-Amz-Signature=planted",
        "https://weights.s3.amazonaws.com/x?X-Amz-Signature=planted&X-Amz-Security-Token=planted",
        "gs://weights/x?GoogleAccessId=planted&Signature=planted",
        "s3://planted:planted@weights/x",
        "s3://planted:planted/planted@weights/x",
        "s3://planted%3Aplanted%40weights/x",
        "s3://planted:planted/x",
        "s3://weights/planted:planted@x/y",
        "https://planted@weights/x?y=planted",
        "az://weights/x?sv=1&sig=planted",
        "s3://weights/x?planted",
    ],
)
@pytest.mark.parametrize("option", ["", "--reference"])
def test_credentials_in_a_url(tiny_checkpoints: dict[str, Path], url: str, option: str) -> None:
    here = [str(tiny_checkpoints["qwen3-vl-moe"]), option] if option else []
    assert "not the URL of a store" in verify(*here, url)


# A client's thread of an earlier test may draw its jitter while a strategy draws.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.slow
@given(
    text=st.builds(
        "{}{}{}".format,
        st.sampled_from(["s3://", "gs://", "S3://", "az://", "https://"]),
        st.text(st.sampled_from("ab/.@:?#%2F40[]=& \n\x1b-"), max_size=12),
        st.sampled_from(
            ["", "u:planted-pw@b/x", "b/x?sig=planted-pw", "b%3Aplanted-pw%40c", "b/x"]
        ),
    )
)
@example("s3://0/u:planted-pw@b/x")
@example("gs://b/x/u%3Aplanted-pw%40c")
def test_any_url(text: str) -> None:
    """Bad input or a place, and never a word of what may be a credential."""
    with pytest.MonkeyPatch.context() as patch:
        for scheme in opening.BUCKETS:
            patch.setitem(opening.BUCKETS, scheme, lambda name: Empty())
        with pytest.raises(BadInput) as raised:
            opening.open_location(text)
    assert "planted-pw" not in str(raised.value)


class Empty(object_store.Bucket):
    """A bucket that holds nothing."""

    def list(self, prefix: str) -> dict[str, object_store.StoredObject]:
        return {}

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        return b""

    def checksums(self, key: str) -> dict[str, str]:
        return {}
