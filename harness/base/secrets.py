"""Keeps credentials out of everything that is written: known ones by value, others by their place.

Values come from the environment, by the names the ecosystem gives its secrets, from the files it
names, and from whoever read one elsewhere and says so with :func:`remember`. They are found as they
are, percent-encoded, escaped for JSON or HTML, and in base64. What nobody knew is found by where it
stands: user and password of a URL, the signature in its query, a header, an assignment, a key file.

Errors, reports and logs go through :func:`redact` on their way out. Redact before you cut: half a
credential is found by nobody.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

_NAMES = re.compile(
    r"SECRET|TOKEN(?!IZ)|PASSW|PASSPHRASE|ACCESS_KEY|API_KEY|PRIVATE_KEY|CREDENTIAL", re.I
)
_OF_A_FILE = ("_FILE", "_PATH", "_CREDENTIALS", "_DIR")  # such a variable names no secret itself
_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_SHORTEST = 8  # what is shorter is a word of some text sooner than a credential
_LONGEST = 16384
_MOST_BYTES = 2**20  # of a file of credentials
_REPLACED = "<credentials>"

#: Values that were read elsewhere, see :func:`remember`, and their names.
remembered: dict[str, str] = {}
_Known = tuple[tuple[str, str], ...]


def remember(name: str, value: str | None) -> None:
    """Have ``value`` replaced by ``<name>`` from now on; a value of several lines line by line."""
    for line in [value or "", *(value or "").splitlines()]:
        if len(line) >= _SHORTEST:
            remembered[line] = name


def redact(text: str) -> str:
    """``text`` with every known secret replaced by ``<its name>``, others by ``<credentials>``."""
    return _without(text, _secrets(_known()))


def redacted(content: Any) -> Any:
    """Plain data or msgspec structures, every string in them redacted; keys and members of
    enumerations stay, even those that a credential happens to be spelled like.
    """
    return _each(content, _secrets(_known()))


def redacted_within(content: Any) -> Any:
    """What somebody else's code made, redacted: plain data anew, objects' attributes in place."""
    known, seen = _secrets(_known()), set[int]()
    left = [redacted_content := _each(content, known)]
    while left:
        within = left.pop()
        if isinstance(within, list | tuple):
            left += within
        elif id(within) not in seen and _has_attributes(within):
            seen.add(id(within))
            vars(within).update(_each(vars(within), known))
            left += vars(within).values()
    return redacted_content


def _has_attributes(content: object) -> bool:
    return hasattr(content, "__dict__") and not isinstance(content, Enum | type)


def credentials_found() -> list[str]:
    """The names of the credentials in the environment, never their values."""
    names = {name for name in os.environ if _is_secret(name)}
    names |= {name for name in (_KEY_FILE, "AWS_PROFILE") if os.environ.get(name)}
    files = ("~/.aws/credentials", "~/.cache/huggingface/token")
    return sorted(names) + [file for file in files if Path(os.path.expanduser(file)).is_file()]


def _each(content: Any, known: list[_Secret]) -> Any:
    if isinstance(content, Enum):
        return content
    if isinstance(content, str):
        return _without(content, known)
    if isinstance(content, msgspec.Struct):
        fields = content.__struct_fields__
        return type(content)(**{name: _each(getattr(content, name), known) for name in fields})
    if isinstance(content, Mapping):
        return {key: _each(value, known) for key, value in content.items()}
    if isinstance(content, list | tuple):
        items = [_each(item, known) for item in content]
        if hasattr(content, "_fields"):
            return type(content)(*items)
        return tuple(items) if isinstance(content, tuple) else items
    return content


def _without(text: str, known: list[_Secret]) -> str:
    """Most strings of a report hold no mark of anything: they are looked through, not matched."""
    if len(text) < _SHORTEST:
        return text
    for secret in known:
        for mark in secret.marks:
            if mark in text:
                text = secret.pattern.sub(f"<{secret.name}>", text)
                break
    lower = text.lower()
    for place in _PLACES:
        for mark in place.marks:
            if mark in lower:
                text = place.pattern.sub(place.replacement, text)
                break
    return text


# ---------------------------------------------------------------------------------- by value


def _known() -> _Known:
    """Values and their names, longest first."""
    found = dict(_of_files())
    for name, value in os.environ.items():
        found |= dict.fromkeys(_passwords(name, value), f"{name}.password")
        if _is_secret(name):
            found |= {value: name, unquote(value): name}
    found |= remembered
    long = [(value, name) for value, name in found.items() if len(value) >= _SHORTEST]
    return tuple(sorted(long, key=lambda pair: (-len(pair[0]), pair)))


def _is_secret(name: str) -> bool:
    if name.upper().endswith(_OF_A_FILE):
        return False
    return bool(_NAMES.search(name)) and len(os.environ[name]) >= _SHORTEST


def _passwords(name: str, value: str) -> Iterator[str]:
    """Of a URL with user and password, both and the latter alone; a proxy needs no scheme."""
    scheme = "" if "://" in value or not name.upper().endswith("_PROXY") else "://"
    for found in _USERINFO.finditer(scheme + value):
        for part in (found[2], found[2].partition(":")[2]):
            yield part
            yield unquote(part)


def _of_files() -> Iterator[tuple[str, str]]:
    """What the files hold that the environment names, and those that are where clients look."""
    for name in os.environ:
        if _NAMES.search(name) and name != _KEY_FILE and name.upper().endswith(("_FILE", "_PATH")):
            yield _line(os.environ[name]), name
    hub = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    yield _line(f"{hub}/token"), "HF_TOKEN"
    gcloud = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    named = os.environ.get(_KEY_FILE) or f"{gcloud}/application_default_credentials.json"
    yield from _of_key_file(named)


def _of_key_file(path: str) -> Iterator[tuple[str, str]]:
    """The secret fields of a JSON file of Google's; a private key line by line, too."""
    try:
        content = json.loads(_content(path) or "{}")
    except (ValueError, RecursionError):  # whoever uses the file says what is wrong with it
        return
    for field, value in content.items() if isinstance(content, dict) else ():
        if _NAMES.search(field) and isinstance(value, str) and "://" not in value:
            lines = [line for line in value.splitlines() if not line.startswith("-----")]
            for part in [value, *lines]:
                yield part, f"{_KEY_FILE}.{field}"


