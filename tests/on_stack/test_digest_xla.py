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
from harness.devices.digest_xla import XlaPrograms
from harness.devices.expert_layout import Backend, Span, expert_layout
from harness.devices.programs import Askable, Rectangle, Shares, ask

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
        experts = held.as_slice() if axis == 0 else slice(None)
        asked = Shares(data.shape[0], tuple(rectangles))
        (answer,) = ask([(str(device), Askable(data, XlaPrograms()), asked)])
        part = answer.words if rectangles else None
        if part is not None:
            found[experts] += part.sum(axis=0, dtype=np.uint32)
    wanted = np.array([digest(m, 0 if down else 1) for m in matrices])
    assert (found == wanted).all(), (backend, projection)
print("equal")
"""


FEATURES = """
import jax, ml_dtypes, numpy as np
from harness.devices.digest import feature_sums
from harness.devices.digest_xla import XlaPrograms
from harness.devices.programs import FeatureSums, Askable, ask

rng, questions, wanted = np.random.default_rng(0), [], []
for number, (shape, sizes, axis, first, dtype) in enumerate([
    ((48, 136), (48, 136), 0, 0, "bfloat16"),  # a matrix, and a part of its inputs
    ((48, 136), (48, 136), 0, 12, "bfloat16"),
    ((136, 48), (136, 48), 1, 0, "bfloat16"),  # a transposed one
    ((136, 48), (136, 48), 1, 12, "bfloat16"),
    ((7, 5), (7, 5), 0, 0, "bfloat16"),  # whose rows end within a word
    ((5, 7), (5, 7), 1, 0, "bfloat16"),
    ((40,), (40, 1), 0, 0, "bfloat16"),  # a norm
    ((), (1, 1), 0, 0, "float32"),
    ((24,), (24, 1), 0, 0, "float32"),  # a widened state
    ((8, 3, 2, 4), (8, 24), 0, 0, "bfloat16"),  # a convolution
    ((1, 8, 64), (8, 64), 0, 0, "float8_e4m3fn"),
    ((64, 9), (64, 9), 1, 3, "float8_e4m3fn"),
    ((6, 20), (20, 6), 0, 0, "bfloat16"),  # seen with its axes exchanged
    ((3, 5, 8), (5, 24), 0, 0, "bfloat16"),
]):
    dtype = np.dtype(dtype)
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    array = bits.view(dtype)[..., 0]
    device = jax.devices()[number % 2]
    held = Askable(jax.device_put(array, device), XlaPrograms())
    exchanged = shape if len(shape) > 1 and sizes[0] == shape[1] != shape[0] else ()
    question = FeatureSums(sizes, axis, first, exchanged)
    questions.append((str(device), held, question))
    matrix = question.matrix(array.view(f"u{dtype.itemsize}"))
    wanted.append(feature_sums(matrix if axis == 0 else matrix.T, first=first))
for (_, _, asked), answer, known in zip(questions, ask(questions), wanted, strict=True):
    assert (answer.words == known).all(), asked
print("equal")
"""


def run(program: str, *arguments: str) -> None:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | flags, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.stdout == "equal\n", ended.stderr


@pytest.mark.parametrize("backend", ["gmm_tp", "gmm_ep", "fused_moe", "xla_tp", "xla_ep"])
def test_shards_of_eight_devices_add_up_to_the_host_digest(backend: str) -> None:
    run("import ml_dtypes\n" + PROGRAM, backend)


def test_sums_of_features_are_the_hosts() -> None:
    """Of all that two devices are asked at once, whatever the types and shapes."""
    run(FEATURES)
