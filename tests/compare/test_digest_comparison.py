"""Comparing by digests finds what reading every bit back finds, and names it alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest

from harness.base.errors import BadInput
from harness.compare import expert_comparison as compare
from harness.compare.difference import Difference, Kind
from harness.compare.digest_comparison import Method
from harness.compare.expert_comparison import PartComparison
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.programs import Askable, Programs
from harness.devices.tensors import DevicePart, DeviceTensor
from harness.families.experts import ReferencePart
from tests.support.host_devices import HOSTS, of_host
from tests.support.packing import PackedDevice, sharded


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
    unable = replace(tensor, shards=tuple(replace(s, held=None) for s in apart.shards))
    assert not Method.AUTO.by_digests([tensor])
    assert Method.AUTO.by_digests([apart])
    assert not Method.AUTO.by_digests([unable])
    assert not Method.READBACK.by_digests([apart])
    assert not Method.READBACK.by_digests([unable])
    assert Method.DIGESTS.by_digests([tensor])


def test_digests_that_a_device_cannot_make_are_refused(decoder: ReferencePart) -> None:
    device = PackedDevice(decoder)
    part = device.part()
    tensors = {
        parameter: replace(t, shards=tuple(replace(s, held=None) for s in t.shards))
        for parameter, t in part.layers[1].items()
    }
    unable = replace(part, layers={**part.layers, 1: tensors})
    with pytest.raises(BadInput, match=r"digests cannot be used for cpu:1 \(--compare digests\)"):
        list(PartComparison(decoder, unable, method=Method.DIGESTS).differences())
    assert list(PartComparison(decoder, unable, method=Method.AUTO).differences()) == []


def with_w13(device: PackedDevice, change: Callable[[DeviceTensor], DeviceTensor]) -> DevicePart:
    """The device with its first layer's w13 changed."""
    part = device.part()
    layer = {**part.layers[0], Parameter.W13: change(part.layers[0][Parameter.W13])}
    return replace(part, layers={**part.layers, 0: layer})


def cut_by_rows(device: PackedDevice) -> Callable[[DeviceTensor], DeviceTensor]:
    return lambda t: sharded(t.name, device.arrays[0][Parameter.W13], 1, device.mesh)


def overlapping(device: PackedDevice) -> Callable[[DeviceTensor], DeviceTensor]:
    """The first shard holds the second's part as well."""
    array = device.arrays[0][Parameter.W13]

    def change(tensor: DeviceTensor) -> DeviceTensor:
        first, *others = tensor.shards
        wide = sharded(tensor.name, array, 2, device.mesh[:2]).shards[0]
        return replace(tensor, shards=(replace(wide, device=first.device), *others))

    return change


@pytest.mark.parametrize("misplace", [cut_by_rows, overlapping])
@pytest.mark.parametrize("fault", ["none", "bit", "padding"])
def test_shards_of_another_partition_are_read_back(
    decoder: ReferencePart,
    misplace: Callable[[PackedDevice], Callable[[DeviceTensor], DeviceTensor]],
    fault: str,
) -> None:
    device = PackedDevice(decoder)
    if fault != "none":
        device.arrays[0][Parameter.W13][3, 5, 2 if fault == "bit" else 100] ^= 1
    part = with_w13(device, misplace(device))
    by_digests, by_bits = (
        list(PartComparison(decoder, part, method=method).differences())
        for method in (Method.DIGESTS, Method.READBACK)
    )
    assert by_digests == by_bits
    kinds = {Kind.SHARDING} | {"none": set(), "bit": {Kind.BITS}, "padding": {Kind.PADDING}}[fault]
    assert {d.kind for d in by_digests} == kinds


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda t: replace(t, shape=t.shape[:2], shards=tuple(
            replace(s, index=s.index[:2]) for s in t.shards)), Kind.SHAPE),
        (lambda t: replace(t, dtype="F64"), Kind.DTYPE),
    ],
    ids=["rank", "dtype"],
)  # fmt: skip
def test_an_array_that_cannot_be_read_is_not_summed(
    decoder: ReferencePart, change: Callable[[DeviceTensor], DeviceTensor], kind: Kind
) -> None:
    def spoilt(tensor: DeviceTensor) -> DeviceTensor:
        class Never(Programs):
            def start(self, asked: object) -> NoReturn:
                raise AssertionError("the device was asked")

        changed, held = change(tensor), Askable(None, Never())
        return replace(changed, shards=tuple(replace(s, held=held) for s in changed.shards))

    device = PackedDevice(decoder)
    device.arrays[0][Parameter.W2][2, 3, 4] ^= 1  # the other array is compared all the same
    part = with_w13(device, spoilt)
    differences = list(PartComparison(decoder, part, method=Method.DIGESTS).differences())
    assert [(d.layer, d.kind) for d in differences] == [(0, kind), (0, Kind.BITS)]


def test_a_digest_that_differs_while_the_bits_do_not_is_no_equality(
    decoder: ReferencePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "digests_of_expert", lambda *_: [np.zeros((3, 4), np.uint32)])
    with pytest.raises(RuntimeError, match="its bits do not"):
        found(decoder, PackedDevice(decoder), Method.DIGESTS)
