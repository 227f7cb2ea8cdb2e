"""Hub ids, from a cache laid out as huggingface_hub lays it out."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from harness.base.errors import BadInput
from harness.checkpoint.stores.hub import HUB_ID, explain
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.answering import Answer, answering, http

REPO, COMMIT, OLD = "Org/Model-1.5B", "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> Path:
    """Two revisions: files are links to blobs, as in a real cache."""
    repo = tmp_path / "hub" / "models--Org--Model-1.5B"
    for commit, recipe in ((COMMIT, "qwen3-vl-moe"), (OLD, "qwen3.5-moe")):
        snapshot = repo / "snapshots" / commit
        shutil.copytree(tiny_checkpoints[recipe], repo / "blobs" / commit)
        snapshot.mkdir(parents=True)
        for file in (repo / "blobs" / commit).iterdir():
            (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(OLD)
    return tmp_path / "hub"


def run(cache: Path, code: str) -> str:
    """Run code in a process that has this cache and no network."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("name", "family", "commit"),
    [
        (REPO, "qwen3-vl-moe", COMMIT),
        (f"{REPO}@main", "qwen3-vl-moe", COMMIT),
        (f"{REPO}@v1", "qwen3.5-moe", OLD),
        (f"{REPO}@{OLD}", "qwen3.5-moe", OLD),
    ],
)
def test_a_snapshot_of_the_cache(cache: Path, name: str, family: str, commit: str) -> None:
    code = (
        "from harness.families.model_checkpoint import ModelCheckpoint\n"
        f"c = ModelCheckpoint({name!r})\n"
        "print(c.family.name, c.path, c.model)"
    )
    model = cache / "models--Org--Model-1.5B" / "snapshots" / commit
    assert run(cache, code).split() == [family, name, str(model)]


@pytest.mark.parametrize("name", ["Org/Absent", f"{REPO}@v9", f"{REPO}@{'c' * 40}"])
def test_what_the_cache_lacks_is_bad_input(cache: Path, name: str) -> None:
    code = f"from harness.app.cli import main; main(['verify', {name!r}])"
    output = run(cache, code)
    assert f"({name})" in output
    assert "error: neither in the hub's cache nor to be downloaded" in output


def test_a_directory_comes_before_the_hub(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "Org" / "Model")
    monkeypatch.chdir(tmp_path)
    assert ModelCheckpoint("Org/Model").model == str(tmp_path / "Org" / "Model")


@pytest.mark.parametrize("text", ["/a/b", "./a", "a", "a/b/c", "../a", "a/b@", "a/..", "~/a"])
def test_what_is_no_hub_id(text: str) -> None:
    assert not HUB_ID.fullmatch(text)


# ------------------------------------------------------------------------ what the hub says


@pytest.fixture
def here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, for this process, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@contextmanager
def a_hub(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> Iterator[list[str]]:
    """A server in the place of the hub, and a token that must not be told."""
    with answering(answer) as (url, asked):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_TOKEN", "hf_plantedplantedplantedplanted")
        yield asked


@pytest.mark.parametrize(
    ("answer", "what", "hint"),
    [
        (
            http("401 Unauthorized", "{}", "X-Error-Code: RepoNotFound"),
            "no such repository",
            "HF_TOKEN",
        ),
        (
            http("404 Not Found", "{}", "X-Error-Code: RepoNotFound"),
            "no such repository",
            "HF_TOKEN",
        ),
        (http("404 Not Found", "{}", "X-Error-Code: RevisionNotFound"), "no such revision", "page"),
        (http("403 Forbidden", "{}", "X-Error-Code: GatedRepo"), "gated", "ask for access"),
        (http("403 Forbidden", "{}"), "access denied", "HF_TOKEN"),
        (http("429 Too Many", "{}", "Retry-After: 0"), "slow down", "wait"),
        (http("500 Internal", "{}"), "failed by itself", "wait"),
        (http("200 OK", "<html>Welcome</html>"), "nor to be downloaded", "hf download"),
        (http("200 OK", "[]"), "nor to be downloaded", "hf download"),
        (lambda head, client: client.close(), "nor to be downloaded", "hf download"),
    ],
)
def test_what_the_hub_says(
    here: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, what: str, hint: str
) -> None:
    with a_hub(monkeypatch, answer), pytest.raises(BadInput) as raised:
        ModelCheckpoint("Org/Elsewhere@main")
    assert what in raised.value.what
    assert hint in raised.value.hint
    assert (raised.value.__cause__, raised.value.__suppress_context__) == (None, True)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("refs/main", "a folder is where a file"),
        ("refs", "cache|no such"),
        ("snapshots", "cache|not a directory|no such"),
    ],
)
def test_a_cache_that_is_damaged(here: Path, name: str, what: str) -> None:
    """A file where a folder should be, and the other way round."""
    damaged = here / "models--Org--Model-1.5B" / name
    if damaged.is_dir():
        shutil.rmtree(damaged)
        damaged.write_text("x")
    else:
        damaged.unlink()
        damaged.mkdir()
    with pytest.raises(BadInput) as raised:
        ModelCheckpoint(REPO)
    assert re.search(what, raised.value.what), raised.value


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"", b"../../../../etc", b"x" * 5000, b"a\0b", b"/etc"],
    ids=["no text", "empty", "outside", "long", "null", "absolute"],
)
def test_a_revision_that_is_none(here: Path, content: bytes) -> None:
    (here / "models--Org--Model-1.5B" / "refs" / "main").write_bytes(content)
    with pytest.raises(BadInput):
        ModelCheckpoint(REPO)


def test_a_snapshot_without_its_files(here: Path) -> None:
    """Links into nowhere: the download was interrupted, or the blobs were removed."""
    shutil.rmtree(here / "models--Org--Model-1.5B" / "blobs")
    with pytest.raises(BadInput, match=r"config\.json"):
        ModelCheckpoint(REPO)


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "full"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_a_cache_that_cannot_be_written(number: int, what: str) -> None:
    told = explain(OSError(number, os.strerror(number), "/cache/x"))
    assert what in told.what
    assert "HF_HUB_CACHE" in told.hint
