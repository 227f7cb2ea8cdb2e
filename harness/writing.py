"""How files are written: whole or not at all, and JSON that a person can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


def write(path: Path, content: bytes) -> None:
    """Write a file; it appears when it is complete.

    Raises:
        OSError: the directory is absent, or not to be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def indented(content: Any) -> bytes:
    """``content``, which msgspec can encode, as indented JSON in UTF-8 with a last newline."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
