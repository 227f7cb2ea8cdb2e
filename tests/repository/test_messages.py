"""Every error says what is wrong, where, what was expected and what to try, and reads well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.messages import Message, messages

FIELDS = ("what", "where", "expected", "hint")
#: What is right for a failure of the harness alone: a user's own mistake is not to be reported.
REPORT = re.compile(r"\breport this\b")


def faults(message: Message) -> list[str]:
    """What keeps a message from being of use."""
    found = []
    for name in FIELDS:
        field = getattr(message, name)
        if not (field or "").strip():
            found.append(f"no {name}")
        elif field.rstrip().endswith(".") and not field.rstrip().endswith("..."):
            found.append(f"{name} ends with a full stop, and the paragraph puts one there")
        elif re.match(r"(?!Python )[A-Z][a-z]+ [a-z]", field):
            found.append(f"{name} begins like a sentence, and stands within one")
    if message.what == message.expected or message.what == message.hint:
        found.append("two fields say the same")
    if message.kind in ("BadInput", "TargetUnavailable") and REPORT.search(message.hint or ""):
        found.append("a user's own affair is to be reported")
    return found


def test_every_message_is_of_use() -> None:
    listed = messages()
    assert len(listed) > 100
    assert [(m.place, fault) for m in listed for fault in faults(m)] == []


GOOD = 'BadInput(f"no {name}", where=str(path), expected="a file", hint="finish the download")'


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", []),
        (', hint="finish the download"', "", ["no hint"]),
        ("finish the download", "", ["no hint"]),
        ("str(path)", "'  '", ["no where"]),
        ("a file", "a file.", ["expected ends with a full stop, and the paragraph puts one there"]),
        ("finish the", "Finish the",
         ["hint begins like a sentence, and stands within one"]),
        ("finish the download", "report this", ["a user's own affair is to be reported"]),
        ('"a file"', 'f"no {name}"', ["two fields say the same"]),
    ],
)  # fmt: skip
def test_a_message_that_is_of_none_is_seen(
    tmp_path: Path, old: str, new: str, fault: list[str]
) -> None:
    (tmp_path / "made.py").write_text(f"raise {GOOD.replace(old, new, 1)}\n")
    (message,) = messages(tmp_path)
    assert message.place == "made.py:1"
    assert faults(message) == fault


def test_what_a_message_quotes_stands_in_braces(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(f"raise {GOOD}\n")
    (message,) = messages(tmp_path)
    told = "no {name} ({str(path)}). Expected: a file. Try: finish the download."
    assert message.paragraph == told
