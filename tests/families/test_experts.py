from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.checkpoint.stores.directory import LocalFile
from harness.families.experts import ExpertKey, reference_parts
from harness.families.family import Part, Projection
from harness.families.model_checkpoint import ModelCheckpoint


def raw_tensor(directory: Path, name: str) -> tuple[bytes, list[int]]:
    """A tensor's bytes and shape, read the plainest way there is."""
    file = (
        directory
        / json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][name]
    )
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8:start])[name]
    begin, end = fields["data_offsets"]
    return raw[start + begin : start + end], fields["shape"]


def rows(raw: bytes, width: int) -> list[bytes]:
    return [raw[i : i + 2 * width] for i in range(0, len(raw), 2 * width)]


D, F = 128, 48
FUSED = "model.language_model.layers.1.mlp.experts.gate_up_proj"


def test_fused_rows_are_gate_then_up(tiny_checkpoints: dict[str, Path]) -> None:
    at = tiny_checkpoints["qwen3.5-moe"]
    (part,) = reference_parts(ModelCheckpoint(at))
    raw, shape = raw_tensor(at, FUSED)
    assert shape == [8, 2 * F, D]
    expert = rows(raw, D)[5 * 2 * F : 6 * 2 * F]
    gate = part[ExpertKey(Part.DECODER, 1, 5, Projection.GATE)]
    up = part[ExpertKey(Part.DECODER, 1, 5, Projection.UP)]
    assert gate.tobytes() == b"".join(expert[:F])
    assert up.tobytes() == b"".join(expert[F:])


def test_transposed_columns_are_gate_then_up(tiny_checkpoints: dict[str, Path]) -> None:
    at = tiny_checkpoints["qwen3-vl-moe"]
    (part,) = reference_parts(ModelCheckpoint(at))
    raw, shape = raw_tensor(at, FUSED)
    assert shape == [8, D, 2 * F]
    expert = rows(raw, 2 * F)[5 * D : 6 * D]
    up = part[ExpertKey(Part.DECODER, 1, 5, Projection.UP)]
    assert up.shape == (F, D)
    assert up.T.tobytes() == b"".join(row[2 * F :] for row in expert)


def test_per_expert_tensors_are_taken_whole(tiny_checkpoints: dict[str, Path]) -> None:
    at = tiny_checkpoints["qwen3.5-mtp"]
    _, mtp = reference_parts(ModelCheckpoint(at))
    raw, shape = raw_tensor(at, "mtp.layers.0.mlp.experts.7.down_proj.weight")
    down = mtp[ExpertKey(Part.MTP, 0, 7, Projection.DOWN)]
    assert list(down.shape) == shape == [D, F]
    assert down.tobytes() == raw


def test_the_parts_of_every_recipe(tiny_checkpoints: dict[str, Path], recipe: str) -> None:
    parts = reference_parts(ModelCheckpoint(tiny_checkpoints[recipe]))
    names = [part.part for part in parts]
    assert names == ([Part.DECODER, Part.MTP] if "mtp" in recipe else [Part.DECODER])
    assert [len(list(part)) for part in parts] == [len(part) for part in parts]


def test_the_source_names_file_tensor_and_slice(tiny_checkpoints: dict[str, Path]) -> None:
    (part,) = reference_parts(ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"]))
    source = part.source(ExpertKey(Part.DECODER, 1, 5, Projection.UP))
    assert str(source) == f"model-00002-of-00004.safetensors {FUSED}[5, :, 48:96]"


def test_an_expert_is_read_alone_and_once(
    tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up of a fused expert are views of one block, read when the first is asked for."""
    read: list[int] = []
    bits = LocalFile.bits

    def count(file: LocalFile, *where: Any) -> Bits:
        read.append((found := bits(file, *where)).nbytes)
        return found

    (part,) = reference_parts(ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"]))
    monkeypatch.setattr(LocalFile, "bits", count)
    gate, up = (part[ExpertKey(Part.DECODER, 1, 5, p)] for p in (Projection.GATE, Projection.UP))
    assert read == [gate.nbytes + up.nbytes]
    assert not gate.flags.owndata
    assert gate.base is up.base
    assert part[ExpertKey(Part.DECODER, 1, 5, Projection.DOWN)].nbytes == read[1]


@pytest.mark.parametrize(
    "module", ["harness.families.experts", "harness.explain.diagnosis", "harness.report.report"]
)
def test_the_reference_imports_nothing_under_test(module: str, tmp_path: Path) -> None:
    """Neither the stack nor what could have been patched by it is imported by the oracle."""
    code = (
        f"import sys, {module}\n"
        "from harness.families.model_checkpoint import ModelCheckpoint\n"
        "from harness.families.experts import reference_parts\n"
        "from harness.synthetic.writer import write_checkpoint\n"
        f"path = write_checkpoint('qwen3.5-mtp', {str(tmp_path / 'c')!r}).path\n"
        "for part in reference_parts(ModelCheckpoint(path)):\n"
        "    for key in part: part[key].tobytes()\n"
        "under_test = {'vllm', 'tpu_inference', 'transformers', 'torch', 'jax', 'safetensors',\n"
        "              'runai_model_streamer', 'torchax'}\n"
        "print(sorted(under_test & {name.split('.')[0] for name in sys.modules}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("count", ["2", None, 2.0, -1, True])
def test_a_number_of_layers_that_is_none(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, count: object
) -> None:
    path = shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "c")
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = count
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"num_hidden_layers is {count!r} .*config.json"):
        reference_parts(ModelCheckpoint(path))
