"""Credentials leave the harness by name only."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness.app.cli import main
from harness.base import secrets
from harness.base.errors import BadInput
from harness.report.report import Failure, Status, redacted_report, report_from_json

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIA0PLANTED0KEY0ID0",
    "AWS_SECRET_ACCESS_KEY": 'planted/secret"with\\quotes+and/slashes',
    "AWS_SESSION_TOKEN": "planted-session-token==",
    "HF_TOKEN": "hf_plantedplantedplanted",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherplantedone",
    "MY_STORE_PASSWORD": "correct horse battery",
}
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvplanted\nplantedlast=\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secrets, "remembered", {})
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "key.json").write_text(json.dumps({"private_key": KEY, "type": "service_account"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))


def everything() -> str:
    return "; ".join([*PLANTED.values(), KEY, repr(KEY), KEY.splitlines()[1]])


def none_is_in(text: str) -> bool:
    values = [*PLANTED.values(), *KEY.splitlines()[1:3]]
    return not any(v in text or json.dumps(v)[1:-1] in text for v in values)


def test_text() -> None:
    text = secrets.redact(everything())
    assert none_is_in(text)
    assert all(f"<{name}>" in text for name in PLANTED)


def test_errors() -> None:
    error = BadInput(everything(), where=everything(), expected="x", hint="y")
    assert none_is_in(str(error))


def test_reports(tiny_report: Path) -> None:
    report = report_from_json(tiny_report.read_bytes())
    report.failure = Failure(error="E", message=everything(), log_tail=f"a\n{everything()}\nb")
    report.repeat = f"AWS_SESSION_TOKEN={PLANTED['AWS_SESSION_TOKEN']} harness verify"
    written = redacted_report(report).to_json().decode()
    assert none_is_in(written)
    assert "AWS_SESSION_TOKEN=<AWS_SESSION_TOKEN> harness verify" in written


def test_the_key_file_is_read_once_a_report(
    tiny_report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    really = os.open

    def noting(path: str, *given: int, **named: int) -> int:
        opened.append(path)
        return really(path, *given, **named)

    monkeypatch.setattr(os, "open", noting)
    redacted_report(report_from_json(tiny_report.read_bytes()))
    assert opened.count(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]) == 1


def test_what_was_read_elsewhere() -> None:
    secrets.remember("AWS_SECRET_ACCESS_KEY", "from-the-credentials-file")
    assert secrets.redact("key from-the-credentials-file.") == "key <AWS_SECRET_ACCESS_KEY>."


SPELLINGS: dict[str, Callable[[str], str]] = {
    "percent-encoded": lambda value: quote(value, safe=""),
    "but for the slash": quote,
    "lower case": lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, "")),
    "encoded twice": lambda value: quote(quote(value, safe=""), safe=""),
    "as a form": quote_plus,
    "json": json.dumps,
    "json in json": lambda value: json.dumps(json.dumps(value)),
    "repr": repr,
    "html": html.escape,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 of more": lambda value: base64.b64encode(f"user:{value}!".encode()).decode(),
    "base64 of more, safe in URLs": lambda value: base64.urlsafe_b64encode(
        f"a:{value}, ".encode()
    ).decode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", PLANTED)
def test_however_it_is_spelled(name: str, spelling: str) -> None:
    spelled = SPELLINGS[spelling](PLANTED[name])
    text = secrets.redact(f"before {spelled} after")
    assert f"<{name}>" in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert not any(word in text for word in re.findall(r"\w{6,}", spelled) if word not in name)


@pytest.mark.slow
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=8, max_size=40))
def test_any_value_in_any_spelling(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "remembered", {value: "HELD"})
        for name, spell in SPELLINGS.items():
            assert "<HELD>" in secrets.redact(f"; {spell(value)} ;"), name


#: What nobody knew before: ``HIDDEN`` and ``1234`` must go, wherever they stand, and nothing else.
PLACES = {
    "user and password": "Could not connect to http://HIDDEN:1234@host:9000/bucket",
    "a short password": "http://minio:HIDDEN@host",
    "a token for a user": "git+https://HIDDEN@github.com/a/b",
    "an at in the password": "https://u:p@HIDDEN@host/x",
    "a slash in the password": 'endpoint "http://u:ab/HIDDEN/cd@host/x"',
    "a URL within a URL": "next=http%3A%2F%2Fu%3AHIDDEN%40host%2Fx",
    "a key in a store's URL": "s3://AKIA:HIDDEN%2F1234@bucket/x",
    "a half-known password": "http://u:HIDDEN<AWS_SESSION_TOKEN>1234@host",
    "aws v4": "https://b.s3.amazonaws.com/x?X-Amz-Credential=HIDDEN%2F1234%2Fus&X-Amz-Expires=60"
    "&X-Amz-Signature=HIDDEN&x-amz-security-token=HIDDEN%2B1234",
    "aws v2": "s3://b/x?AWSAccessKeyId=HIDDEN&Expires=60&Signature=HIDDEN%3D",
    "gcs": "https://storage.googleapis.com/b/x?GoogleAccessId=HIDDEN@1234.iam&Signature=HIDDEN",
    "gcs v4": "x?X-Goog-Credential=HIDDEN%2F1234&X-Goog-Signature=HIDDEN&X-Goog-Date=60",
    "sas": "az://b/x?sv=2024&sig=HIDDEN%3D&se=60",
    "a token": "https://host/x?a=b&token=HIDDEN#top",
    "cloudfront": "https://cdn/x?Expires=60&Policy=HIDDEN&Key-Pair-Id=HIDDEN",
    "in a page": "<a href='https://host/x?a=b&amp;access_token=HIDDEN&amp;z=1'>",
    "in json": r"https://host/x?a=b\u0026api_key=HIDDEN\u0026z=1",
    "encoded parameters": "to=https%3A%2F%2Fhost%2Fx%3FX-Amz-Signature%3DHIDDEN%26a%3Db",
    "a header": "Authorization: AWS4-HMAC-SHA256 Credential=HIDDEN/1234/us, SignedHeaders=host, "
    "Signature=HIDDEN",
    "basic": "Proxy-Authorization: Basic HIDDENHIDDENHIDDEN==",
    "bearer": "headers {'Authorization': 'Bearer HIDDEN.HIDDEN.1234'}",
    "a token's header": "'X-Amz-Security-Token': 'HIDDEN/1234'",
    "a token's bytes": "('x-amz-security-token', b'HIDDEN')",
    "xml": "<Error><AWSAccessKeyId>HIDDEN</AWSAccessKeyId><SignatureProvided>HIDDEN</Sig",
    "a command": "AWS_SECRET_ACCESS_KEY=HIDDEN HF_TOKEN='HIDDEN' harness verify",
    "an environment": "{'AWS_SESSION_TOKEN': 'HIDDEN', 'A': 1, \"MY_PASSWORD\": \"1234HIDDEN...",
    "a profile": "aws_access_key_id = x\naws_secret_access_key = HIDDEN/1234",
    "botocore's words": "Session(aws_session_token='HIDDEN', region_name='x')",
    "a key file": '{"type": "x", "private_key": "HIDDEN", "client_email": "y"}',
    "pem": "-----BEGIN RSA PRIVATE KEY-----\nHIDDEN\n1234\n-----END RSA PRIVATE KEY-----",
    "pem, cut": "-----BEGIN PRIVATE KEY-----\nHIDDEN\n12",
    "an access key": "the key AKIAHIDDENHIDDEN1234 is unknown",
    "a token of the hub": "Invalid token hf_HIDDENHIDDENHIDDEN1234",
    "a token of Google": "got ya29.a0HIDDENHIDDENHIDDEN1234",
}


@pytest.mark.parametrize("place", PLACES)
def test_by_its_place(place: str) -> None:
    text = secrets.redact(PLACES[place])
    assert "HIDDEN" not in text
    assert "1234" not in text
    assert secrets.redact(text) == text
    for kept in ("host", "bucket", "Expires=60", "harness verify", "SignedHeaders", "-----END"):
        assert (kept in text) == (kept in PLACES[place]), text


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/Qwen3-VL@main/x.safetensors",
        "http://127.0.0.1:9000/bucket/Model@main",
        "http://[::1]:9000/bucket/Model@main",
        "Org/Model@revision and someone@example.com",
        "https://host/x?prefix=a&list-type=2&max-keys=1000&delimiter=%2F",
        "EngineArgs(tokenizer='x', pad_token_id=5, max_num_batched_tokens=8192, eos_token='</s>')",
        "TOKENIZERS_PARALLELISM=false VLLM_MAX_TOKENS=8192",
        "GOOGLE_APPLICATION_CREDENTIALS=/a/key.json",
        "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token HF_TOKEN_PATH=/a/b",
        "assert key == 'w13_weight', expert_id=3, shard_id='w1': Basic authentication",
        "expected: password, or a token: none; signature: (self, key: str)",
        "harness verify /tmp/c --target emulated --devices 4 --reference /tmp/c-flipped",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert secrets.redact(text) == text


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "HTTPS_PROXY", "http_proxy", "HF_ENDPOINT"])
def test_the_password_of_a_url(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Alone, too, decoded and in a header: by then nothing around it says what it is."""
    monkeypatch.setenv(name, "http://someone:pass%2Fword%21ab@host:1")
    for text in ("wrong password: pass/word!ab", "pass%2fword%21ab", "someone:pass/word!ab"):
        redacted = secrets.redact(text)
        assert f"<{name}.password>" in redacted
        assert "word!" not in redacted
    header = base64.b64encode(b"someone:pass/word!ab").decode()
    assert header not in secrets.redact(f"Proxy-Authorization: {header}")


