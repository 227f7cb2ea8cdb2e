"""Hosts that each see some of the devices see all of every expert together, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.compare.difference import Difference, Unequal
from harness.compare.expert_comparison import PartComparison
from harness.compare.words import device_words
from harness.devices.expert_layout import Backend, Parameter
from harness.explain.causes import Cause
from harness.explain.diagnosis import Explainer
from harness.families.experts import ReferencePart
from harness.load.ledger import POISON
from tests.support.differences import elements
from tests.support.host_devices import HOSTS, of_host
from tests.support.packing import PackedDevice

BACKENDS = [Backend.GMM_TP, Backend.GMM_EP, Backend.FUSED_MOE]


def compared(
    decoder: ReferencePart, device: PackedDevice, numbers: tuple[int, ...]
) -> tuple[PartComparison, list[Difference]]:
    part = of_host(device, numbers)
    comparison = PartComparison(decoder, part, backend=device.backend)
    return comparison, list(comparison.differences())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hosts", HOSTS)
def test_all_of_it_is_compared_once(
    decoder: ReferencePart, backend: Backend, hosts: tuple[tuple[int, ...], ...]
) -> None:
    device = PackedDevice(decoder, backend=backend)
    alone = PartComparison(decoder, device.part(), backend=backend)
    assert list(alone.differences()) == []
    tallies = []
    for numbers in hosts:
        comparison, differences = compared(decoder, device, numbers)
        assert differences == []
        tallies.append(comparison.tally)
    assert sum(t.bytes_compared for t in tallies) == alone.tally.bytes_compared
    assert sum(t.padding_bytes for t in tallies) == alone.tally.padding_bytes
    experts = [t.experts_compared for t in tallies]
    divided = backend is Backend.GMM_TP
    assert (min(experts) if divided else sum(experts)) == alone.tally.experts
    assert {t.divided for t in tallies} == {divided}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parameter", Parameter)
@pytest.mark.parametrize("hosts", HOSTS)
def test_a_bit_is_found_by_the_host_that_holds_it_and_placed_in_the_whole(
    decoder: ReferencePart,
    backend: Backend,
    parameter: Parameter,
    hosts: tuple[tuple[int, ...], ...],
) -> None:
    device = PackedDevice(decoder, backend=backend)
    array = device.arrays[1][parameter]
    rng = np.random.default_rng(7)
    alone = PartComparison(decoder, device.part(), backend=backend)
    for _ in range(4):
        at = tuple(int(rng.integers(n)) for n in array.shape)
        array[at] ^= 1
        (whole,) = alone.differences()
        found = [d for numbers in hosts for d in compared(decoder, device, numbers)[1]]
        (difference,) = found
        assert replace_total(difference, whole) == whole
        array[at] ^= 1


def replace_total(difference: Difference, whole: Difference) -> Unequal:
    """A host counts the elements it holds of the matrix; all else is as one host would say."""
    from msgspec.structs import replace as with_fields

    assert elements(difference).total <= elements(whole).total
    return with_fields(elements(difference), total=elements(whole).total)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_never_written_on_one_host_is_told_as_such(
    decoder: ReferencePart, backend: Backend
) -> None:
    device = PackedDevice(decoder, backend=backend)
    for number in (2, 3):
        for shard in device.tensor(1, Parameter.W2).shards[number : number + 1]:
            device.arrays[1][Parameter.W2][tuple(s.as_slice() for s in shard.index)] = POISON[2]
    assert compared(decoder, device, (0, 1))[1] == []
    comparison, differences = compared(decoder, device, (2, 3))
    causes = {d.cause for d in Explainer(comparison).diagnose(differences)}
    assert Cause.UNWRITTEN in causes


def test_a_shard_its_host_does_not_have_is_misplaced(decoder: ReferencePart) -> None:
    device = PackedDevice(decoder)
    part = of_host(device, (2, 3))
    w2 = part.layers[1][Parameter.W2]
    layers = dict(part.layers)
    layers[1] = {**layers[1], Parameter.W2: replace(w2, shards=w2.shards[:1])}
    comparison = PartComparison(decoder, replace(part, layers=layers))
    placed = [d for d in comparison.differences() if d.kind == "sharding"]
    assert [(d.device_name, d.shard, device_words(d)) for d in placed] == [("cpu:4", 3, "nothing")]
