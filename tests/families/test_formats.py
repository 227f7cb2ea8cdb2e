"""Formats: how config.json announces them, and what an independent writer means by its tensors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.errors import BadInput
from harness.checkpoint.grids import grid_of
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.formats.format import UNCHANGED, Stored
from harness.families.formats.known_formats import format_named, format_of, formats
from harness.families.formats.nvfp4 import MODELOPT_FILE
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from harness.verification.verify import verify
from tests.support.partly_quantised import (
    with_a_layer_in_bf16,
    with_attention_quantised,
    with_cache_scales,
    with_its_own_quantisation_file,
    with_the_draft_in_bf16,
)

ml_dtypes = pytest.importorskip("ml_dtypes")


@pytest.mark.parametrize("name", formats())
def test_what_is_written_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    recipe = "gpt-oss" if formats()[name].fused else "qwen3-moe"
    path = write_checkpoint(
        recipe, tmp_path / "c", shapes="tiny:blocks", layers=1, experts=2, quantised=name
    ).path
    checkpoint = ModelCheckpoint(path)
    assert checkpoint.format == format_named(name)
    (part,) = reference_parts(checkpoint)
    for key in part:
        matrix = part.quantised(key)
        assert matrix.codes.shape == part.sizes_of(key.projection)
        assert np.isfinite(matrix.values).all()
        assert np.unique(matrix.codes).size > 8


_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


def compressed(**changed: Any) -> dict[str, Any]:
    group = {"weights": _WEIGHTS | changed, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


UNKNOWN: dict[str, dict[str, Any]] = {
    "FP8 in other blocks": {"quant_method": "fp8", "weight_block_size": [64, 128]},
    "FP8 without blocks": {"quant_method": "fp8"},
    "another order of groups": compressed(actorder="group"),
    "no group": compressed(group_size=None),
    "groups of half a word": compressed(group_size=4),
    "two groups of layers": {**compressed(), "config_groups": {"a": {}, "b": {}}},
    "no groups of layers": {**compressed(), "config_groups": {}},
    "groups that are a list": {**compressed(), "config_groups": []},
    "AWQ of eight bits": {"quant_method": "awq", "bits": 8, "group_size": 128},
    "AWQ for another kernel": {
        "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv",
    },
    "GPTQ in another order": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True,
    },
    "another ModelOpt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "something else": {"quant_method": "bitsandbytes"},
}  # fmt: skip


@pytest.mark.parametrize("config", UNKNOWN)
def test_what_no_format_describes_is_none(config: str) -> None:
    assert format_of(UNKNOWN[config]) is None


def test_a_format_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one of awq, fp8, ct-fp8-channel"):
        write_checkpoint("qwen3-moe", tmp_path / "c", quantised="int3")


@pytest.mark.parametrize("name", ["MOE_REQUANTIZE_WEIGHT_DTYPE", "MOE_REQUANTIZE_BLOCK_SIZE"])
def test_a_grid_of_the_users_own_is_refused(tmp_path: Path, name: str) -> None:
    path = write_checkpoint("qwen3-moe", tmp_path / "c", shapes="tiny:blocks", quantised="nvfp4")
    with pytest.raises(BadInput, match=f"{name}=int8 for a release in nvfp4"):
        verify(path.path, stream_options={name: "int8"})


def test_fp8_linear_layers_that_are_kept_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint("qwen3-moe", tmp_path / "c", shapes="tiny:blocks", quantised="fp8")
    with pytest.raises(BadInput, match="--experts-only"):
        verify(path.path, stream_options={UNCHANGED: "1"})


Partly = Callable[[Path, Path], Path]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("releases")
    return {
        name: write_checkpoint(
            "qwen3-moe", base / name, shapes="tiny:blocks", experts=2, quantised=name
        ).path
        for name, each in formats().items()
        if not each.fused
    }


LAYERS = "decoder layers [0] with experts in {}, and [1] with experts that are not quantised"
MORE = "a release in {} that quantises more than experts"


@pytest.mark.parametrize("name", [name for name, each in formats().items() if not each.fused])
@pytest.mark.parametrize(
    ("made", "said"),
    [(with_a_layer_in_bf16, LAYERS), (with_attention_quantised, MORE), (with_cache_scales, MORE)],
)
def test_what_is_quantised_in_part_is_refused(
    name: str, made: Partly, said: str, releases: dict[str, Path], tmp_path: Path
) -> None:
    path = made(releases[name], tmp_path / "c")
    if name == "fp8" and said is MORE:
        assert ModelCheckpoint(path).fp8  # whose linear layers are described
        return
    with pytest.raises(BadInput, match=re.escape(said.format(name))):
        reference_parts(ModelCheckpoint(path))
    if said is MORE:
        (part,) = reference_parts(ModelCheckpoint(path, experts_only=True))
        assert part.format == format_named(name)


@pytest.mark.parametrize("name", ["ct-int4", "nvfp4", "fp8"])
def test_a_draft_model_that_is_not_quantised_is_compared_by_its_bits(
    name: str, tmp_path: Path
) -> None:
    whole = write_checkpoint(
        "qwen3-next-mtp", tmp_path / "c", shapes="tiny:blocks", experts=2, quantised=name
    ).path
    decoder, draft = reference_parts(ModelCheckpoint(with_the_draft_in_bf16(whole, tmp_path / "d")))
    assert (decoder.part, decoder.format) == (Part.DECODER, format_named(name))
    assert (draft.part, draft.format, draft.shape.dtype) == (Part.MTP, None, "BF16")


def test_modelopts_own_file_is_read_where_config_says_nothing(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    path = with_its_own_quantisation_file(releases["nvfp4"], tmp_path / "c")
    assert ModelCheckpoint(path).format == format_named("nvfp4")
    file = path / MODELOPT_FILE
    file.write_text(file.read_text().replace('"NVFP4"', '"FP8"'))
    with pytest.raises(BadInput, match=r"an unsupported quantisation .*FP8.*hf_quant_config\.json"):
        ModelCheckpoint(path)


@pytest.mark.parametrize("group", [48, 96])
def test_groups_that_do_not_divide_a_matrix_are_refused(
    group: int, releases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    shutil.copytree(releases["ct-int4"], path)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"group_size": 32', f'"group_size": {group}'))
    with pytest.raises(BadInput, match=r"expert tensor .*weight_scale'"):
        reference_parts(ModelCheckpoint(path))


def test_another_key_of_configurations_is_read(releases: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c"
    shutil.copytree(releases["ct-int4"], path)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"quantization_config"', '"compression_config"'))
    assert ModelCheckpoint(path).format == format_named("ct-int4")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4_E2M1", "I4", "I8"])
def test_grids_are_those_of_ml_dtypes(dtype: str) -> None:
    """Values of all codes, and into which of them numbers are converted."""
    theirs = {
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F4_E2M1": ml_dtypes.float4_e2m1fn,
        "I4": ml_dtypes.int4, "I8": np.int8,
    }[dtype]  # fmt: skip
    grid = grid_of(dtype)
    codes = np.arange(len(grid.values), dtype=np.uint8)
    np.testing.assert_array_equal(grid.values, codes.view(theirs).astype(np.float32))
    numbers = np.linspace(-grid.largest, grid.largest, 20011, dtype=np.float32)
    cut = np.trunc(numbers) if dtype.startswith("I") else numbers
    found = cut.astype(theirs).view(np.uint8) & np.uint8(len(grid.values) - 1)
    assert ((grid.lower[found] <= numbers) & (numbers <= grid.upper[found])).all()
    right = found ^ 1  # its neighbour, which is none of it
    value = grid.values[right]
    inside = (grid.lower[right] < numbers) & (numbers < grid.upper[right])
    assert not (inside & (value != grid.values[found]) & ~np.isnan(value)).any()


def test_int4_is_what_compressed_tensors_packs() -> None:
    """The package that writes these releases; vLLM brings it."""
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-8, 8, (64, 96), dtype=torch.int8)
    packed = helpers.pack_to_int32(codes, 4)
    scales = torch.rand(64, 3).to(torch.bfloat16)
    stored = {
        "weight_packed": Stored(packed.numpy().view("<u4"), "I32"),
        "weight_scale": Stored(scales.view(torch.int16).numpy().view("<u2"), "BF16"),
    }
    matrix = format_named("ct-int4").decoded(stored, 64, 96)
    wide = scales.float().repeat_interleave(32, dim=1)
    np.testing.assert_array_equal(matrix.values, (codes.float() * wide).numpy())


def test_zero_points_are_what_compressed_tensors_packs() -> None:
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-8, 8, (64, 96), dtype=torch.int8)
    zeros = torch.randint(-8, 8, (64, 3), dtype=torch.int8)
    packed = helpers.pack_to_int32(codes, 4).numpy().view("<u4")
    stored = {
        "weight_packed": Stored(packed, "I32"),
        "weight_zero_point": Stored(
            helpers.pack_to_int32(zeros, 4, packed_dim=0).numpy().view("<u4"), "I32"
        ),
        "weight_scale": Stored(np.full((64, 3), 0x3F80, "<u2"), "BF16"),
    }
    matrix = format_named("ct-int4-zeros").decoded(stored, 64, 96)
    wide = zeros.repeat_interleave(32, dim=1)
    np.testing.assert_array_equal(matrix.values, (codes - wide).float().numpy())


def test_nvfp4_codes_are_what_compressed_tensors_packs() -> None:
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    known = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = known[torch.randint(0, 8, (64, 96))] * (torch.randint(0, 2, (64, 96)) * 2 - 1)
    scales = torch.rand(64, 6).add(0.5).to(torch.float8_e4m3fn)
    stored = {
        "weight": Stored(helpers.pack_fp4_to_uint8(values).numpy(), "U8"),
        "weight_scale": Stored(scales.view(torch.uint8).numpy(), "F8_E4M3"),
        "weight_scale_2": Stored(np.array([0x3F000000], "<u4"), "F32"),  # 0.5
    }
    matrix = format_named("nvfp4").decoded(stored, 64, 96)
    wide = scales.float().repeat_interleave(16, dim=1) * 0.5
    np.testing.assert_array_equal(matrix.values, (values * wide).numpy())


def test_mxfp4_is_what_transformers_reads() -> None:
    """transformers' own decoder of gpt-oss' blocks and scales."""
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks = torch.randint(0, 256, (64, 3, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (64, 3), dtype=torch.uint8)
    stored = {
        "blocks": Stored(blocks.numpy(), "U8"), "scales": Stored(scales.numpy(), "U8"),
    }  # fmt: skip
    matrix = format_named("mxfp4").decoded(stored, 64, 96)
    # of all experts, and transposed: [E, inputs, outputs]
    theirs = mxfp4.convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)
    np.testing.assert_array_equal(matrix.values, theirs[0].T.numpy())
