"""A whole verification where nothing can be written but temporary files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: In mounts of its own, so that nobody else's shared memory is filled. A few pages stay free:
#: vLLM's executor makes a lock, which lies there (0.26 ``v1/executor/uniproc_executor.py``).
SCRIPT = """
mount -t tmpfs -o ro tmpfs "$HOME" && mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99
head -c 48k /dev/zero > /dev/shm/full
exec "$@"
"""
NO_MOUNTS = 99
#: Without any cache the load may take long enough to be told of.
PROGRESS = re.compile(r"\d+ s: \w+")


def test_a_read_only_home_and_full_shared_memory(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    harness = Path(sys.executable).with_name("harness")
    verify = [str(harness), "verify", str(tiny_checkpoints["qwen3-vl-moe"])]
    own_caches = ("HARNESS_CACHE", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT")
    kept = {name: value for name, value in os.environ.items() if name not in own_caches}
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", *verify],
        env=kept | {"HOME": str(home)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if ran.returncode == NO_MOUNTS or ran.stderr.startswith("unshare:"):
        pytest.skip(f"mounts of its own: this user cannot make any ({ran.stderr.strip()})")
    said = [line for line in ran.stderr.splitlines() if not PROGRESS.match(line)]
    assert (ran.returncode, said) == (0, [])
    assert "16/16" in ran.stdout
