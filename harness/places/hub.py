"""A model of the hub: its snapshot in the local cache, downloaded where there is a network.

``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` count as huggingface_hub says.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import BadInput
from harness.places.directory import Directory

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
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BadInput(
            f"neither in the hub's cache nor to be downloaded: {_first_line(error)}",
            where=name,
            expected="a hub id org/name, with @revision if not main, or a directory",
            hint="hf download where there is a network, or ./ before a directory's name",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
