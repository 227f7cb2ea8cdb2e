"""A digest file in the place of the reference's weights: nothing passes, and nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.bits import Bits, Nan
from harness.base.errors import BadInput, HarnessError
from harness.checkpoint.stores.directory import LocalFile
from harness.compare.difference import BitsDiffer, DigestDiffers, Kind
from harness.compare.digest_comparison import Method
from harness.compare.digest_file import DigestFile
from harness.compare.digesting import digests_of
from harness.compare.expert_comparison import PartComparison
from harness.compare.pieces import PieceSize
from harness.devices.digest import digest_of_constant, digest_of_rows
from harness.devices.expert_layout import Backend, Parameter
from harness.devices.tensors import DevicePart
from harness.explain.causes import Cause, Diagnosis
from harness.explain.diagnosis import Explainer
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import POISON
from harness.report.report import Report, Status, contradictions
from tests.support.damages import DAMAGES, KINDS, Damage, Site, site_of, write_references
from tests.support.flips import with_one_byte_flipped
from tests.support.host_devices import HOSTS, of_host
from tests.support.packing import PackedDevice
from tests.support.parameter_cases import Paths, case
from tests.support.parameter_faults import FAULTS, Change
from tests.support.retyping import cast
from tests.support.silent_passes import ATTEMPTS, DEVICES, HONEST, VL, Attempt
from tests.support.silent_worlds import judged, world

pytestmark = pytest.mark.slow


class Reads:
    """The bytes of files that the independent reader reads."""

    def __init__(self) -> None:
        self.weights = 0  # as arrays
        self.ranges: set[tuple[str, int, int]] = set()  # file, first byte, bytes
        self.other = 0  # headers, indexes, configurations


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, bits, read, stream = Reads(), LocalFile.bits, LocalFile.read, LocalFile.stream

    def counted_bits(self: LocalFile, offset: int, *given: Any) -> Bits:
        array = bits(self, offset, *given)
        found.weights += array.nbytes
        found.ranges.add((self.name, offset, array.nbytes))
        return array

    def counted_read(self: LocalFile, start: int, stop: int) -> bytes:
        content = read(self, start, stop)
        found.other += len(content)
        return content

    def counted_stream(self: LocalFile, offset: int, nbytes: int, *given: Any) -> Iterator[Bits]:
        found.weights += nbytes
        found.ranges.add((self.name, offset, nbytes))
        return stream(self, offset, nbytes, *given)

    def counted_by_descriptor(self: LocalFile, offset: int, nbytes: int, *given: Any) -> int:
        found.weights += nbytes
        found.ranges.add((self.name, offset, nbytes))
        return by_descriptor(self, offset, nbytes, *given)

    by_descriptor = LocalFile.by_descriptor
    monkeypatch.setattr(LocalFile, "by_descriptor", counted_by_descriptor)
    monkeypatch.setattr(LocalFile, "bits", counted_bits)
    monkeypatch.setattr(LocalFile, "stream", counted_stream)
    monkeypatch.setattr(LocalFile, "read", counted_read)
    return found


def compared(
    part: ReferencePart,
    device: PackedDevice,
    digests: DigestFile,
    seen: DevicePart | None = None,
    **options: Any,
) -> tuple[PartComparison, list[Any], list[Diagnosis]]:
    comparison = PartComparison(
        part, seen or device.part(), backend=device.backend, authority=digests, **options
    )
    differences = list(comparison.differences())
    return comparison, differences, Explainer(comparison).diagnose(differences)


@pytest.mark.parametrize("method", [Method.AUTO, Method.DIGESTS])
@pytest.mark.parametrize("backend", Backend)
def test_faithful_experts_are_equal_and_not_read(
    decoder: ReferencePart, backend: Backend, method: Method, reads: Reads
) -> None:
    device, digests = PackedDevice(decoder, backend=backend), digests_of(decoder.checkpoint)
    tally = compared(decoder, device, digests, method=Method.READBACK)[0].tally
    reads.weights = reads.other = 0
    comparison, differences, _ = compared(decoder, device, digests, method=method)
    assert (differences, digests.read) == ([], set())
    assert (reads.weights, reads.other) == (0, 0)
    assert comparison.tally == tally


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("parameter", Parameter)
def test_any_changed_bit_of_experts_is_placed_as_by_weights(
    decoder: ReferencePart, backend: Backend, parameter: Parameter
) -> None:
    device, digests = PackedDevice(decoder, backend=backend), digests_of(decoder.checkpoint)
    array, rng = device.arrays[1][parameter], np.random.default_rng(8)
    for _ in range(6):  # some of them in the padding
        at = tuple(int(rng.integers(size)) for size in array.shape)
        array[at] ^= 1 << int(rng.integers(16))
        comparison = PartComparison(decoder, device.part(), backend=backend)
        by_weights = list(comparison.differences())
        assert len(by_weights) == 1
        assert compared(decoder, device, digests)[1] == by_weights
        array[at] = PackedDevice(decoder, backend=backend).arrays[1][parameter][at]
    if any(isinstance(d, BitsDiffer) for d in by_weights):
        assert len(digests.read) == 1


def test_an_exchange_is_explained_by_what_is_read_of_one_tensor(
    decoder: ReferencePart, reads: Reads
) -> None:
    """Whose bytes they are is known of all matrices, by their digests."""
    device, digests = PackedDevice(decoder), digests_of(decoder.checkpoint)
    array = device.arrays[1][Parameter.W2]
    array[[2, 6]] = array[[6, 2]]
    reads.ranges.clear()
    _, differences, (diagnosis,) = compared(decoder, device, digests)
    assert [(d.kind, d.expert) for d in differences] == [(Kind.BITS, 2), (Kind.BITS, 6)]
    assert diagnosis.cause is Cause.EXPERTS_EXCHANGED
    (name,) = digests.read
    entry = decoder.checkpoint.entries[name]
    first, last = entry.offset, entry.offset + entry.nbytes
    for file, start, nbytes in reads.ranges:
        assert (file, first <= start <= start + nbytes <= last) == (entry.file.name, True)


@pytest.mark.parametrize("backend", [Backend.GMM_TP, Backend.GMM_EP])
@pytest.mark.parametrize("hosts", HOSTS)
def test_several_hosts(
    decoder: ReferencePart, backend: Backend, hosts: tuple[tuple[int, ...], ...]
) -> None:
    """Where a host has parts of experts alone, their bits are read; and they are the right ones."""
    device = PackedDevice(decoder, backend=backend)
    for fault in (0, 1):
        device.arrays[1][Parameter.W2][5, 20, 30] ^= fault
        found = []
        for numbers in hosts:
            digests = digests_of(decoder.checkpoint)
            _, differences, _ = compared(decoder, device, digests, of_host(device, numbers))
            found += [(d.kind, d.layer, d.expert, d.projection) for d in differences]
            assert bool(digests.read) is (backend is Backend.GMM_TP or bool(differences))
        assert found == [(Kind.BITS, 1, 5, "down_proj")] * fault


# The damages of the table of causes, in every kind of parameter.


#: Those whose bits are compared: an FP8 release has no digests.
OF_BITS = [kind for kind in KINDS if kind.of != "FP8"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    checkpoints, found = write_references(tmp_path_factory.mktemp("damages")), {}
    digests = {of: digests_of(checkpoints[of]) for of in {kind.of for kind in OF_BITS}}
    for kind in OF_BITS:
        found[kind.name] = site_of(checkpoints, kind)
        found[kind.name].authority = digests[kind.of]
    return found


@pytest.mark.parametrize("kind", [kind.name for kind in OF_BITS])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_the_same_damage_gets_the_same_cause(
    sites: dict[str, Site], damage: Damage, kind: str
) -> None:
    said = damage.cell(sites[kind])
    assert said == damage.cause or said.startswith("("), said


@pytest.mark.parametrize("kind", [kind.name for kind in OF_BITS])
def test_what_is_faithful_is_equal(sites: dict[str, Site], kind: str) -> None:
    assert sites[kind].compared({}, None)[0] == []


# Other parameters.


@pytest.mark.parametrize("size", [PieceSize(), PieceSize(4096, 8)])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("recipe", "part"),
    [(VL, Part.DECODER), ("qwen3.5-moe", Part.DECODER), ("qwen3.6-mtp", Part.MTP)],
)
def test_faithful_parameters_are_equal_and_not_read(
    tiny_checkpoints: Paths, recipe: str, part: Part, devices: int, size: PieceSize, reads: Reads
) -> None:
    given = case(tiny_checkpoints, recipe, part, devices)
    given.size = size
    tally = given.compared()[2].tally
    digests = given.authority = digests_of(given.checkpoint)
    reads.weights = reads.other = 0
    differences, _, comparison = given.compared()
    assert (differences, digests.read) == ([], set())
    assert (reads.weights, reads.other) == (0, 0)
    assert comparison.tally == tally


@pytest.mark.parametrize(
    ("recipe", "change", "cause", "evidence"), FAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_fault_of_a_parameter_is_named_as_by_weights(
    tiny_checkpoints: Paths, recipe: str, change: Change, cause: Cause, evidence: str
) -> None:
    given = case(tiny_checkpoints, recipe)
    change(given.device)
    by_weights = given.compared()[:2]
    given.authority = digests_of(given.checkpoint)
    assert given.compared()[:2] == by_weights
    assert {d.cause for d in by_weights[1]} == {cause}


@pytest.mark.slow
def test_one_bit_of_any_parameter_is_found(tiny_checkpoints: Paths) -> None:
    for recipe, part in (
        ("qwen3.5-moe", Part.DECODER),
        (VL, Part.DECODER),
        ("qwen3.5-mtp", Part.MTP),
    ):
        given = case(tiny_checkpoints, recipe, part)
        given.authority = digests_of(given.checkpoint)
        for name, packed in given.device.packed.items():
            if "rotary" in name:
                continue
            packed.array = packed.array.copy()
            packed.array[(-1,) * packed.array.ndim] ^= 1
            (difference,), _, _ = given.compared()
            assert (difference.parameter, difference.kind) == (name, Kind.BITS)
            packed.array[(-1,) * packed.array.ndim] ^= 1


@pytest.mark.parametrize("dtype", ["F32", "F16", "F64"])
def test_what_a_load_converts_is_compared_as_it_is_held(
    dtype: str, tiny_checkpoints: Paths, tmp_path: Path, reads: Reads
) -> None:
    """The device holds bf16, and states in f32, of a checkpoint that has another type."""
    made = cast(tiny_checkpoints["qwen3.5-moe"], tmp_path / "cast", {".*": dtype})
    checkpoint = ModelCheckpoint(made)
    (part,) = reference_parts(checkpoint)
    digests = digests_of(checkpoint)
    device = PackedDevice(part)
    reads.weights = 0
    assert compared(part, device, digests)[1] == []
    assert (reads.weights, digests.read) == (0, set())


# All that harness verify does, but for the load.


def written(checkpoint: Path, file: Path) -> Path:
    file.write_bytes(digests_of(ModelCheckpoint(checkpoint)).encoded())
    return file


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_no_silent_pass(
    attempt: Attempt,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was done to reference, checkpoint or devices is refused, or a difference."""
    given = world(checkpoints[attempt.recipe], tmp_path, DEVICES.get(attempt.recipe, 4))
    before = written(given.reference, tmp_path / "before")
    attempt.tamper(given)
    try:
        file = written(given.reference, tmp_path / "digests")
        report = judged(given, monkeypatch, file)
    except HarnessError:
        return
    assert report.status is Status.DIFFERENT
    assert list(contradictions(report)) == []
    if before.read_bytes() == file.read_bytes():  # what was done was not done to the reference
        assert attempt.found in {difference.kind for difference in report.differences}


