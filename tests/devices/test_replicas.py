"""Devices with memory of their own are asked what replicas digest to; one that differs is read."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest

from harness.base.bits import bits_dtype
from harness.devices.expert_layout import Span
from harness.devices.replicas import odd_replicas
from harness.devices.tensors import DeviceShard, DeviceTensor
from tests.support.packing import held


def tensor(arrays: list[Any], dtype: str, *, readable: bool) -> DeviceTensor:
    """One array, all of it on every device."""

    def fetch(array: Any) -> Any:
        def never(_: object) -> NoReturn:
            raise AssertionError("a replica was read back")

        return (lambda index: array[index]) if readable else never

    shape = arrays[0].shape
    index = tuple(Span(0, size) for size in shape)
    shards = tuple(
        DeviceShard(f"gpu:{n}", index, fetch(array), in_host_memory=False, held=held(array))
        for n, array in enumerate(arrays)
    )
    return DeviceTensor("scales", dtype, shape, shards)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16", "F32"])
@pytest.mark.parametrize("shape", [(), (5,), (6, 7), (4, 1, 9)])
def test_each_replica_is_asked(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    arrays = [np.asarray(rng.integers(0, 100, shape).astype(bits_dtype(dtype)))] * 3
    assert list(odd_replicas(tensor(arrays, dtype, readable=False))) == []
    arrays[2] = arrays[2].copy()
    last = tuple(size - 1 for size in shape)
    arrays[2][last] ^= 1
    (odd,) = odd_replicas(tensor(arrays, dtype, readable=True))
    assert (odd["device_name"], odd["reference_device"]) == ("gpu:2", "gpu:0")
    assert (odd["index"], odd["count"]) == (last, 1)
