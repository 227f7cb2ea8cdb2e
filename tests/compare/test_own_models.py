"""Parameters as tpu-inference's own models hold them: equal where they are, one bit is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.compare.difference import BitsDiffer, Difference, Kind
from harness.compare.parameter_comparison import ParameterComparison
from harness.devices.parameter_layout import Packing
from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from tests.support.own_packing import OwnParameters, changed
from tests.support.parameter_packing import Packed, line

LAYER = "model.language_model.layers"
VISION = "model.vision_tower"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("gemma4", tmp_path_factory.mktemp("own") / "gemma4", tied=True).path


def opened(path: Path) -> ModelCheckpoint:
    checkpoint = ModelCheckpoint(path)
    checkpoint.family = checkpoint.family.served_by_jax()
    return checkpoint


def compared(device: OwnParameters) -> tuple[list[Difference], ParameterComparison]:
    (part,) = reference_parts(device.checkpoint)
    comparison = ParameterComparison(
        part, device.tensors(), line(device.devices), packing=Packing()
    )
    return list(comparison.differences()), comparison


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_faithful_device_is_equal(gemma: Path, devices: int) -> None:
    device = OwnParameters(opened(gemma), devices)
    if devices == 8:  # the tiny vision tower has four heads, each 16 wide
        device.packed = {n: p for n, p in device.packed.items() if not n.startswith(VISION)}
    differences, comparison = compared(device)
    lost = [d for d in differences if not str(getattr(d, "name", "")).startswith(VISION)]
    assert lost == []
    assert comparison.tally.compared == comparison.tally.parameters == len(device.packed)


def test_every_tensor_is_in_a_parameter(gemma: Path) -> None:
    device = OwnParameters(opened(gemma))
    _, comparison = compared(device)
    assert set(comparison.sources) == {n for n in device.checkpoint.entries if ".experts." not in n}


@pytest.mark.parametrize(
    ("parameter", "at", "source", "index"),
    [
        # [inputs, heads, width]: head 3 of eight, and its element 5, is row 3 · 64 + 5
        (f"{LAYER}.0.self_attn.q_proj.weight", (7, 3, 5), "q_proj.weight", (197, 7)),
        (f"{LAYER}.0.self_attn.k_proj.weight", (7, 3, 5), "k_proj.weight", (197, 7)),
        # two heads over four devices: each is cut
        (f"{LAYER}.1.self_attn.k_proj.weight", (7, 1, 5), "k_proj.weight", (133, 7)),
        (f"{LAYER}.1.self_attn.k_proj.weight", (7, 0, 127), "k_proj.weight", (127, 7)),
        (f"{LAYER}.1.self_attn.o_proj.weight", (2, 5, 9), "o_proj.weight", (9, 261)),
        # 48 columns a device, gate's before up's
        (f"{LAYER}.0.mlp.gate_up_proj.weight", (7, 50), "gate_proj.weight", (26, 7)),
        (f"{LAYER}.0.router.proj.weight", (7, 2), "router.proj.weight", (2, 7)),
        (f"{LAYER}.0.router.per_expert_scale", (2,), "per_expert_scale", (2,)),
        (f"{LAYER}.0.layer_scalar", (0,), "layer_scalar", (0,)),
        ("model.language_model.embed_tokens.weight", (500, 3), "embed_tokens.weight", (500, 3)),
        (f"{VISION}.layers.1.self_attn.v_proj.weight", (7, 3, 5), "v_proj.linear.weight", (53, 7)),
        (
            f"{VISION}.patch_embedder.position_embedding_table", (9000, 1, 5),
            "position_embedding_table", (1, 9000, 5),
        ),
        (
            "model.embed_vision.embedding_projection.weight", (7, 90),
            "embedding_projection.weight", (90, 7),
        ),
    ],
)  # fmt: skip
def test_one_bit_is_seen_where_it_is(
    gemma: Path, parameter: str, at: tuple[int, ...], source: str, index: tuple[int, ...]
) -> None:
    device = OwnParameters(opened(gemma))
    held = device.packed[parameter]
    device.packed[parameter] = Packed(changed(held.array, at), held.axis)
    (difference,), _ = compared(device)
    assert isinstance(difference, BitsDiffer)
    assert difference.parameter == parameter
    assert difference.source is not None
    assert str(difference.source).endswith(source)
    assert difference.index == index


@pytest.mark.parametrize(
    ("parameter", "axis", "kind"),
    [
        (f"{LAYER}.0.self_attn.q_proj.weight", None, Kind.SHARDING),
        (f"{LAYER}.1.self_attn.k_proj.weight", None, Kind.SHARDING),
        (f"{LAYER}.0.self_attn.k_proj.weight", 2, Kind.BITS),
        (f"{LAYER}.0.router.proj.weight", 0, Kind.SHARDING),
    ],
)
def test_what_is_cut_otherwise_is_seen(
    gemma: Path, parameter: str, axis: int | None, kind: Kind
) -> None:
    device = OwnParameters(opened(gemma))
    device.packed[parameter] = Packed(device.packed[parameter].array, axis)
    differences, _ = compared(device)
    assert kind in {each.kind for each in differences}
    assert {each.parameter for each in differences} == {parameter}


def test_heads_and_their_width_exchanged_are_seen(gemma: Path) -> None:
    device = OwnParameters(opened(gemma))
    name = f"{LAYER}.0.self_attn.q_proj.weight"
    array = device.packed[name].array
    device.packed[name] = Packed(np.ascontiguousarray(array.transpose(0, 2, 1)), 1)
    differences, _ = compared(device)
    assert {each.kind for each in differences} == {Kind.BITS}
