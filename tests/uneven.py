"""A tiny checkpoint whose sizes do not divide as the published ones do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.synthetic import shapes
from harness.synthetic.writer import write_checkpoint


def uneven_checkpoint(out: Path, **sizes: int) -> Path:
    """Qwen3-VL-MoE with a vocabulary of 500, which is no multiple of 64, and with ``sizes``."""
    tiny = replace(shapes._TINY, **({"vocabulary": 500} | sizes))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes._TINY_OF, "qwen3-vl-moe", tiny)
        return write_checkpoint("qwen3-vl-moe", out).path