def _line(path: str) -> str:
    """What a file holds, if that is one line, as a token is."""
    content = _content(path).strip()
    return "" if "\n" in content else content[:_LONGEST]


def _content(path: str) -> str:
    """A file's first bytes as text; empty where it cannot be read, or is no ordinary file."""
    try:
        descriptor = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, _MOST_BYTES).decode(errors="replace") if regular else ""
    except OSError:
        return ""
    finally:
        os.close(descriptor)


class _Secret(NamedTuple):
    """What finds a value however it is spelled; a text with none of ``marks`` does not hold it."""

    name: str
    marks: frozenset[str]
    pattern: re.Pattern[str]


@lru_cache(maxsize=4)
def _secrets(known: _Known) -> list[_Secret]:
    found = []
    for value, name in known:
        cores = _in_base64(value)
        encoded = (re.escape(core).replace(r"\+", "[+-]").replace("/", "[/_]") for core in cores)
        pattern = re.compile("|".join(["".join(map(_character, value)), *encoded]))
        found.append(_Secret(name, frozenset(map(_mark, (value, *cores))), pattern))
    return found


def _mark(value: str) -> str:
    """The longest piece of ``value`` that is the same in every spelling."""
    return max(re.findall(r"\w+", value, re.A), key=len, default="")


def _character(character: str) -> str:
    """A regular expression for one character: plain, escaped, percent-encoded or an entity."""
    if re.fullmatch(r"\w", character, re.A):
        return character
    percent = f"%{ord(character):02X}" if character in "-.~" else quote(character, safe="")
    spellings = {
        r"\\+" if character == "\\" else rf"\\*{re.escape(character)}",
        f"(?i:{percent.replace('%', '%(?:25)*')})",
        *(rf"\\*{re.escape(spell(character)[1:-1])}" for spell in (json.dumps, repr)),
        re.escape(html.escape(character)),
        rf"&\#(?:{ord(character)}|[xX]0*{ord(character):x});",
    }
    spellings |= {r"\+"} if character == " " else set()
    return f"(?:{'|'.join(sorted(spellings, key=lambda one: (-len(one), one)))})"


