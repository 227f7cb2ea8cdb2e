"""Quantised experts: a faithful load is equal, in every format; what is wrong is seen and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.grids import Quantised, Values
from harness.compare.difference import Difference, Kind, ValuesDiffer
from harness.compare.quantised_experts import QuantisedPartComparison, part_comparison
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.tensors import DevicePart
from harness.explain.causes import Cause, Diagnosis
from harness.explain.diagnosis import Explainer
from harness.families.experts import ExpertKey, ReferencePart, reference_parts
from harness.families.family import Part, Projection
from harness.families.formats.format import UNCHANGED
from harness.families.formats.known_formats import formats
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from tests.support.host_devices import seen_from
from tests.support.quantising import Altered, experts_on_device

#: Formats that upstream keeps as they are where it is asked to; AWQ it keeps anyway.
KEPT = ("fp8", "ct-int4", "nvfp4")


def recipe(name: str) -> str:
    return "gpt-oss" if formats()[name].fused else "qwen3-moe"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("formats")
    return {
        name: write_checkpoint(
            recipe(name), out / name, shapes="tiny:blocks", layers=1, experts=4, quantised=name
        ).path
        for name in formats()
    }


@dataclass(frozen=True)
class Way:
    """A format, and whether upstream is asked to keep it."""

    name: str
    unchanged: bool

    def __str__(self) -> str:
        return f"{self.name}-unchanged" if self.unchanged else self.name


#: What every release refuses: what it would be on a device is not known.
REFUSED = ("ct-int8", "ct-int4-zeros", "gptq")
WAYS = [Way(n, False) for n in formats() if n not in REFUSED] + [Way(n, True) for n in KEPT]


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    found: Way = request.param
    monkeypatch.setenv(UNCHANGED, str(int(found.unchanged)))
    return found


@pytest.fixture
def reference(checkpoints: dict[str, Path], way: Way) -> ReferencePart:
    return reference_parts(ModelCheckpoint(checkpoints[way.name]))[0]


def compared(
    reference: ReferencePart, altered: Altered = lambda key, matrix: matrix
) -> tuple[list[Difference], list[Diagnosis]]:
    part = experts_on_device(reference, altered)
    comparison = part_comparison(reference, part, backend=Backend.GMM_EP)
    assert isinstance(comparison, QuantisedPartComparison)
    differences = list(comparison.differences())
    assert comparison.tally.experts_compared == comparison.tally.experts
    return differences, Explainer(comparison).diagnose(differences)


def test_a_faithful_load_is_equal(reference: ReferencePart) -> None:
    assert compared(reference) == ([], [])


AT = ExpertKey(Part.DECODER, 0, 1, Projection.DOWN)


def only(change: Callable[[Quantised], Quantised], at: ExpertKey = AT) -> Altered:
    return lambda key, matrix: change(matrix) if key == at else matrix


def largest(matrix: Quantised) -> tuple[int, int]:
    """The place of the largest value of output 7."""
    return 7, int(np.abs(matrix.values[7]).argmax())


def scaled(factor: float) -> Callable[[Quantised], Quantised]:
    """One scale is off: that of the largest value of output 7, which shows wherever it is kept."""

    def change(matrix: Quantised) -> Quantised:
        row, column = largest(matrix)
        scales = matrix.scales.copy()
        scales[row // matrix.block[0], column // matrix.block[1]] *= np.float32(factor)
        return matrix.with_scales(scales)

    return change


def flipped(matrix: Quantised) -> Quantised:
    """One bit of the code of a large value: half or twice of it, or its sign."""
    codes = matrix.codes.copy()
    codes[largest(matrix)] ^= 4
    return matrix.with_codes(codes)


def exchanged(matrix: Quantised) -> Quantised:
    """Groups 0 and 2 of all outputs have each other's scales."""
    scales = matrix.scales.copy()
    scales[:, [0, 2]] = scales[:, [2, 0]]
    return matrix.with_scales(scales)


