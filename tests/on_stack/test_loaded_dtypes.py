"""What the real stack makes of tensors that are stored in other types than the model's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.explain.causes import Cause
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.load.targets.known_targets import target_named
from harness.report.report import Status
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.retyping import cast, overwrite, relabelled

STATE = "model.language_model.layers.0.linear_attn.A_log"
#: Every kind of tensor in a type that is not bf16; of parameters made of several, one or two.
MIXED = {
    r".*\.A_log": "F16",
    r".*\.dt_bias": "F64",
    r".*norm\.weight": "F32",
    r".*\.self_attn\.[qk]_proj\.weight": "F32",
    r".*\.in_proj_(qkv|a)\.weight": "F32",
    r".*\.o_proj\.weight": "F16",
    r".*\.experts\.gate_up_proj": "F32",
    r".*\.experts\.down_proj": "F64",
    r".*\.mlp\.gate\.weight": "F32",
    r".*\.shared_expert\.down_proj\.weight": "F16",
    r".*embed_tokens\.weight": "F32",
    r"lm_head\.weight": "F16",
    r"model\.visual\..*\.(weight|bias)": "F32",
}


def test_tensors_of_all_types(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    path = cast(tiny_checkpoints["qwen3.5-moe"], tmp_path / "c", MIXED)
    count = ModelCheckpoint(path).entries[STATE].shape[0]  # values that bf16 has not
    overwrite(path, STATE, np.linspace(0.1, 7, count, dtype=np.float16).tobytes())
    report = verify(path, target, processes=load_processes)
    assert report.status is Status.EQUAL, (report.diagnoses, report.failure)


def test_tensors_that_the_reference_calls_something_else(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, target: Target, load_processes: LoadProcesses
) -> None:
    checkpoint = tiny_checkpoints["qwen3.5-moe"]
    tensors = {STATE.replace(".", r"\."): "F16", r".*layers\.1\.mlp\.experts\.down_proj": "F16"}
    reference = relabelled(checkpoint, tmp_path / "r", tensors)
    report = verify(checkpoint, target, reference=reference, processes=load_processes)
    assert {d.cause for d in report.diagnoses} == {Cause.OTHER_DTYPE}
    assert len(report.differences) == 1 + 8


@pytest.mark.parametrize(
    ("stated", "stored", "loads"),
    [
        ("float32", "F32", True),
        (None, "F32", True),
        # Upstream (0.26) loads no model in float16: what frees a linear layer's host weight raises.
        ("float16", "F16", False),
        ("float16", "BF16", False),
        (None, "F16", False),
    ],
)
def test_the_type_of_a_model(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    target: Target,
    load_processes: LoadProcesses,
    stated: str | None,
    stored: str,
    loads: bool,
) -> None:
    """What config.json asks for, or, where it asks for nothing, what the tensors are stored as."""
    path = cast(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "c", {r".*": stored})
    config = json.loads((path / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
        part |= {"dtype": stated} if stated else {}
    (path / "config.json").write_text(json.dumps(config))
    report = verify(path, target, processes=load_processes)
    if loads:
        assert report.status is Status.EQUAL, (report.diagnoses, report.failure)
    else:
        assert report.failure is not None
        assert report.failure.frames[-1].text == "layer.weight.untyped_storage().resize_(0)"


def test_a_vocabulary_on_eight_devices(tmp_path: Path, load_processes: LoadProcesses) -> None:
    """500 rows are padded to 512, 64 a device; the last one's last 12 are zeros."""
    path = write_checkpoint("qwen3-vl-moe", tmp_path / "c", shapes="tiny:vocabulary").path
    report = verify(path, target_named("emulated", 8), processes=load_processes)
    assert report.status is Status.EQUAL, (report.diagnoses, report.failure)
    assert report.parameters[0].padding_bytes == 2 * 12 * 128 * 2
