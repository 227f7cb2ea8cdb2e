"""Which versions a report states; the harness's own is told by its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.load import stack
from harness.load.stack import HARNESS, commit_of, installed_versions, stack_name


def test_a_checkout_is_told_by_its_commit(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    commit_of.cache_clear()
    assert commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    commit_of.cache_clear()
    assert commit_of(tmp_path) == f"{commit}-dirty"
    assert commit_of(tmp_path / "inside") == ""


def test_the_checkout_that_is_asked_is_the_harnesss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "commit_of", str)
    assert f"({Path(__file__).parents[2]})" in installed_versions()[HARNESS]


def test_the_harness_is_among_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "commit_of", lambda root: "0123456789ab")
    found = installed_versions()
    assert found[HARNESS].endswith(" (0123456789ab)")
    monkeypatch.setattr(stack, "commit_of", lambda root: "")
    assert "(" not in installed_versions()[HARNESS]
    assert stack_name({"vllm": "0.26.1", HARNESS: "0.1.0"}) == "0.26"
