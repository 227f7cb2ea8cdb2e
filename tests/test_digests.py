"""Comparing by digests finds what reading every bit back finds, and names it alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import compare
from harness.compare import PartComparison
from harness.difference import Difference
from harness.digests import Method
from harness.experts import ReferencePart
from harness.layout import Backend, Parameter
from harness.load import LoadProcesses
from harness.report import Status
from harness.target import Target
from harness.verification import verify
from tests.packing import PackedDevice
from tests.test_held import HOSTS, of_host
from tests.test_verification import FLIPS, with_one_byte_flipped


def found(decoder: ReferencePart, device: PackedDevice, method: Method) -> list[Difference]:
    comparison = PartComparison(decoder, device.part(), backend=device.backend, method=method)
    return list(comparison.differences())


@pytest.mark.parametrize("backend", Backend)
def test_a_faithful_device_is_equal(decoder: ReferencePart, backend: Backend) -> None:
    device = PackedDevice(decoder, backend=backend)
    tallies = []
    for method in (Method.READBACK, Method.DIGESTS):
        comparison = PartComparison(decoder, device.part(), backend=backend, method=method)
        assert list(comparison.differences()) == []
        tallies.append(comparison.tally)
    assert tallies[0] == tallies[1]


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("parameter", Parameter)
def test_any_changed_bit_is_found_and_placed_as_by_reading_back(
    decoder: ReferencePart, backend: Backend, parameter: Parameter
) -> None:
    device = PackedDevice(decoder, backend=backend)
    array, rng = device.arrays[1][parameter], np.random.default_rng(8)
    for _ in range(6):  # some of them in the padding
        at = tuple(int(rng.integers(size)) for size in array.shape)
        array[at] ^= 1 << int(rng.integers(16))
        by_bits = found(decoder, device, Method.READBACK)
        assert len(by_bits) == 1
        assert found(decoder, device, Method.DIGESTS) == by_bits
        array[at] = PackedDevice(decoder, backend=backend).arrays[1][parameter][at]


@pytest.mark.parametrize("backend", [Backend.GMM_TP, Backend.GMM_EP])
@pytest.mark.parametrize("hosts", HOSTS)
def test_several_hosts(
    decoder: ReferencePart, backend: Backend, hosts: tuple[tuple[int, ...], ...]
) -> None:
    device = PackedDevice(decoder, backend=backend)
    device.arrays[1][Parameter.W2][5, 20, 30] ^= 1
    differences = []
    for numbers in hosts:
        part = of_host(device, numbers)
        comparison = PartComparison(decoder, part, backend=backend, method=Method.DIGESTS)
        differences += list(comparison.differences())
    assert [(d.layer, d.expert, d.projection) for d in differences] == [(1, 5, "down_proj")]


def test_auto_reads_back_where_memory_is_shared(decoder: ReferencePart) -> None:
    tensor = PackedDevice(decoder).tensor(0, Parameter.W2)
    apart = replace(tensor, shards=tuple(replace(s, in_host_memory=False) for s in tensor.shards))
    unable = replace(tensor, shards=tuple(replace(s, shares=None) for s in apart.shards))
    assert not Method.AUTO.by_digests([tensor])
    assert Method.AUTO.by_digests([apart])
    assert not Method.AUTO.by_digests([unable])
    assert not Method.READBACK.by_digests([apart])
    assert Method.DIGESTS.by_digests([tensor])


def test_a_digest_that_differs_while_the_bits_do_not_is_no_equality(
    decoder: ReferencePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "reference_digest", lambda *_: np.zeros(4, np.uint32))
    with pytest.raises(RuntimeError, match="its bits do not"):
        found(decoder, PackedDevice(decoder), Method.DIGESTS)


def test_a_real_load_by_digests(
    tiny_checkpoints: dict[str, Path],
    target: Target,
    load_processes: LoadProcesses,
    tmp_path: Path,
) -> None:
    recipe = "qwen3-vl-moe"
    path, flip = tiny_checkpoints[recipe], FLIPS[recipe][:2]
    reference = with_one_byte_flipped(path, tmp_path / "reference", *flip)
    reports = [
        verify(path, target, reference=reference, method=method, processes=load_processes)
        for method in (Method.READBACK, Method.DIGESTS)
    ]
    assert [report.status for report in reports] == [Status.DIFFERENT] * 2
    assert reports[0].differences == reports[1].differences
    assert reports[0].tallies == reports[1].tallies
    assert "--compare digests" in reports[1].repeat
