from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.devices.expert_layout import Parameter, Span
from harness.devices.jax_arrays import from_jax
from harness.devices.tensors import DeviceTensor, device_part, is_of_experts
from harness.families.family import Part
from harness.families.known_families import family_named
from tests.support.packing import sharded

ROOT = Path(__file__).parents[2]
MODULE = "mlp.experts"
MESH = ("cpu:1", "cpu:2")
WHOLE = np.arange(2 * 4 * 6, dtype=np.uint16).reshape(2, 4, 6)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(Span(0, 4), Span(0, 6)), (Span(1, 3), Span(2, 4)), (Span(0, 1), Span(0, 2))],
)
def test_a_rectangle_is_gathered_from_the_shards(axis: int, rows: Span, columns: Span) -> None:
    tensor = sharded("w", WHOLE, axis, MESH)
    wanted = WHOLE[1, rows.as_slice(), columns.as_slice()]
    assert np.array_equal(tensor.rectangle(1, rows, columns), wanted)


def test_experts_may_be_spread_over_the_shards() -> None:
    tensor = sharded("w", WHOLE, 0, MESH)
    for expert in range(2):
        got = tensor.rectangle(expert, Span(0, 4), Span(0, 6))
        assert np.array_equal(got, WHOLE[expert])
        holder = tensor.holder(expert, 0, 0)
        assert holder is not None
        assert holder.device == MESH[expert]


def test_one_shards_rectangle_is_a_view() -> None:
    tensor = sharded("w", WHOLE, 2, MESH)
    assert np.shares_memory(tensor.rectangle(0, Span(0, 4), Span(3, 5)), WHOLE)


def fake_jax_array() -> SimpleNamespace:
    """An array as JAX shows it, its two shards listed against their device ids."""
    shards = [
        SimpleNamespace(
            device=SimpleNamespace(platform="cpu", id=number + 1),
            index=(slice(None), slice(None), slice(3 * number, 3 * number + 3)),
            data=WHOLE[:, :, 3 * number : 3 * number + 3],
        )
        for number in (1, 0)
    ]
    return SimpleNamespace(shape=WHOLE.shape, dtype="bfloat16", addressable_shards=shards)


def test_a_jax_array_is_seen_by_its_shards() -> None:
    tensor = from_jax("w", fake_jax_array(), in_host_memory=True)
    assert tensor.dtype == "BF16"
    assert [shard.device for shard in tensor.shards] == list(MESH)
    assert tensor.shards[1].index == (Span(0, 2), Span(0, 4), Span(3, 6))
    assert np.array_equal(tensor.rectangle(1, Span(0, 4), Span(0, 6)), WHOLE[1])


READ_BACK = """
import gc
import jax, ml_dtypes, numpy as np
from harness.base.bits import FROM_ARRAY_NAME
from harness.devices.jax_arrays import from_jax

FROM_ARRAY_NAME["int4"] = "U8"  # JAX copies what has less than a byte an element, CPU or not
whole = np.arange(8192 * 8192, dtype=np.uint8).reshape(8192, 8192) % 8
mesh = jax.sharding.Mesh(jax.devices("cpu")[:1], ("model",))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
arrays = [jax.device_put(whole.astype(ml_dtypes.int4), spread) for _ in range(4)]
shards = [from_jax("w", array, in_host_memory=False).shards[0] for array in arrays]

def private():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) >> 10

gc.collect()
gc.disable()
before = private()
for shard in shards:
    assert np.array_equal(shard.fetch(3), whole[3])
    assert np.array_equal(shard.fetch(...), whole)
print(private() - before)
"""


@pytest.mark.slow
def test_what_is_read_back_of_a_device_is_kept_by_no_array_of_its() -> None:
    """JAX's own arrays, 64 MiB each: of a load of 62 GB they would keep 4 GB in the host's memory.

    One may be left, as what is dropped goes at the next call of JAX.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", READ_BACK],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert int(ran.stdout) < 2 * 64


@pytest.mark.parametrize("infix", ["", "routed_experts."])
def test_expert_arrays_are_found_under_either_name(infix: str) -> None:
    names = [
        f"vllm_model.model.layers.3.mlp.experts.{infix}w13_weight",
        f"vllm_model.model.layers.3.mlp.experts.{infix}w2_weight",
        f"vllm_model.model.layers.3.mlp.experts.{infix}w2_bias",
        "vllm_model.model.layers.3.mlp.gate.weight",
        "vllm_model.model.layers.3.mlp.shared_expert.down_proj.weight",
    ]
    part = device_part(
        [DeviceTensor(name, "BF16", (2, 4, 6), ()) for name in names], MESH, module=MODULE
    )
    assert {p: t.name for p, t in part.layers[3].items()} == {
        Parameter.W13: names[0],
        Parameter.W2: names[1],
    }
    assert part.unknown == (names[2],)


@pytest.mark.parametrize(
    ("name", "of_experts"),
    [
        ("vllm_model.model.layers.3.mlp.experts.w13_weight", True),
        ("vllm_model.model.layers.3.mlp.experts.routed_experts.w2_bias", True),
        ("vllm_model.model.layers.3.mlp.experts.other.w2_weight", False),
        ("vllm_model.model.layers.3.mlp.experts.routed_experts.w2.weight", False),
        ("vllm_model.model.layers.3.mlp.shared_expert.down_proj.weight", False),
    ],
)
def test_what_is_no_expert_array_is_left_to_the_comparison_of_parameters(
    name: str, of_experts: bool
) -> None:
    part = device_part([DeviceTensor(name, "BF16", (2, 4, 6), ())], MESH, module=MODULE)
    assert is_of_experts(name, family_named("qwen3-moe"), Part.DECODER) is of_experts
    assert bool(part.layers or part.unknown) is of_experts


FUSED = np.arange(2 * 2 * 3 * 5, dtype=np.uint16).reshape(2, 2, 3, 5)


def test_middle_axes_count_as_one() -> None:
    folded = sharded("w", FUSED, 0, MESH).folded()
    assert folded.shape == (2, 6, 5)
    for expert in range(2):
        got = folded.rectangle(expert, Span(2, 6), Span(1, 5))
        assert np.array_equal(got, FUSED[expert].reshape(6, 5)[2:, 1:])


def test_a_cut_through_a_middle_axis_is_left_to_be_seen() -> None:
    tensor = sharded("w", FUSED, 1, MESH)
    assert tensor.folded() is tensor
