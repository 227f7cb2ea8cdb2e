"""Keeps credentials out of everything that is written: they are replaced by value, by their name.

Values come from the environment, by the names the ecosystem gives its secrets, and from whoever
read one elsewhere and says so with :func:`remember`. Errors, reports and logs go through
:func:`redact` on their way out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSPHRASE|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.I)
_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_KEY_FILE_FIELDS = ("private_key", "private_key_id", "client_secret", "refresh_token")
_SHORTEST = 8  # what is shorter is a word of some text sooner than a credential

_remembered: dict[str, str] = {}
_Known = list[tuple[str, str]]


def remember(name: str, value: str | None) -> None:
    """Have ``value`` replaced by ``<name>`` from now on; a value of several lines line by line."""
    for line in [value or "", *(value or "").splitlines()]:
        if len(line) >= _SHORTEST:
            _remembered[line] = name


def redact(text: str) -> str:
    """``text`` with every known secret replaced by ``<its name>``; longest first."""
    without: str = _without(text, _known())
    return without


def redacted(content: Any) -> Any:
    """Lists and dicts of plain data, every string in them redacted; keys stay."""
    return _without(content, _known())


def _without(content: Any, known: _Known) -> Any:
    if isinstance(content, str):
        for value, name in known:
            content = content.replace(value, f"<{name}>")
        return content
    if isinstance(content, Mapping):
        return {key: _without(value, known) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without(item, known) for item in content]
    return content


def credentials_found() -> list[str]:
    """The names of the credentials in the environment, never their values."""
    names = {name for name in os.environ if _is_secret(name)}
    names |= {name for name in (_KEY_FILE, "AWS_PROFILE") if os.environ.get(name)}
    files = (Path.home() / ".aws" / "credentials", Path.home() / ".cache/huggingface/token")
    return sorted(names) + [f"~/{f.relative_to(Path.home())}" for f in files if f.is_file()]


def _known() -> _Known:
    """Values and their names, longest first."""
    _remember_key_file()
    found = _remembered | {os.environ[name]: name for name in os.environ if _is_secret(name)}
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def _is_secret(name: str) -> bool:
    return bool(_NAMES.search(name)) and len(os.environ[name]) >= _SHORTEST


def _remember_key_file() -> None:
    path = os.environ.get(_KEY_FILE)
    try:
        content = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):  # whoever uses the file says what is wrong with it
        return
    for field in _KEY_FILE_FIELDS:
        if isinstance(content, dict) and isinstance(content.get(field), str):
            remember(f"{_KEY_FILE}.{field}", content[field])
