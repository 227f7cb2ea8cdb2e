"""Checkpoints that transformers saves are read as they are, without an option."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from harness.base.errors import BadInput
from harness.families.experts import ExpertKey, absent_parts, reference_parts
from harness.families.family import ExpertNaming, Part, Projection, Storage
from harness.families.found import found_namings
from harness.families.known_families import families, family_named
from harness.families.model_checkpoint import ModelCheckpoint
from harness.families.storage import ExpertSizes
from tests.support.saved import SAVED, save_all
from tests.support.spoiling import edit_header

pytestmark = pytest.mark.slow

KNOWN = {family.name for family in families()}
ROWS = [name for name in SAVED if name.partition(",")[0] in KNOWN]
FUSED, TRANSPOSED, SINGLE = Storage.FUSED, Storage.FUSED_TRANSPOSED, Storage.PER_EXPERT


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(ROWS, tmp_path_factory.mktemp("saved"))


STORAGES = {
    "qwen3-vl-moe": FUSED,
    "qwen3-vl-moe, tied": FUSED,
    "qwen3-vl-moe, 2F = D": FUSED,
    "qwen3-vl-moe, F = D": FUSED,
    "qwen3.5-moe": SINGLE,
    "qwen3-moe": SINGLE,
    "mixtral": SINGLE,
    "granite-moe": FUSED,
    "llama4": TRANSPOSED,
    "gpt-oss": Storage.INTERLEAVED,
}


@pytest.mark.parametrize("row", ROWS)
def test_every_tensor_is_accounted_for(saved: dict[str, Path], row: str) -> None:
    """Experts are found in their storage; every other tensor has a rule in the family."""
    checkpoint = ModelCheckpoint(saved[row])
    (part,) = reference_parts(checkpoint)
    assert part.naming.storage is STORAGES.get(row, SINGLE)
    family, held = checkpoint.family, {n for layer in part.layers for n in part.names_of(layer)}
    for name in set(checkpoint.entries) - held:
        assert any(p.fullmatch(name) for rule in family.rules for p in rule.stored), name
    assert ("lm_head.weight" in checkpoint.entries) is not SAVED[row].tied
    assert all(part[key].any() for key in part)


def test_a_square_tensor_is_read_as_it_was_written(saved: dict[str, Path]) -> None:
    """Values, not only shapes: gate's rows are the first, [F, D], of what transformers wrote."""
    path = saved["qwen3-vl-moe, 2F = D"]
    (part,) = reference_parts(ModelCheckpoint(path))
    name = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    fused = ModelCheckpoint(path).bits(name)
    for projection, rows in ((Projection.GATE, slice(0, 64)), (Projection.UP, slice(64, 128))):
        matrix = part[ExpertKey(Part.DECODER, 1, 5, projection)]
        assert np.array_equal(matrix, fused[5][rows])


