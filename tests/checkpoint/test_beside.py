"""Weight files that the index does not name: the loader streams them, so they count."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import BadInput
from harness.checkpoint.checkpoint import Checkpoint
from tests.support.silent_worlds import tensors_of, write_tensors

FIRST = "model-00001-of-00004.safetensors"
CONSOLIDATED = "consolidated.safetensors"


@pytest.fixture
def copy(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoints["qwen3-moe"], tmp_path / "c")


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_there_are_none_as_a_rule(copy: Path) -> None:
    assert Checkpoint(copy).beside == ()
    Checkpoint(copy).require_copies_equal()


@pytest.mark.parametrize(
    "name", [CONSOLIDATED, "model-00001-of-00009.safetensors", "model.safetensors"]
)
def test_equal_copies_are_named_and_the_index_counts(copy: Path, name: str) -> None:
    shutil.copy(copy / FIRST, copy / name)
    checkpoint = Checkpoint(copy)
    checkpoint.require_copies_equal()
    assert {entry.file.name for entry in checkpoint.beside} == {name}
    own = {n for n, entry in checkpoint.entries.items() if entry.file.name == FIRST}
    assert {entry.name for entry in checkpoint.beside} == own
    assert all(entry.file.name != name for entry in checkpoint.entries.values())


def as_another_shape(at: Path) -> None:
    name, tensor = next(iter(tensors_of(at).items()))
    shape = tuple(reversed((1, *tensor.shape)))
    write_tensors(at / CONSOLIDATED, {name: tensor._replace(shape=shape)})


def with_another_byte(at: Path) -> None:
    shutil.copy(at / FIRST, at / CONSOLIDATED)
    flip_last(at / CONSOLIDATED)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (with_another_byte, r"with other bytes than in 'model-00001-of-00004.*consolidated"),
        (as_another_shape, "with another type or shape, BF16 "),
    ],
)
def test_copies_that_differ_leave_nothing_to_compare_with(
    copy: Path, spoil: Callable[[Path], None], match: str
) -> None:
    spoil(copy)
    with pytest.raises(BadInput, match=match):
        Checkpoint(copy).require_copies_equal()


def test_a_file_of_other_names_alone(copy: Path) -> None:
    """Mistral's own format calls everything otherwise; nothing of the index is said twice."""
    tensors = tensors_of(copy)
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    write_tensors(copy / CONSOLIDATED, {n: t for n, t in renamed.items() if n not in tensors})
    checkpoint = Checkpoint(copy)
    checkpoint.require_copies_equal()
    assert {entry.name for entry in checkpoint.beside} == set(renamed) - set(tensors)
