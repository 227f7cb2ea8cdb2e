"""What a user meets: four fields, an exit code, and the way from one process to another."""

from __future__ import annotations

import msgspec
import pytest

from harness.base.errors import BadInput, HarnessError, InternalError, SentError, TargetUnavailable


def sent(error: HarnessError) -> HarnessError:
    """``error`` as another process gets it."""
    return msgspec.json.decode(msgspec.json.encode(SentError.of(error)), type=SentError).error()


@pytest.mark.parametrize(
    ("kind", "exit_code"), [(BadInput, 2), (TargetUnavailable, 4), (InternalError, 5)]
)
def test_an_error_stays_itself_on_its_way(kind: type[HarnessError], exit_code: int) -> None:
    error = kind("what", where="where", expected="expected", hint="hint")
    back = sent(error)
    assert (type(back), str(back)) == (kind, "what (where). Expected: expected. Try: hint.")
    assert back.exit_code == exit_code


def test_an_error_of_ours_brings_its_traceback() -> None:
    try:
        [][3]
    except IndexError as error:
        made = sent(InternalError.of(error))
    assert made.what.endswith("not the load under test: IndexError: list index out of range")
    assert made.where.startswith("test_errors.py:")
    assert "[][3]" in str(made)
    assert InternalError.of(ValueError("no frame")).where == "unknown"


class _Special(BadInput):
    """A kind that the other process has no name for."""


@pytest.mark.parametrize(("kind", "arrives"), [(_Special, BadInput), (HarnessError, InternalError)])
def test_an_error_without_a_name_arrives_as_what_it_derives_from(
    kind: type[HarnessError], arrives: type[HarnessError]
) -> None:
    assert type(sent(kind("what", where="", expected="", hint=""))) is arrives


@pytest.mark.parametrize("kind", ["SystemExit", "os.system", "", "HarnessError"])
def test_a_name_that_is_not_in_the_table_is_the_harnesss_own_failure(kind: str) -> None:
    assert type(SentError(kind, "what", "where", "expected", "hint").error()) is InternalError


def test_only_what_nobody_foresaw_becomes_the_harnesss_own() -> None:
    """The errors that are named, or all; never those a user can act on."""
    with pytest.raises(InternalError, match="ZeroDivisionError"), InternalError.instead():
        raise ZeroDivisionError
    with pytest.raises(BadInput), InternalError.instead():
        raise BadInput("what", where="", expected="", hint="")
    with pytest.raises(ZeroDivisionError), InternalError.instead(KeyError):
        raise ZeroDivisionError
