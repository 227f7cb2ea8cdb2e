"""Everything a checkpoint can have wrong is one clear error, exit code 2."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.checkpoint.checkpoint import INDEX, SINGLE_FILE
from harness.checkpoint.safetensors_file import read_entries
from harness.checkpoint.stores.directory import LocalFile
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.silent_passes import add_undescribed_draft
from tests.support.spoiling import DEFECTS, edit_json
from tests.support.spoiling_files import MORE_DEFECTS

ALL = [*DEFECTS, *MORE_DEFECTS]


@pytest.fixture
def copy(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "checkpoint"))


@pytest.mark.parametrize(("spoil", "match"), ALL, ids=[spoil.__name__ for spoil, _ in ALL])
def test_defect(
    copy: Path, spoil: Callable[[Path], None], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)  # where an opened pickle would leave its mark
    spoil(copy)
    with pytest.raises(BadInput, match=match) as raised:
        reference_parts(ModelCheckpoint(copy))
    assert str(copy) in raised.value.where
    assert raised.value.expected
    assert raised.value.hint
    result = CliRunner().invoke(main, ["verify", str(copy)])
    assert result.exit_code == 2
    assert result.stderr == f"error: {raised.value}\n"
    assert not Path("opened-the-pickle").exists()


def test_an_mtp_layer_that_is_asked_for_alone_must_be_there(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    at = Path(shutil.copytree(tiny_checkpoints["qwen3.5-moe"], tmp_path / "c"))
    edit_json(at / "config.json", lambda c: c["text_config"].update(mtp_num_hidden_layers=1))
    with pytest.raises(BadInput, match="mtp layers with experts in the files: none"):
        reference_parts(ModelCheckpoint(at), asked=[Part.MTP])


def test_a_draft_model_that_its_family_does_not_describe(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """It is there, so nobody says that it is not; the decoder is read without it."""
    at = Path(shutil.copytree(tiny_checkpoints["glm4-moe"], tmp_path / "c"))
    add_undescribed_draft(at)
    for asked in (tuple(Part), [Part.MTP]):
        with pytest.raises(BadInput, match=r"glm4-moe does not describe.*--only decoder"):
            reference_parts(ModelCheckpoint(at), asked=asked)
    (decoder,) = reference_parts(ModelCheckpoint(at), asked=[Part.DECODER])
    assert decoder.layers == (1, 2)
    edit_json(at / "config.json", lambda c: c.update(num_nextn_predict_layers=0))
    with pytest.raises(BadInput, match="decoder layers with experts in the files"):
        reference_parts(ModelCheckpoint(at), asked=[Part.DECODER])


def test_a_single_file_needs_no_index(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from harness.synthetic.writer import write_checkpoint

    at = write_checkpoint("qwen3.5-moe", tmp_path / "c", files=1).path
    (at / INDEX).unlink()
    (at / "model-00001-of-00001.safetensors").rename(at / SINGLE_FILE)
    single, indexed = ModelCheckpoint(at), ModelCheckpoint(tiny_checkpoints["qwen3.5-moe"])
    assert set(single.entries) == set(indexed.entries)


def test_files_may_be_links(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The hub's cache keeps links to files outside the directory."""
    for file in tiny_checkpoints["qwen3.5-moe"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert len(ModelCheckpoint(tmp_path).entries) == 69


def test_a_file_nobody_may_read(
    tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as a user who may read everything."""

    def denied(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        ModelCheckpoint(tiny_checkpoints["qwen3.5-moe"])


def test_an_empty_tensor_is_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[2,0,3],"data_offsets":[0,0]}}'
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header)
    (entry,) = read_entries(LocalFile(tmp_path / "f")).values()
    assert entry.bits().shape == (2, 0, 3)
    assert entry.bits((1,)).shape == (0, 3)


def test_a_scalar_is_an_array(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}'
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + b"\x34\x12")
    (entry,) = read_entries(LocalFile(tmp_path / "f")).values()
    bits = entry.bits()
    assert type(bits) is np.ndarray
    assert (bits.shape, int(bits)) == ((), 0x1234)
