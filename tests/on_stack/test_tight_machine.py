"""A whole verification where nothing can be written but temporary files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import TargetUnavailable

#: In mounts of its own, so that nobody else's shared memory is filled: with so much.
SCRIPT = """
mount -t tmpfs -o ro tmpfs "$HOME" && mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99
head -c {filled} /dev/zero > /dev/shm/full
exec "$@"
"""
NO_MOUNTS = 99
#: Without any cache the load may take long enough to be told of.
PROGRESS = re.compile(r"\d+ s: \w+")


def verified(checkpoint: Path, home: Path, filled: str) -> tuple[int, str, list[str]]:
    """What ``harness verify`` ends with, prints and says, of progress nothing."""
    home.mkdir()
    harness = Path(sys.executable).with_name("harness")
    verify = [str(harness), "verify", str(checkpoint)]
    own_caches = ("HARNESS_CACHE", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT")
    kept = {name: value for name, value in os.environ.items() if name not in own_caches}
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT.format(filled=filled), "sh", *verify],
        env=kept | {"HOME": str(home)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if ran.returncode == NO_MOUNTS or ran.stderr.startswith("unshare:"):
        pytest.skip(f"mounts of its own: this user cannot make any ({ran.stderr.strip()})")
    said = [line for line in ran.stderr.splitlines() if not PROGRESS.match(line)]
    return ran.returncode, ran.stdout, said


def test_a_read_only_home_and_full_shared_memory(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A few pages stay free, for the lock of vLLM's executor."""
    code, printed, said = verified(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "home", "48k")
    assert (code, said) == (0, [])
    assert "16/16" in printed


def test_shared_memory_without_room_for_a_lock(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    code, _, said = verified(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "home", "64k")
    text = "\n".join(said)
    assert code == TargetUnavailable.exit_code, text
    assert "no shared memory for the lock of vLLM's executor: No space left on device" in text
    assert "df /dev/shm" in text