def nibbles(matrix: Quantised) -> Quantised:
    rows, columns = matrix.codes.shape
    pairs = matrix.codes.reshape(rows, columns // 2, 2)
    return matrix.with_codes(np.ascontiguousarray(pairs[..., ::-1]).reshape(rows, columns))


def ones(matrix: Quantised) -> Quantised:
    return matrix.with_scales(np.ones_like(matrix.scales))


def squared(matrix: Quantised) -> Quantised:
    scales: Values = matrix.scales * matrix.scales
    return matrix.with_scales(scales)


def rolled(matrix: Quantised) -> Quantised:
    return matrix.with_scales(np.roll(matrix.scales, 1, axis=1))


@dataclass(frozen=True)
class Damage:
    """What is done to one matrix, what it is to be called, and where there is no such thing."""

    change: Callable[[Quantised], Quantised]
    cause: Cause
    needs_groups: bool = False
    not_of: tuple[str, ...] = ()


DAMAGES = {
    "a scale, by one step of bf16": Damage(scaled(1 + 2.0**-7), Cause.SCALE, not_of=(
        # what is exact in the format: a power of two, and a scale that is quantised away
        "mxfp4", "ct-fp8-tensor", "ct-fp8-channel", "fp8",
    )),
    "a scale, doubled": Damage(scaled(2), Cause.SCALE, not_of=("ct-fp8-tensor",)),
    "one nibble": Damage(flipped, Cause.CODE),
    "two groups": Damage(exchanged, Cause.GROUP_ORDER, needs_groups=True),
    "scales lost": Damage(ones, Cause.SCALE_LOST),
    "twice": Damage(squared, Cause.DEQUANTISED_TWICE),
    "the neighbour's scale": Damage(rolled, Cause.SCALE_OF_ANOTHER, needs_groups=True),
    "nibbles exchanged": Damage(nibbles, Cause.NIBBLES_EXCHANGED, not_of=(
        "fp8", "ct-fp8-channel", "ct-fp8-tensor",
    )),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_seen_and_named(reference: ReferencePart, way: Way, damage: str) -> None:
    planted = DAMAGES[damage]
    groups = reference.quantised(AT).scales.shape[1]
    if way.name in planted.not_of or (planted.needs_groups and groups < 3):
        assert not planted.needs_groups or groups < 4  # every format that has groups is damaged
        return
    differences, diagnoses = compared(reference, only(planted.change))
    (difference,), (diagnosis,) = differences, diagnoses
    assert (difference.kind, difference.key) == (Kind.VALUES, AT)
    assert diagnosis.cause is planted.cause, diagnosis.evidence


def outputs_exchanged(matrix: Quantised) -> Quantised:
    scales = matrix.scales.copy()
    scales[[3, 70]] = scales[[70, 3]]
    return matrix.with_scales(scales)


def all_scaled(matrix: Quantised) -> Quantised:
    scales: Values = matrix.scales * np.float32(1.25)
    return matrix.with_scales(scales)


@pytest.mark.parametrize(
    ("name", "change", "cause", "words"),
    [
        ("ct-fp8-channel", outputs_exchanged, Cause.GROUP_ORDER, "of outputs 3 and 70 are"),
        ("ct-fp8-channel", all_scaled, Cause.SCALE, "every scale, by a factor of 1.25"),
        ("nvfp4", all_scaled, Cause.SCALE, "every scale, by a factor of 1.25"),
        ("ct-fp8-tensor", all_scaled, Cause.SCALE, "every scale, by a factor of 1.25"),
    ],
)
def test_scales_of_whole_outputs_are_named(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str,
    change: Callable[[Quantised], Quantised], cause: Cause, words: str,
) -> None:  # fmt: skip
    monkeypatch.delenv(UNCHANGED, raising=False)
    reference = reference_parts(ModelCheckpoint(checkpoints[name]))[0]
    (difference,), (diagnosis,) = compared(reference, only(change))
    assert (difference.key, diagnosis.cause) == (AT, cause)
    assert words in diagnosis.evidence


@pytest.mark.parametrize("fellow", [Projection.GATE, Projection.UP])
def test_scales_of_the_other_half_are_named(reference: ReferencePart, fellow: Projection) -> None:
    at = AT._replace(projection=fellow)
    other = at._replace(projection=({Projection.GATE, Projection.UP} - {fellow}).pop())
    mine, theirs = reference.quantised(at), reference.quantised(other)
    assert not np.array_equal(mine.scales, theirs.scales)
    change = only(lambda matrix: matrix.with_scales(theirs.scales), at)
    (difference,), (diagnosis,) = compared(reference, change)
    assert (difference.key, diagnosis.cause) == (at, Cause.SCALE_OF_ANOTHER)


@pytest.mark.parametrize("number", range(4))
def test_zero_points_that_are_mistaken_are_named(checkpoints: dict[str, Path], number: int) -> None:
    reference = reference_parts(ModelCheckpoint(checkpoints["awq"]))[0]
    kind, words, other = list(reference.misread(AT))[number]
    (difference,), (diagnosis,) = compared(reference, only(lambda matrix: other))
    assert difference.key == AT
    assert diagnosis.cause is {"zero": Cause.ZERO_POINT, "order": Cause.NIBBLES_EXCHANGED}[kind]
    assert words in diagnosis.evidence


@pytest.mark.parametrize("number", range(3))
def test_one_of_two_scales_that_is_lost_is_named(checkpoints: dict[str, Path], number: int) -> None:
    reference = reference_parts(ModelCheckpoint(checkpoints["nvfp4"]))[0]
    _, words, other = list(reference.misread(AT))[number]
    (_,), (diagnosis,) = compared(reference, only(lambda matrix: other))
    assert diagnosis.cause is Cause.SCALE_LOST
    assert words in diagnosis.evidence


@pytest.mark.parametrize(
    ("name", "other"), [("mxfp4", "I4"), ("nvfp4", "U4"), ("ct-int4", "F4_E2M1")]
)
def test_codes_that_are_taken_for_another_type_are_named(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    monkeypatch.delenv(UNCHANGED, raising=False)
    reference = reference_parts(ModelCheckpoint(checkpoints[name]))[0]

    def taken(matrix: Quantised) -> Quantised:
        return Quantised(matrix.codes, other, matrix.scales, matrix.block)

    (difference,), (diagnosis,) = compared(reference, only(taken))
    assert difference.key == AT
    assert diagnosis.cause is Cause.WRONG_GRID
    assert f"are taken for {other}" in diagnosis.evidence


HOSTS = ("cpu:1", "cpu:2")  # a device each


def of_host(
    reference: ReferencePart, number: int, part: DevicePart | None = None
) -> tuple[QuantisedPartComparison, list[Difference]]:
    """What one of two hosts finds, between which every expert is cut."""
    part = part or experts_on_device(reference, mesh=HOSTS, cut=True)
    comparison = part_comparison(reference, seen_from(part, (number,)), backend=Backend.GMM_TP)
    assert isinstance(comparison, QuantisedPartComparison)
    return comparison, list(comparison.differences())


def test_hosts_judge_what_they_hold_and_together_all_of_it(reference: ReferencePart) -> None:
    whole = experts_on_device(reference, mesh=HOSTS, cut=True)
    alone = part_comparison(reference, whole, backend=Backend.GMM_TP)
    assert list(alone.differences()) == []
    compared_bytes = 0
    for number in range(len(HOSTS)):
        comparison, differences = of_host(reference, number)
        assert differences == []
        assert comparison.tally.divided
        assert comparison.tally.experts_compared == alone.tally.experts
        compared_bytes += comparison.tally.bytes_compared
    assert compared_bytes == alone.tally.bytes_compared


def spoiled(part: DevicePart, parameter: Parameter, change: int, *, scales: bool) -> DevicePart:
    """With bits flipped of expert 1, in its first row, of what the second device holds."""
    layers = dict(part.scales if scales else part.layers)
    tensor = layers[0][parameter]
    first, second = tensor.shards
    bits = second.fetch(...).copy()
    bits[1, 0, 0] ^= change
    shards = (first, replace(second, fetch=lambda index: bits[index]))
    layers[0] = {**layers[0], parameter: replace(tensor, shards=shards)}
    return replace(part, scales=layers) if scales else replace(part, layers=layers)


@pytest.mark.parametrize("scales", [False, True], ids=["a code", "a scale"])
@pytest.mark.parametrize("parameter", Parameter)
def test_what_is_wrong_on_one_host_is_found_there_and_placed(
    reference: ReferencePart, parameter: Parameter, scales: bool
) -> None:
    right = experts_on_device(reference, mesh=HOSTS, cut=True)
    wrong = spoiled(right, parameter, 1 << 22 if scales else 4, scales=scales)
    assert of_host(reference, 0, wrong)[1] == []
    comparison, (difference,) = of_host(reference, 1, wrong)
    assert isinstance(difference, ValuesDiffer)
    assert (difference.layer, difference.expert, difference.device_name) == (0, 1, HOSTS[1])
    down = parameter is Parameter.W2
    assert difference.projection is (Projection.DOWN if down else Projection.GATE)
    shape = reference.packed_shape
    assert difference.total == shape.hidden * shape.intermediate // len(HOSTS)
    half = shape.intermediate // len(HOSTS)  # where the second host's part begins
    assert difference.index == ((0, half) if down else (half, 0))
    assert f" 1 of {difference.total} codes" in f" {difference.pattern}" or scales
    (diagnosis,) = Explainer(comparison).diagnose([difference])
    assert diagnosis.cause is (Cause.SCALE if scales else Cause.CODE)
