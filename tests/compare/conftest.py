"""Checkpoints that silent passes are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.synthetic.writer import write_checkpoint
from tests.support.silent_passes import SQUARE, UNEVEN, VL


@pytest.fixture(scope="session")
def checkpoints(
    tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Those of the recipes, and of sizes that are uneven or square."""
    base = tmp_path_factory.mktemp("sizes")
    return tiny_checkpoints | {
        name: write_checkpoint(VL, base / shapes[5:], shapes=shapes).path
        for name in (UNEVEN, SQUARE) for shapes in name.split()[1:]
    }  # fmt: skip