def _swapped(path: Path) -> None:
    """The last two axes of every fused expert tensor change their sizes."""

    def swap(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if ".mlp.experts." in name:
                *before, one, other = entry["shape"]
                entry["shape"] = [*before, other, one]

    edit_header(path / "model.safetensors", swap)


@pytest.mark.parametrize("row", ["qwen3-vl-moe", "qwen3-vl-moe, 2F = D", "qwen3-vl-moe, F = D"])
def test_the_two_tensors_together_tell_how_they_lie(
    saved: dict[str, Path], tmp_path: Path, row: str
) -> None:
    """Even where one of them is square, and whatever config.json says of who wrote it."""
    path = shutil.copytree(saved[row], tmp_path / "c")
    _swapped(path)
    (part,) = reference_parts(ModelCheckpoint(path))
    assert part.naming.storage is TRANSPOSED


@pytest.mark.parametrize("storage", [TRANSPOSED, SINGLE, Storage.INTERLEAVED])
def test_another_storage_than_the_shapes_is_not_to_be_asked_for(
    saved: dict[str, Path], storage: Storage
) -> None:
    checkpoint = ModelCheckpoint(saved["qwen3-vl-moe"], storage)
    with pytest.raises(BadInput, match=f"--storage {storage}: .* no experts .*Expected: fused, by"):
        reference_parts(checkpoint)


E, D, F = 3, 16, 4
PREFIX = "model.layers.{layer}.mlp.experts"


class Shaped(NamedTuple):
    """What of an entry tells a storage."""

    shape: tuple[int, ...]


def held(storage: Storage) -> dict[str, Any]:
    naming = ExpertNaming(Part.DECODER, PREFIX, storage)
    return {t.name: Shaped(t.shape) for t in naming.tensors(0, ExpertSizes(E, D, F))}


def read(
    publishes: tuple[Storage, ...], stored: Storage, asked: Storage | None = None
) -> list[Storage]:
    family = replace(
        family_named("qwen3-moe"),
        namings=tuple(ExpertNaming(Part.DECODER, PREFIX, storage) for storage in publishes),
    )
    found = found_namings(held(stored), family, ExpertSizes(E, D, F), asked, "c")
    return [naming.storage for naming in found]


@pytest.mark.parametrize("publishes", [FUSED, TRANSPOSED, SINGLE, Storage.STACKED])
@pytest.mark.parametrize("stored", [FUSED, TRANSPOSED, SINGLE, Storage.STACKED])
def test_a_storage_is_found_whatever_the_family_publishes(
    publishes: Storage, stored: Storage
) -> None:
    assert read((publishes,), stored) == [stored]


def test_what_shapes_do_not_tell_the_publication_does() -> None:
    """Columns that alternate and columns of gate, then up, have the same shapes."""
    interleaved = Storage.INTERLEAVED
    assert read((interleaved,), TRANSPOSED) == [interleaved]
    assert read((FUSED,), TRANSPOSED) == [TRANSPOSED]
    assert read((interleaved,), TRANSPOSED, TRANSPOSED) == [TRANSPOSED]
    assert read((FUSED,), TRANSPOSED, interleaved) == [interleaved]
    both = (interleaved, TRANSPOSED)
    assert read(both, TRANSPOSED, interleaved) == [interleaved]
    with pytest.raises(BadInput, match=r"interleaved or fused-transposed.*--storage interleaved"):
        read(both, TRANSPOSED)


def test_experts_that_stand_twice_are_found_twice() -> None:
    family = family_named("qwen3-moe")
    entries = held(FUSED) | held(SINGLE)
    found = found_namings(entries, family, ExpertSizes(E, D, F), None, "c")
    assert {naming.storage for naming in found} == {FUSED, SINGLE}


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_the_number_of_experts_under_any_name(
    saved: dict[str, Path], tmp_path: Path, key: str
) -> None:
    path = shutil.copytree(saved["qwen3.5-moe"], tmp_path / "c")
    text = json.loads((path / "config.json").read_text())
    text["text_config"][key] = text["text_config"].pop("num_experts")
    (path / "config.json").write_text(json.dumps(text))
    assert reference_parts(ModelCheckpoint(path))[0].shape.experts == 8


def as_transformers_4_saves(config: dict[str, Any]) -> None:
    """Its words for the same: ``torch_dtype``, ``num_experts``, and no parameters of rope."""
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.57.1"
    config["num_experts"] = config.pop("num_local_experts")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]


@pytest.mark.parametrize("row", ["qwen3-moe", "qwen3-moe, f32", "qwen3-moe, f16"])
def test_what_transformers_4_saves(saved: dict[str, Path], tmp_path: Path, row: str) -> None:
    path = shutil.copytree(saved[row], tmp_path / "c")
    config = json.loads((path / "config.json").read_text())
    as_transformers_4_saves(config)
    (path / "config.json").write_text(json.dumps(config))
    (now,), (then,) = (reference_parts(ModelCheckpoint(at)) for at in (path, saved[row]))
    assert (now.shape, now.naming) == (then.shape, then.naming)
    assert now.shape.dtype == ("F16" if row.endswith("f16") else "BF16")
    assert all(np.array_equal(now[key], then[key]) for key in then)


def test_a_checkpoint_in_f32_counts_as_its_cast(saved: dict[str, Path]) -> None:
    """The expectation is torch's own rounding to bfloat16, and not a copy of the file's bits."""
    (part,) = reference_parts(ModelCheckpoint(saved["qwen3-moe, f32"]))
    key = ExpertKey(Part.DECODER, 1, 3, Projection.DOWN)
    wide, dtype = part.stored(key)
    assert (dtype, wide.itemsize, part[key].itemsize) == ("F32", 4, 2)
    values = np.ascontiguousarray(wide).view(np.float32)
    near = (part[key].astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(near - values) <= np.abs(values) * 2.0**-8).all()
    assert not (wide & 0xFFFF == 0).all()


@pytest.mark.parametrize("row", ["glm4-moe", "deepseek-v3"])
def test_a_draft_model_that_the_tool_dropped(row: str, saved: dict[str, Path]) -> None:
    """transformers keeps the key of a draft model that it neither loads nor saves."""
    checkpoint = ModelCheckpoint(saved[row])
    assert absent_parts(checkpoint, tuple(Part)) == (Part.MTP,)
    (decoder,) = reference_parts(checkpoint)
    assert decoder.part is Part.DECODER
