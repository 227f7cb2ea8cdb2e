"""A model of the hub: its snapshot in the local cache, downloaded where there is a network.

``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` count as huggingface_hub says.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from harness.base.errors import BadInput
from harness.checkpoint.stores.directory import Directory
from harness.checkpoint.stores.trouble import Trouble, of_status, words

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")

#: What a load needs; other weights of the same repository stay where they are.
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


def hub_snapshot(name: str) -> Directory:
    """The snapshot ``org/name[@revision]``: complete, or what the cache has where no network is.

    Raises:
        BadInput: it is neither in the cache nor to be downloaded.
    """
    found = HUB_ID.fullmatch(name)
    assert found is not None
    repo, revision = found["repo"], found["revision"]
    return Directory(_snapshot(repo, revision, name), shown=name)


def _snapshot(repo: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except MemoryError:
        raise
    except Exception as error:
        told = explain(error)
        # No cause: an error of the client's holds its request, with the token.
        raise BadInput(told.what, where=name, expected=told.expected, hint=told.hint) from None


_ABSENT = "neither in the hub's cache nor to be downloaded"
_TOKEN = "hf auth login, or HF_TOKEN"
_NAMED = "a hub id org/name, with @revision if not main, or a directory"
_CACHE = "hf cache rm, or an empty HF_HUB_CACHE, and download it again"
#: By class of huggingface_hub's errors, most particular first; not every release has them all.
_OF_CLASS = {
    "GatedRepoError": Trouble(
        "the repository is gated",
        "a token of someone who was granted access to it",
        f"ask for access on its page, then {_TOKEN}",
    ),
    "DisabledRepoError": Trouble("the hub disabled the repository", "another one", "its page"),
    "RepositoryNotFoundError": Trouble(
        f"{_ABSENT}: the hub shows no such repository",
        f"{_NAMED}; for a private repository, a token that may read it",
        f"look at the name; {_TOKEN}",
    ),
    "RevisionNotFoundError": Trouble(
        f"{_ABSENT}: the repository has no such revision",
        "a branch, a tag or a commit of it after the @",
        "look at its page, under Files and versions",
    ),
    "CorruptedCacheException": Trouble("the hub's cache is damaged", "a cache", _CACHE),
}
_OF_ERRNO = {
    errno.ENOSPC: ("the disk of the hub's cache is full", "HF_HUB_CACHE on a larger disk"),
    errno.EDQUOT: ("the disk of the hub's cache is full", "HF_HUB_CACHE on a larger disk"),
    errno.EACCES: ("the hub's cache cannot be written or read", "HF_HUB_CACHE in a place of yours"),
    errno.EPERM: ("the hub's cache cannot be written or read", "HF_HUB_CACHE in a place of yours"),
    errno.EROFS: ("the hub's cache cannot be written or read", "HF_HUB_CACHE in a place of yours"),
    errno.ENOTDIR: ("the hub's cache is damaged: a file is where a folder should be", _CACHE),
    errno.EISDIR: ("the hub's cache is damaged: a folder is where a file should be", _CACHE),
}


def explain(error: Exception) -> Trouble:
    """What an error of huggingface_hub's means, or of what it is built on."""
    chain = [error]
    while (cause := chain[-1].__cause__) and isinstance(cause, Exception) and len(chain) < _DEEPEST:
        chain.append(cause)  # what could not be downloaded names the reason below
    for one in chain:
        if trouble := _known(one):
            return trouble
    offline = "where there is a network, without HF_HUB_OFFLINE"
    hint = f"hf download {offline}, or ./ before a directory's name"
    return Trouble(f"{_ABSENT}: {words(error)}", _NAMED, hint)


_DEEPEST = 10


def _known(error: Exception) -> Trouble | None:
    for kind in type(error).__mro__:
        if kind.__name__ in _OF_CLASS and kind.__module__.startswith("huggingface_hub"):
            return _OF_CLASS[kind.__name__]
    if isinstance(error, UnicodeDecodeError):
        return Trouble(
            "the hub's cache is damaged: a name of a revision is no text", "text", _CACHE
        )
    if isinstance(error, OSError) and error.errno in _OF_ERRNO:
        what, hint = _OF_ERRNO[error.errno]
        return Trouble(f"{what}: {words(error)}", "a cache that can be used", hint)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return of_status(status, _TOKEN) if isinstance(status, int) and status != 404 else None