def test_a_proxy_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "someone:passwordofmine@proxy:3128")
    assert secrets.redact("via someone:passwordofmine@proxy:3128") == (
        "via <ALL_PROXY.password>@proxy:3128"
    )


@pytest.mark.parametrize(
    ("name", "file", "content", "secret"),
    [
        ("HF_TOKEN_PATH", "t", "atokenofthehub\n", "atokenofthehub"),
        ("HF_HOME", "token", "atokenofthehub\n", "atokenofthehub"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "t", "anidentity.token", "anidentity.token"),
        ("CLOUDSDK_CONFIG", "application_default_credentials.json",
         '{"refresh_token": "1//refreshing"}', "1//refreshing"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "k", '{"client_secret": "clients-own"}', "clients-own"),
    ],
)  # fmt: skip
def test_what_a_file_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, file: str, content: str, secret: str
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    at = tmp_path / "held" / file
    at.parent.mkdir()
    at.write_text(content)
    monkeypatch.setenv(name, str(at if len(file) == 1 else at.parent))
    redacted = secrets.redact(f"it is {secret}. In {at}")
    assert secret not in redacted
    assert str(at) in redacted


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, '"text"', '{"private_key": 3}', "\0\ud800", None, "fifo"]
)
def test_a_key_file_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """Whoever uses it says what is wrong with it; a message about that is written all the same."""
    at = tmp_path / "broken"
    if content == "fifo":
        os.mkfifo(at)
    elif content is not None:
        at.write_bytes(content.encode(errors="surrogatepass"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(at))
    assert secrets.redact("a message") == "a message"


def test_a_credential_spelled_like_a_status(
    tiny_report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "different")
    report = report_from_json(tiny_report.read_bytes())
    report.status = Status.DIFFERENT
    report.repeat = "different"
    after = redacted_report(report)
    assert (after.status, after.repeat) == (Status.DIFFERENT, "<MY_TOKEN>")


@pytest.mark.parametrize(
    "text",
    ["://a:" * 200_000, "a" * 1_000_000, "&x=" * 300_000, "A_TOKEN" * 150_000, "%3D" * 300_000],
)
def test_a_long_text_takes_its_length(text: str) -> None:
    started = time.process_time()
    secrets.redact(text)
    assert time.process_time() - started < 10


def test_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert secrets.redact("a test of tests") == "a test of tests"


NESTED = """
import os
import pytest

@pytest.fixture
def moe_verified():
    return None

def inner(environment, url):
    raise ValueError(f"{url}: {environment['HF_TOKEN']}")

def test_row(moe_verified):
    print("printed", os.environ["MY_STORE_PASSWORD"])
    try:
        inner(dict(os.environ), "http://user:" + "short" + "@host")
    except ValueError as error:
        raise RuntimeError(os.environ["AWS_SECRET_ACCESS_KEY"]) from error

def test_skipped(moe_verified):
    pytest.skip("no " + os.environ["AWS_SESSION_TOKEN"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_a_session(pytester: pytest.Pytester, workers: list[str]) -> None:
    """Chained errors, arguments and locals of frames, captured output, options, reasons."""
    pytester.makepyfile(NESTED)
    given = ["-l", "-rA", "--moe-reports=out", "--junitxml=x.xml", "--moe-layers=0", *workers]
    result = pytester.runpytest_subprocess(
        *given, f"--moe-experts=s3://b?token={PLANTED['HF_TOKEN']}"
    )
    result.assert_outcomes(failed=1, skipped=1)
    texts = [str(result.stdout), str(result.stderr), (pytester.path / "x.xml").read_text()]
    texts += [file.read_text() for file in (pytester.path / "out").iterdir()]
    assert len(texts) == 7
    for text in texts:
        assert none_is_in(text)
        assert ":short@" not in text
    assert "<HF_TOKEN>" in texts[0]


def test_doctor_names_credentials_only() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert none_is_in(result.output)
    assert "AWS_SECRET_ACCESS_KEY" in result.output
    assert "GOOGLE_APPLICATION_CREDENTIALS" in result.output
