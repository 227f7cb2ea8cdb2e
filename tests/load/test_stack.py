"""Which versions a report states; the harness's own is told by its commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from harness.load import stack
from harness.load.stack import (
    HARNESS,
    chronological,
    commit_of,
    every_version,
    installed_versions,
    stack_name,
    under_test,
)


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


@pytest.mark.parametrize(
    ("vllm", "tpu", "name"),
    [
        ("0.26.0", "0.26.0", "0.26"),
        ("0.33.0", "0.32.0", "0.33+0.32"),
        ("0.32.0", "0.32.0.dev20261024", "0.32+0.32.0.dev20261024"),
        ("0.22.0", "0.22.1", "0.22"),
    ],
)
def test_a_pair_that_nobody_pinned_is_told_by_both(vllm: str, tpu: str, name: str) -> None:
    assert stack_name({"vllm": vllm, "tpu-inference": tpu}) == name


def test_every_distribution_is_told() -> None:
    versions = every_version(installed_versions())
    assert next(iter(versions)) == "vllm"
    for name in ("pytest", "msgspec", "scipy"):
        assert versions[name] == version(name)
    assert len(versions) > 100
    assert set(under_test(versions)) == set(installed_versions())


@pytest.mark.parametrize(
    ("requirement", "installed", "told"),
    [
        ("runai-model-streamer[s3]==0.15.9", "0.17.0", "0.17.0 (tpu-inference pins 0.15.9)"),
        ("runai-model-streamer==0.15.9", "0.15.9", "0.15.9"),
        ("runai-model-streamer>=0.15", "0.17.0", "0.17.0"),
        ("@@", "0.17.0", "0.17.0"),
    ],
)
def test_a_streamer_that_is_not_upstreams_pin_says_so(
    monkeypatch: pytest.MonkeyPatch, requirement: str, installed: str, told: str
) -> None:
    monkeypatch.setattr(stack, "requires", lambda package: [requirement])
    monkeypatch.setattr(stack, "version", lambda package: installed)
    assert installed_versions()["runai-model-streamer"] == told


def test_builds_of_a_day_follow_the_release_they_are_named_after() -> None:
    line = ["0.25.0", "0.26.0rc1", "0.26.0", "0.26.0.dev20260731", "0.26.0.dev20260820", "0.27.0"]
    assert sorted(set(line), key=chronological) == line
    assert chronological("0.22.1.dev3+gabc") < chronological("0.22.1")
