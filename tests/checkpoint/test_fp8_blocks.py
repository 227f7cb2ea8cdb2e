"""What FP8 weights mean, and the bound a second quantisation keeps."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from harness.base.bits import E4M3
from harness.base.errors import BadInput
from harness.checkpoint.fp8_blocks import (
    EXPERTS,
    LARGEST,
    LINEAR,
    Arithmetic,
    block_values,
    output_values,
    requantisation_bound,
    scale_bound,
    scales_as_f32,
)
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from tests.support.quantising import matrix, quantised_anew
from tests.support.silent_worlds import Tensor, Tensors, change_tensors, some


def test_every_code_means_what_ml_dtypes_says() -> None:
    wanted = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(E4M3, wanted, equal_nan=True)
    assert np.nanmax(E4M3) == LARGEST


@pytest.mark.parametrize("arithmetic", [EXPERTS, LINEAR])
def test_a_second_quantisation_keeps_the_bound_and_uses_it(arithmetic: Arithmetic) -> None:
    codes, scales = matrix()
    values = block_values(codes, scales)
    new_codes, new_scales = quantised_anew(values, arithmetic)
    off = np.abs(output_values(new_codes, new_scales) - values)
    bound = requantisation_bound(values, new_scales, arithmetic)
    assert (off <= bound).all()
    assert (off / np.maximum(bound, 1e-30)).max() > 0.8
    scale, slack = scale_bound(values, arithmetic)
    assert (np.abs(new_scales - scale) <= slack).all()


def test_another_scale_breaks_the_bound() -> None:
    codes, scales = matrix()
    values = block_values(codes, scales)
    wrong = scales.copy()
    wrong[1, 2] *= 1.25
    new_codes, new_scales = quantised_anew(block_values(codes, wrong))
    off = np.abs(output_values(new_codes, new_scales) - values)
    broken = off > requantisation_bound(values, new_scales, EXPERTS)
    assert broken[128:256, 256:].mean() > 0.8
    assert not broken[:128].any()


def test_a_transposed_grid_is_refused_or_breaks_the_bound() -> None:
    codes, scales = matrix(256, 384)
    with pytest.raises(ValueError, match="scales"):
        block_values(codes, scales.T)
    codes, scales = matrix(256, 256)
    values = block_values(codes, scales)
    new_codes, new_scales = quantised_anew(block_values(codes, scales.T))
    off = np.abs(output_values(new_codes, new_scales) - values)
    assert (off > requantisation_bound(values, new_scales, EXPERTS)).mean() > 0.4


def test_bf16_scales_are_widened() -> None:
    scales = np.array([[0.5, 1.25]], dtype=ml_dtypes.bfloat16)
    assert scales_as_f32(scales.view(np.uint16), "BF16").tolist() == [[0.5, 1.25]]
    assert scales_as_f32(np.array([[3.0]], np.float32).view(np.uint32), "F32").tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("scales", "told"),
    [(None, "are absent"), (some((1, 2)), r"are \[1, 2\]")],
    ids=["absent", "of another grid"],
)
def test_scales_that_do_not_fit_their_codes(
    scales: Tensor | None, told: str, tmp_path: Path
) -> None:
    path = write_checkpoint(
        "qwen3-vl-moe", tmp_path / "c", shapes="tiny:blocks", quantised="fp8"
    ).path
    name = "model.language_model.layers.0.self_attn.q_proj.weight_scale_inv"

    def change(tensors: Tensors) -> None:
        del tensors[name]
        if scales is not None:
            tensors[name] = scales

    change_tensors(path, change)
    with pytest.raises(BadInput, match=told):
        ModelCheckpoint(path)
