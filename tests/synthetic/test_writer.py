from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from harness.base.errors import BadInput, NotWritten
from harness.checkpoint.checkpoint import INDEX
from harness.families.experts import reference_parts
from harness.families.known_families import families
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.values import CORNERS
from harness.synthetic.writer import write_checkpoint


def test_the_safetensors_library_reads_the_same_bytes(
    tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    """The format is written and read by hand here; the format's own library is the judge."""
    checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
    seen = set()
    for file in sorted(Path(checkpoint.path).glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                entry = checkpoint.entries[name]
                part = opened.get_slice(name)
                assert tuple(part.get_shape()) == entry.shape
                assert part.get_dtype() == entry.dtype
                seen.add(name)
    assert seen == set(checkpoint.entries)


def test_the_index_names_every_tensor_and_the_total(
    tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
    index = json.loads((Path(checkpoint.path) / INDEX).read_text())
    assert index["metadata"]["total_size"] == checkpoint.nbytes
    assert len(set(index["weight_map"].values())) == 4


def test_every_expert_slice_is_distinct(tiny_checkpoints: dict[str, Path], recipe: str) -> None:
    parts = reference_parts(ModelCheckpoint(tiny_checkpoints[recipe]))
    digests = [
        hashlib.sha256(np.ascontiguousarray(part[key]).data).digest()
        for part in parts
        for key in part
    ]
    assert len(digests) == len(set(digests)) > 0


def test_every_projection_of_every_expert_holds_the_corners(
    tiny_checkpoints: dict[str, Path], recipe: str
) -> None:
    for part in reference_parts(ModelCheckpoint(tiny_checkpoints[recipe])):
        for key in part:
            assert set(CORNERS) <= set(np.unique(part[key]).tolist()), key


def test_tiny_shapes_are_never_square() -> None:
    for family in families():
        shape = family.shape_named("tiny")
        assert shape.hidden not in (shape.intermediate, 2 * shape.intermediate)


@pytest.mark.slow
def test_published_shapes_with_fewer_layers_and_experts(tmp_path: Path) -> None:
    written = write_checkpoint(
        "qwen3-vl-moe", tmp_path / "out", shapes="published:qwen3-vl-30b-a3b", layers=1, experts=8
    )
    (part,) = reference_parts(ModelCheckpoint(written.path))
    assert (part.layers, part.shape.experts, part.shape.hidden) == ((0,), 8, 2048)


@pytest.mark.parametrize(
    ("family", "options", "match"),
    [
        ("no-such", {}, "unknown recipe"),
        ("qwen3.5-mtp", {"shapes": "huge"}, "unknown shapes"),
        ("qwen3.5-mtp", {"shapes": "published:qwen3-vl-30b-a3b"}, "unknown shapes"),
        ("qwen3.5-mtp", {"layers": 0}, "0 layers"),
        ("qwen3.5-mtp", {"layers": 10**9}, "1000000000 layers"),
        ("qwen3.5-mtp", {"experts": 10**9}, "1000000000 experts"),
        ("qwen3.5-mtp", {"experts": 1}, "1 experts with 2 chosen"),
        ("qwen3.5-mtp", {"files": 0}, "0 files"),
    ],
)
def test_unusable_requests(
    tmp_path: Path, family: str, options: dict[str, object], match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        write_checkpoint(family, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_path_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="already exists"):
        write_checkpoint("qwen3.5-moe", tmp_path / "out")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(NotWritten, match="disk full"):
        write_checkpoint("qwen3.5-moe", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