@pytest.mark.parametrize("honest", HONEST)
def test_what_is_honest_is_equal(
    honest: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reads: Reads,
) -> None:
    change, recipe = HONEST[honest]
    given = world(checkpoints[recipe], tmp_path, DEVICES.get(recipe, 4))
    change(given)
    file = written(given.reference, tmp_path / "digests")
    reads.weights = reads.other = 0
    if given.options.get("nan") is Nan.CANONICAL:
        with pytest.raises(BadInput, match="digests cannot be used for NaNs that count as others"):
            judged(given, monkeypatch, file)
        return
    report = judged(given, monkeypatch, file)
    assert (report.status, report.differences) == (Status.EQUAL, [])
    assert report.reference == str(file)
    assert report.digests
    assert (report.digests.file, report.digests.read) == (str(file), [])


def test_an_equal_verification_reads_headers_and_the_digest_file(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    given = world(checkpoints["qwen3.5-mtp"], tmp_path)
    file = written(given.reference, tmp_path / "digests")
    reads.weights = reads.other = 0
    nbytes = ModelCheckpoint(given.checkpoint).nbytes
    headers = reads.other  # and the index, and config.json
    reads.other = 0
    assert judged(given, monkeypatch, file).status is Status.EQUAL
    assert reads.weights == 0
    # the parent, the load's process and the load that is played open it, for two parts
    assert reads.other <= 4 * headers + 2 * file.stat().st_size
    assert reads.other < nbytes


# What can be said where the checkpoint's own weights do not help.


def one(report: Report) -> DigestDiffers:
    (difference,) = report.differences
    assert isinstance(difference, DigestDiffers)
    return difference


@pytest.mark.parametrize(
    "tensor",
    ["mtp.layers.0.mlp.experts.5.down_proj.weight", "lm_head.weight"],
)
def test_a_file_that_is_not_what_was_digested_is_named(
    tensor: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was loaded as it is: without the digest file that is equal."""
    flipped = with_one_byte_flipped(checkpoints["qwen3.5-mtp"], tmp_path / "flipped", tensor, 37)
    (tmp_path / "world").mkdir()
    given = world(flipped, tmp_path / "world")
    assert judged(given, monkeypatch).status is Status.EQUAL
    file = written(checkpoints["qwen3.5-mtp"], tmp_path / "digests")
    report = judged(given, monkeypatch, file)
    parts = {difference.part for difference in report.differences}
    for difference in report.differences:
        assert isinstance(difference, DigestDiffers)
        assert difference.checkpoint == difference.device != difference.reference
        assert difference.source.tensor == tensor
    assert len(parts) == len(report.differences)
    assert {d.cause for d in report.diagnoses} == {Cause.FILE_DIFFERS}
    assert "the device holds what that file does" in report.diagnoses[0].evidence
    assert report.digests
    assert report.digests.read == [tensor]


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have weights that cannot be read from then on."""

    def bits(self: LocalFile, *_: Any) -> Bits:
        raise BadInput("gone", where=str(self), expected="weights", hint="another day")

    def closed() -> None:
        monkeypatch.setattr(LocalFile, "bits", bits)
        monkeypatch.setattr(LocalFile, "stream", bits)
        monkeypatch.setattr(LocalFile, "by_descriptor", bits)

    return closed


HELD: dict[str, tuple[Callable[[Any], None], Cause, str]] = {
    "one bit": (lambda a: a.__setitem__((3, 5), a[3, 5] ^ 1), Cause.UNEXPLAINED, "not reachable"),
    "zeros": (lambda a: a.fill(0), Cause.ZEROS, "nothing but zeros"),
    "poison": (lambda a: a.fill(POISON[2]), Cause.UNWRITTEN, "before it was written"),
}  # fmt: skip


@pytest.mark.parametrize("held", HELD)
def test_experts_whose_weights_are_not_reachable(
    held: str, decoder: ReferencePart, unreadable: Callable[[], None]
) -> None:
    device, digests = PackedDevice(decoder), digests_of(decoder.checkpoint)
    change, cause, told = HELD[held]
    change(device.arrays[1][Parameter.W2][6])
    unreadable()
    _, (difference,), (diagnosis,) = compared(decoder, device, digests)
    assert isinstance(difference, DigestDiffers)
    assert (difference.layer, difference.expert, difference.projection) == (1, 6, "down_proj")
    assert difference.unread.startswith("gone")
    assert (diagnosis.cause, told in diagnosis.summary) == (cause, True)


def test_another_experts_matrix_is_known_by_its_digest(
    decoder: ReferencePart, unreadable: Callable[[], None]
) -> None:
    device, digests = PackedDevice(decoder), digests_of(decoder.checkpoint)
    array = device.arrays[1][Parameter.W2]
    array[[2, 6]] = array[[6, 2]]
    unreadable()
    _, differences, diagnoses = compared(decoder, device, digests)
    assert [d.expert for d in differences] == [2, 6]
    assert [d.cause for d in diagnoses] == [Cause.OTHER_SLICE] * 2
    assert "holds what decoder layer 1 expert 6 down_proj is to hold" in diagnoses[0].summary


@pytest.mark.parametrize("held", HELD)
def test_parameters_whose_weights_are_not_reachable(
    held: str, tiny_checkpoints: Paths, unreadable: Callable[[], None]
) -> None:
    given = case(tiny_checkpoints, "qwen3.5-moe")
    given.authority = digests_of(given.checkpoint)
    (name,) = [n for n in given.device.packed if n.endswith("lm_head.weight")]
    packed = given.device.packed[name]
    packed.array = packed.array.copy()
    change, cause, told = HELD[held]
    change(packed.array)
    unreadable()
    (difference,), (diagnosis,), _ = given.compared()
    assert isinstance(difference, DigestDiffers)
    assert (difference.parameter, difference.source.tensor) == (name, "lm_head.weight")
    assert (diagnosis.cause, told in diagnosis.summary) == (cause, True)


def test_without_a_digest_bits_are_read_and_have_to_be_vouched_for(
    tiny_checkpoints: Paths,
) -> None:
    """Never equal without a look: a type that was not digested is read, and its file is too."""
    given = case(tiny_checkpoints, "qwen3.5-moe")
    digests = digests_of(given.checkpoint)
    types = tuple(
        t if not t.name.endswith("A_log") else replace_types(t) for t in digests.contents.tensors
    )
    lacking = [t.name for t in types if t.name.endswith("A_log")]
    rows = [digests.digest(t.name, dtype) for t in types for dtype in t.types]
    contents = replace_tensors(digests, types)
    given.authority = without = replace(digests, contents=contents, rows=np.array(rows), read=set())
    assert given.compared()[0] == []
    assert without.read == set(lacking)
    odd = np.array(rows)
    odd[[t.name for t in types].index(lacking[0])] ^= 1
    given.authority = replace(without, rows=odd, read=set())
    (difference,), (diagnosis,), _ = given.compared()
    assert isinstance(difference, DigestDiffers)
    assert (difference.source.tensor, difference.reference) == (lacking[0], "")
    assert diagnosis.cause is Cause.FILE_DIFFERS


def replace_types(tensor: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(tensor, types=tensor.types[:1])


def replace_tensors(digests: DigestFile, tensors: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(digests.contents, tensors=tensors)


def test_a_constant_matrix_is_known_without_making_it() -> None:
    for shape in ((5, 8), (3, 7), (1, 1)):
        whole = np.full(shape, 0xDEAD, np.uint16)
        assert np.array_equal(
            digest_of_constant(whole[0, 0], *shape), digest_of_rows(whole, 0, len(whole))
        )
