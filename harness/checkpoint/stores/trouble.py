"""What a store's client raises becomes the sentence that its user needs, in bounded time.

A table for each client says what its errors mean (``s3.py``, ``gcs.py``, ``hub.py``); here is what
they have in common: the meaning of an HTTP status, the words of an error, and :func:`asked`,
through which calls go. What is raised has no cause: a client's own words and the variables of its
frames hold URLs with passwords, signed requests and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import NamedTuple, TypeVar

from harness.base.errors import BadInput, HarnessError
from harness.base.secrets import redact

T = TypeVar("T")

#: Connections that a client keeps, one for each core that reads; by themselves clients keep ten
#: and end those beyond after each range.
CONNECTIONS = 64
#: Bytes a second that are slow, but not too slow.
SLOWEST = 2**18
_LONGEST_WORDS = 300


@dataclass(frozen=True)
class StoreLimits:
    """How long a store is asked, and for how much.

    Attributes:
        attempts: how often S3 gets a request before its error is the answer.
        retry_seconds: for how long a request to GCS is tried again.
        call_seconds: what a call takes at most: three attempts that connect in ten seconds and wait
            for sixty, with their pauses. Sockets have limits of their own, but an answer that drips
            in meets those.
        most_objects: of a listing; a checkpoint of a trillion parameters has some hundred files.
    """

    attempts: int = 3
    retry_seconds: float = 120.0
    call_seconds: float = 240.0
    most_objects: int = 100_000


LIMITS = StoreLimits()


class Trouble(NamedTuple):
    """Why a client cannot go on: the fact, what would be right, what to try."""

    what: str
    expected: str
    hint: str


Explain = Callable[[Exception], Trouble]


def asked(
    where: str,
    explain: Explain,
    call: Callable[[], T],
    nbytes: int = 0,
    limits: StoreLimits = LIMITS,
) -> T:
    """What ``call`` gives, a store's client's.

    It runs in a thread, which is left behind when it is late: nothing ends a client that resolves
    a name, runs a command for credentials, or takes a byte a minute.

    Args:
        where: the URL, for messages.
        explain: what an error means.
        call: asks the store.
        nbytes: it is to bring; a large answer may take longer.
        limits: how long it may take otherwise.

    Raises:
        BadInput: whatever it raised, explained; or it is late.
        ModuleNotFoundError: the client is not installed.
    """
    answer: Future[T] = Future()
    Thread(target=_settle, args=(answer, call), daemon=True, name="store").start()
    seconds = limits.call_seconds + nbytes / SLOWEST
    try:
        error = answer.exception(seconds)
    except TimeoutError:
        raise _bad_input(where, _late(seconds)) from None
    if error is None:
        return answer.result()
    if not isinstance(error, Exception) or isinstance(
        error, HarnessError | ModuleNotFoundError | MemoryError
    ):
        raise error
    raise _bad_input(where, explain(error)) from None


def _settle(answer: Future[T], call: Callable[[], T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # whoever waits for it gets it
        answer.set_exception(error)


def _bad_input(where: str, trouble: Trouble) -> BadInput:
    return BadInput(trouble.what, where=where, expected=trouble.expected, hint=trouble.hint)


def _late(seconds: float) -> Trouble:
    return Trouble(
        f"the store's answer was not complete after {seconds:.0f} s",
        "an answer within that time",
        "look at the network and at the store, and try again",
    )


def words(error: BaseException) -> str:
    """An error's own first line, or its type's name; without credentials, and cut."""
    try:
        text = str(error).strip()
    except Exception:  # urllib3 has some whose text needs what they lack
        text = ""
    line = redact((text.splitlines() or [type(error).__name__])[0])
    return line if len(line) <= _LONGEST_WORDS else f"{line[:_LONGEST_WORDS]}…"


def unforeseen(error: BaseException, hint: str) -> Trouble:
    """What nobody has a row for."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    said = "" if (said := words(error)) == type(error).__name__ else f": {said}"
    return Trouble(
        f"the store cannot be read, {kind}{said}",
        "a store that can be read",
        f"list it with its own command line, with the same variables; {hint}",
    )


def unreachable(error: BaseException, hint: str) -> Trouble:
    """No answer came."""
    return Trouble(words(error), "a store that answers", hint)


def of_status(status: int, credentials: str) -> Trouble | None:
    """What an HTTP status means; ``credentials`` says where they come from."""
    if 300 <= status < 400 and status != 304:
        return REDIRECTED
    if status == 401:
        return Trouble("the credentials are not accepted", "credentials of this store", credentials)
    if status in (429, 503):
        return THROTTLED
    if status >= 500:
        return FAILING
    return {
        403: Trouble("access denied", "credentials that may list and read", credentials),
        404: NOT_THERE,
        408: THROTTLED,
        412: CHANGED,
        416: CHANGED,
    }.get(status)


NOT_THERE = Trouble(
    "no such bucket or object",
    "a bucket and objects that exist",
    "look at the name, which is case-sensitive, and at the endpoint: each store has its own",
)
CHANGED = Trouble(
    "the object changed while it was read",
    "an object nobody writes to",
    "try again when the upload has ended",
)
THROTTLED = Trouble(
    "the store is overloaded and asks to slow down",
    "a store that answers as fast as it is asked",
    "wait and try again; fewer readers at once, RUNAI_STREAMER_CONCURRENCY for the streamer's",
)
FAILING = Trouble(
    "the store failed by itself",
    "an answer without an error of the server's",
    "wait and try again; the provider's status page, or the server's own log, says more",
)
REDIRECTED = Trouble(
    "the bucket is elsewhere: the store redirects",
    "the region and the endpoint of this bucket",
    "set the region, or the endpoint, to the bucket's own",
)
CLOCK = Trouble(
    "this machine's clock and the store's differ too much",
    "clocks that differ by minutes at most: requests are signed with the time",
    "timedatectl status, and let NTP set the clock",
)