def _in_base64(value: str) -> list[str]:
    """The part of its base64 that does not depend on what stands around it, for each alignment."""
    cores, content = [], value.encode(errors="replace")
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + content).decode()
        cores.append(encoded[(0, 2, 3)[before] : (before + len(content)) * 8 // 6])
    return cores


# ---------------------------------------------------------------------------------- by place

_IS = r"(?:=|%(?:25){0,2}3[dD])"
_END = r"%(?:25)*26|\\u0026"
_VALUE = rf"(?:(?!{_END})[^\s&;\"'<>#\\,)\]}}|]){{1,4096}}"

#: User and password, or a token, between ``://`` and ``@``. After a colon that begins no port, a
#: slash does not end them: whoever pasted a key did not encode it.
_NAMED = r"<[\w.]{1,80}>"
_SLASHES = r"%(?:25){0,1}3[aA](?:%(?:25){0,1}2[fF]){2}"
_ANY = rf"(?:{_NAMED}|[^\s\"'<>:%]|:(?!//)|%(?!{_SLASHES[1:]}))"  # no further than the next URL
_USER = rf"(?:{_NAMED}|[^\s/:@\"'<>\[]){{0,512}}:(?!\d{{1,5}}[/?#]){_ANY}{{0,2048}}"
_TOKEN = rf"(?:(?![/?#]){_ANY}){{0,2048}}"
_USERINFO = re.compile(rf"(://|{_SLASHES})({_USER}|{_TOKEN})(@|%(?:25)*40)")

#: Names of signatures (AWS versions 2 and 4, GCS, CloudFront), as parameters, in a header, as XML.
_SIGNED = re.compile(
    r"((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|GoogleAccessId|AWSAccessKeyId"
    r"|SignatureProvided|Key-Pair-Id|\bSignature|\bCredential)"
    rf"(?:{_IS}|>|[\"']?\s{{0,2}}[:=,]\s{{0,2}}b?[\"']))({_VALUE})",
    re.I,
)
_PARAMETER = re.compile(rf"((?:[?&;#]|{_END}|%(?:25)*3[fF])([\w.-]{{1,64}}){_IS})({_VALUE})")
_PARAMETER_NAMES = re.compile(
    r"^sig|signature|token|secret|passw|pwd|credential|(?:^|[._-]|api|access)key(?:[._-]?id)?$"
    r"|auth|session|^policy$|access.?id|jwt|hmac",
    re.I,
)
_HEADER = re.compile(
    r"(\b(?:Basic|Bearer|Negotiate)\s{1,4}|X-(?:Amz|Goog)-Security-Token:\s{0,4})"
    r"([A-Za-z0-9+/=._~-]{16,})",
    re.I,
)
_ASSIGNED = re.compile(
    r"(?<![\w.-])([A-Za-z_]\w{0,60})([\"']?\s{0,2}[=:]\s{0,2}b?(?:\"|'|(?<==)|(?<==\s)))"
    r"([^\s\"',;&<>)\]}]{1,4096})"
)
_ASSIGNED_NAMES = re.compile(
    r"(?:aws_?)?secret_?(?:access_?)?key|(?:aws_?)?session_?token|private_key|client_secret"
    r"|(?:access|refresh|id)_token|password|passwd",
    re.I,
)
_NO_SECRET = re.compile(r"\d{1,7}|true|false|none|null", re.I)
_SHAPES = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}"
    r"|ya29\.[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).{0,20000}?(-----END|\Z)", re.DOTALL
)


def _parameter(found: re.Match[str]) -> str:
    return found[1] + _REPLACED if _PARAMETER_NAMES.search(found[2]) else found[0]


def _assigned(found: re.Match[str]) -> str:
    name, value = found[1], found[3]
    of_a_variable = name.isupper() and _NAMES.search(name) and not name.endswith(_OF_A_FILE)
    if not (of_a_variable or _ASSIGNED_NAMES.fullmatch(name)) or _NO_SECRET.fullmatch(value):
        return found[0]
    return f"{name}{found[2]}<{name}>"


class _Place(NamedTuple):
    """Where a credential stands; a text without any of ``marks``, in lower case, has none."""

    marks: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]


_EQUALS = ("=", "%3d", "%253d", "%25253d")
_PLACES = (
    _Place(("://", "%2f%2f", "%252f%252f"), _USERINFO, rf"\1{_REPLACED}\3"),
    _Place(("signature", "credential", "security-token", "accessid", "accesskeyid", "key-pair-id"),
           _SIGNED, rf"\1{_REPLACED}"),
    _Place(_EQUALS, _PARAMETER, _parameter),
    _Place(("basic", "bearer", "negotiate", "security-token"), _HEADER, rf"\1{_REPLACED}"),
    _Place(("=", '"', "'"), _ASSIGNED, _assigned),
    _Place(("akia", "asia", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "ya29.",
            "eyj"), _SHAPES, _REPLACED),
    _Place(("private key-",), _PRIVATE_KEY, rf"\1{_REPLACED}\2"),
)  # fmt: skip
