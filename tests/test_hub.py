"""Hub ids, from a cache laid out as huggingface_hub lays it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkpoint import Checkpoint
from harness.places.hub import HUB_ID

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
        "from harness.checkpoint import Checkpoint\n"
        f"c = Checkpoint({name!r})\n"
        "print(c.family.name, c.path, c.model)"
    )
    model = cache / "models--Org--Model-1.5B" / "snapshots" / commit
    assert run(cache, code).split() == [family, name, str(model)]


@pytest.mark.parametrize("name", ["Org/Absent", f"{REPO}@v9", f"{REPO}@{'c' * 40}"])
def test_what_the_cache_lacks_is_bad_input(cache: Path, name: str) -> None:
    code = f"from harness.cli import main; main(['verify', {name!r}])"
    output = run(cache, code)
    assert f"({name})" in output
    assert "error: neither in the hub's cache nor to be downloaded" in output


def test_a_directory_comes_before_the_hub(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "Org" / "Model")
    monkeypatch.chdir(tmp_path)
    assert Checkpoint("Org/Model").model == str(tmp_path / "Org" / "Model")


@pytest.mark.parametrize("text", ["/a/b", "./a", "a", "a/b/c", "../a", "a/b@", "a/..", "~/a"])
def test_what_is_no_hub_id(text: str) -> None:
    assert not HUB_ID.fullmatch(text)
