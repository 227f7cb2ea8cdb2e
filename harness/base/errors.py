"""The errors a user meets, each with the exit code the command line ends on.

One shape for all of them: what is wrong, where, what was expected, what to try. Code that raises
fills the four fields; one method turns them into the paragraph the user reads.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from harness.base.foreign import one_line, several_lines
from harness.base.secrets import redact


class HarnessError(Exception):
    """An error a user can act on.

    Args:
        what: the fact that stopped the run.
        where: the file, option, tensor or device it concerns.
        expected: what would have been right.
        hint: what to try next, in its first line; what follows are details, such as a traceback.

    The fields may quote foreign text as it is; it is escaped and cut where the error is shown.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, expected: str, hint: str) -> None:
        super().__init__(what, where, expected, hint)
        self.what = what
        self.where = where
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.paragraph}\n{self.details}" if self.details else self.paragraph

    @property
    def paragraph(self) -> str:
        """The four fields on one line, without what follows the hint."""
        hint = self.hint.partition("\n")[0]
        what, where, expected, hint = (
            one_line(redact(field)) for field in (self.what, self.where, self.expected, hint)
        )
        return f"{what} ({where}). Expected: {expected}. Try: {hint}."

    @property
    def details(self) -> str:
        """What follows the hint, of several lines; empty for most errors."""
        return several_lines(redact(self.hint.partition("\n")[2])).strip("\n")


class BadInput(HarnessError):
    """What the user handed in cannot be used: a path, a checkpoint, an option."""

    exit_code = 2


class TargetUnavailable(HarnessError):
    """The target or stack that was asked for is not to be had on this machine."""

    exit_code = 4


class InternalError(HarnessError):
    """The harness itself failed: nothing is known of the load under test, good or bad."""

    exit_code = 5

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """``error``, which no code of ours expected, with its traceback."""
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
        return cls(
            f"the harness failed, not the load under test: {type(error).__name__}: {error}",
            where=at,
            expected="a verdict on whatever was loaded",
            hint="report this, with its traceback\n" + "".join(traceback.format_exception(error)),
        )

    @classmethod
    @contextmanager
    def instead(cls, *kinds: type[Exception]) -> Iterator[None]:
        """Have what no code of ours expected in the body raised as one of these.

        Args:
            kinds: the errors meant; all by default, but for those a user can act on.
        """
        try:
            yield
        except HarnessError:
            raise
        except Exception as error:
            if kinds and not isinstance(error, kinds):
                raise
            raise cls.of(error) from error


def no_room(what: str, error: OSError, where: str = "this machine") -> TargetUnavailable:
    """``what`` could not be done here, for want of something that every load needs."""
    return TargetUnavailable(
        f"{what}: {error.strerror or error}",
        where=where,
        expected="room for a process, its open files and its temporary files",
        hint="free some space on the disk, check ulimit -a, or set TMPDIR to another directory",
    )


class NotWritten(InternalError):
    """What was asked for came about, and could not be written where it was to go."""


_KINDS: dict[str, type[HarnessError]] = {
    kind.__name__: kind for kind in (BadInput, TargetUnavailable, InternalError, NotWritten)
}


class SentError(msgspec.Struct, frozen=True, tag=True):
    """A :class:`HarnessError` between processes: plain text, and a name out of a fixed table.

    Whoever writes it chooses among the harness's own errors and can do nothing else.
    """

    kind: str
    what: str
    where: str
    expected: str
    hint: str

    @classmethod
    def of(cls, error: HarnessError) -> Self:
        """``error``, to be sent; what has no name in the table goes as what it derives from."""
        names = [kind.__name__ for kind in type(error).__mro__]
        kind = next((name for name in names if name in _KINDS), InternalError.__name__)
        return cls(kind, error.what, error.where, error.expected, error.hint)

    def error(self) -> HarnessError:
        """The error that was sent; of an unknown kind it is the harness's own failure."""
        kind = _KINDS.get(self.kind, InternalError)
        return kind(self.what, where=self.where, expected=self.expected, hint=self.hint)
