"""What a user meets: four fields, an exit code, and the way from one process to another."""

from __future__ import annotations

import pickle

import pytest

from harness.errors import BadInput, HarnessError, InternalError, TargetUnavailable


@pytest.mark.parametrize(
    ("kind", "exit_code"), [(BadInput, 2), (TargetUnavailable, 4), (InternalError, 5)]
)
def test_an_error_stays_itself_on_its_way(kind: type[HarnessError], exit_code: int) -> None:
    error = kind("what", where="where", expected="expected", hint="hint")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (kind, "what (where). Expected: expected. Try: hint.")
    assert back.exit_code == exit_code


def test_an_error_of_ours_brings_its_traceback() -> None:
    try:
        [][3]
    except IndexError as error:
        made = pickle.loads(pickle.dumps(InternalError.of(error)))
    assert made.what.endswith("not the load under test: IndexError: list index out of range")
    assert made.where.startswith("test_errors.py:")
    assert "[][3]" in str(made)
    assert InternalError.of(ValueError("no frame")).where == "unknown"
