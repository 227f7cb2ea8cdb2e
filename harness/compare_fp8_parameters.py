"""Compares FP8 linear layers by their values: codes and scales as the devices hold them.

tpu-inference takes their values as bf16, quantises them anew with one scale for each output
(``weight_scale``, f32), and orders codes and scales alike (:mod:`harness.fp8`). Replicas are
compared with each other bit for bit, and one of each by value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.checkpoint import Checkpoint
from harness.compare_fp8 import departs
from harness.device import DeviceTensor
from harness.fp8 import LINEAR, SCALE_SUFFIX, scales_as_f32
from harness.placed import Placed, recovered
from harness.replicas import odd_replicas


def unequal_values(
    checkpoint: Checkpoint, weight: Placed, scales: Placed
) -> Iterator[tuple[DeviceTensor, dict[str, Any]]]:
    """What is off of a quantised parameter: an array and fields of a difference.

    Args:
        checkpoint: holds its codes and the scales of their blocks.
        weight: the parameter, codes [inputs, outputs] on the device.
        scales: its scales, [outputs] on the device, laid out as a bias would be.
    """
    for each in (weight, scales):
        for odd in odd_replicas(each.tensor):
            yield each.tensor, dict(odd)
    for name in weight.sources:
        entry = checkpoint.entries[f"{name}{SCALE_SUFFIX}"]
        reference, grid = checkpoint.bits(name), scales_as_f32(entry.bits(), entry.dtype)
        for copy in sorted({b.copy for b in weight.layout.blocks if b.source == name}):
            codes = recovered(weight, name, copy, "", reference)
            held = recovered(scales, name, copy, "", np.zeros(len(reference), dtype="<u4"))
            found = departs(codes, scales_as_f32(held, "F32"), reference, grid, LINEAR)
            if found:
                source = f"{entry.file.name} {name}" + (f" (copy {copy})" if copy else "")
                yield weight.tensor, {"source": source, **found}
