"""The device's digest is the host's, for every packing, summed up shard by shard."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, numpy as np, sys
from harness.families.experts import ExpertShape
from harness.families.family import Projection
from harness.devices.digest import digest
from harness.devices.digest_xla import Rectangle, shares
from harness.devices.expert_layout import Backend, Span, expert_layout

backend, mesh = Backend(sys.argv[1]), jax.devices()
assert len(mesh) == 8
layout = expert_layout(backend, ExpertShape(8, 144, 48, "BF16"), 8)
rng = np.random.default_rng(0)
for projection in Projection:
    blocks = layout.blocks_of(projection)
    parameter = blocks[0].parameter
    axis, shape = layout.sharded_axis[parameter], layout.shapes[parameter]
    down = projection is Projection.DOWN
    size = (8, 144, 48) if down else (8, 48, 144)
    matrices = rng.integers(0, 1 << 16, size, dtype=np.uint16)
    array = np.zeros(shape, np.uint16)
    for block in blocks:
        for e in range(8):
            array[e, block.rows.as_slice(), block.columns.as_slice()] = block.of(matrices[e])
    found = np.zeros((8, 4), np.uint32)
    for number, device in enumerate(mesh):
        held = layout.shard_span(parameter, number)
        index = [slice(None)] * 3
        index[axis] = held.as_slice()
        data = jax.device_put(array[tuple(index)].view("bfloat16"), device)
        rectangles = []
        for block in blocks:
            spans = [block.rows, block.columns]
            features = block.inputs if down else block.outputs
            place = 0 if block.transposed == down else 1  # the axis of intermediate features
            first = features.start
            if axis:
                start = max(held.start, spans[axis - 1].start)
                stop = min(held.stop, spans[axis - 1].stop)
                if start >= stop:
                    continue
                first += start - spans[axis - 1].start
                spans[axis - 1] = Span(start - held.start, stop - held.start)
            rectangles.append(Rectangle(*spans, 1 - place, first, 48))
        part = np.asarray(shares(data, tuple(rectangles))) if rectangles else None
        experts = held.as_slice() if axis == 0 else slice(None)
        if part is not None:
            found[experts] += part.sum(axis=0, dtype=np.uint32)
    wanted = np.array([digest(m, 0 if down else 1) for m in matrices])
    assert (found == wanted).all(), (backend, projection)
print("equal")
"""


@pytest.mark.parametrize("backend", ["gmm_tp", "gmm_ep", "fused_moe", "xla_tp", "xla_ep"])
def test_shards_of_eight_devices_add_up_to_the_host_digest(backend: str) -> None:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    program = "import ml_dtypes\n" + PROGRAM
    ended = subprocess.run(
        [sys.executable, "-c", program, backend],
        env=os.environ | flags, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.stdout == "equal\n", ended.stderr
