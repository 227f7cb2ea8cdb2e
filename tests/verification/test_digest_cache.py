"""Digests kept between runs: found again, never of other files, and not to be planted."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.bits import Bits
from harness.base.errors import BadInput
from harness.base.progress import Meter
from harness.checkpoint.stores.directory import Directory, LocalFile
from harness.checkpoint.stores.location import Identity
from harness.checkpoint.stores.object_store import Bucket, Store, StoredObject
from harness.compare.digest_comparison import Method
from harness.compare.digest_file import decoded
from harness.compare.digesting import Digesting, digests_of
from harness.devices.expert_layout import Backend
from harness.explain.causes import Cause
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine
from harness.load.ledger import Ledger
from harness.load.loaded import Loaded
from harness.load.overlay import Overlay
from harness.load.process import LoadProcesses
from harness.load.targets.driver import Capability
from harness.load.targets.emulated import Emulated
from harness.report.report import Report, Status, contradictions
from harness.synthetic.writer import write_checkpoint
from harness.verification import digest_cache
from harness.verification.digest_cache import DigestCache, entry_name
from harness.verification.digests import write_digests
from harness.verification.job import verify_job
from harness.verification.verify import verify
from tests.support.flips import with_one_byte_flipped
from tests.support.ledgers import call
from tests.support.packing import PackedDevice
from tests.support.parameter_packing import PackedParameters

RECIPE = "qwen3-vl-moe"
NOW = time.time_ns
TENSOR = "model.language_model.layers.1.mlp.experts.down_proj"


@pytest.fixture
def path(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return Path(shutil.copytree(tiny_checkpoints[RECIPE], tmp_path / "c"))


@pytest.fixture(autouse=True)
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, as if it were later; what that is for has its own test."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW() + 10 * 10**9)


@pytest.fixture
def place() -> Path:
    """Where entries are, in tests."""
    return digest_cache.place()


class Here:
    """Loading processes that are this one; the load leaves what a checkpoint holds."""

    overlay = Overlay()
    job = "verify"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holding: Path | None = None
        self.before: Callable[[], object] = lambda: None
        monkeypatch.setattr(engine, "load", self._load)
        monkeypatch.setattr(engine, "leave", lambda target: None)

    def of(self, target: object) -> Here:
        return self

    def run(self, job: str, argument: bytes, *_: Any, **__: Any) -> bytes:
        self.before()
        return verify_job(argument, Meter())

    def _load(self, checkpoint: str, *_: Any, ledgers: dict[Part, Ledger], **__: Any) -> Loaded:
        with uncounted():
            (part,) = reference_parts(ModelCheckpoint(self.holding or checkpoint))
            mesh = ("cpu:1", "cpu:2", "cpu:3", "cpu:4")
            experts = PackedDevice(part, 4, Backend.GMM_TP).part().layers.values()
            tensors = [tensor for layer in experts for tensor in layer.values()]
            tensors += PackedParameters(part.checkpoint, Part.DECODER).tensors()
            names = list(part.checkpoint.entries)
        calls = [call("some.weight", source=name) for name in names]
        ledgers[Part.DECODER] = Ledger(finished=True, streamed=names, calls=calls)
        return Loaded({Part.DECODER: tensors}, mesh, "entry", 1.0, 2.0, (("model", 4),), None)


class Reads:
    """Bytes of weights that the independent reader reads, and which of its reads count."""

    weights = 0
    counted = True


class uncounted:  # noqa: N801 - it reads as a statement
    """What a load reads is not the reader's."""

    def __enter__(self) -> None:
        Reads.counted = False

    def __exit__(self, *_: object) -> None:
        Reads.counted = True


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> type[Reads]:
    bits = LocalFile.bits

    def counted(self: LocalFile, *given: Any) -> Bits:
        array = bits(self, *given)
        Reads.weights += array.nbytes if Reads.counted else 0
        return array

    def counted_by_descriptor(self: LocalFile, offset: int, nbytes: int, *given: Any) -> int:
        Reads.weights += nbytes if Reads.counted else 0
        return by_descriptor(self, offset, nbytes, *given)

    by_descriptor = LocalFile.by_descriptor
    Reads.weights = 0
    monkeypatch.setattr(LocalFile, "by_descriptor", counted_by_descriptor)
    monkeypatch.setattr(LocalFile, "bits", counted)
    return Reads


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


@pytest.fixture
def verified(here: Here) -> Callable[..., Report]:
    def run(path: Path, **options: Any) -> Report:
        processes = cast("LoadProcesses", here)
        return verify(path, processes=processes, **{"cache": True} | options)

    return run


Verified = Callable[..., Report]


def name_of(path: Path) -> str:
    return entry_name(ModelCheckpoint(path))


def test_what_was_digested_is_compared_with_and_nothing_is_read(
    path: Path, verified: Verified, reads: type[Reads], place: Path
) -> None:
    said = write_digests(path, None, cache=True).cache
    assert said == "digests kept by its files' sizes and times: the next run reads no weights"
    reads.weights = 0
    report = verified(path)
    assert (report.status, reads.weights, report.differences) == (Status.EQUAL, 0, [])
    assert report.digests
    assert (report.digests.kept, report.digests.read) == (True, [])
    assert report.digests.file == str(place / name_of(path))
    assert report.reference == report.checkpoint == str(path)
    assert "--reference" not in report.repeat
    assert not list(contradictions(report))


def test_what_differs_is_explained_by_the_tensors_concerned(
    path: Path, here: Here, verified: Verified, tmp_path: Path, reads: type[Reads]
) -> None:
    write_digests(path, None, cache=True)
    here.holding = with_one_byte_flipped(path, tmp_path / "held", TENSOR, 37)
    reads.weights = 0
    report = verified(path)
    assert [d.cause for d in report.diagnoses] == [Cause.BIT_FLIP]
    assert report.digests
    assert report.digests.read == [TENSOR]
    assert 0 < reads.weights < ModelCheckpoint(path).nbytes / 4


def test_files_damaged_behind_the_systems_back_are_told_of(
    path: Path, verified: Verified, place: Path, tmp_path: Path
) -> None:
    """Bits that rot leave sizes and times as they are: the kept digests are of what was there."""
    damaged = with_one_byte_flipped(path, tmp_path / "damaged", TENSOR, 37)
    write_digests(path, None, cache=True)
    kept = decoded((place / name_of(path)).read_bytes(), "")
    (place / name_of(path)).unlink()
    DigestCache().keep(name_of(damaged), kept)
    report = verified(damaged)
    assert [d.cause for d in report.diagnoses] == [Cause.FILE_DIFFERS]


@pytest.mark.parametrize(
    "options",
    [{"cache": False}, {"method": Method.READBACK}, {"experts_only": True}],
    ids=["off", "readback", "experts only"],
)
def test_kept_digests_are_left_alone(
    options: dict[str, Any], path: Path, verified: Verified, reads: type[Reads]
) -> None:
    write_digests(path, None, cache=True)
    reads.weights = 0
    report = verified(path, **options)
    assert (report.digests, report.cache) == (None, "")
    assert reads.weights > 0


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulated devices count as having memory of their own."""
    able = Emulated.capabilities | {Capability.OWN_MEMORY}
    monkeypatch.setattr(Emulated, "capabilities", able)


@pytest.mark.usefixtures("own_memory")
def test_a_verification_keeps_what_it_read_and_reads_no_more(
    path: Path, verified: Verified, reads: type[Reads], place: Path
) -> None:
    verified(path, cache=False)
    plain = reads.weights
    report = verified(path)
    assert (report.status, report.digests) == (Status.EQUAL, None)
    assert report.cache.startswith("digests kept by its files' sizes and times")
    assert plain < reads.weights - plain < plain + ModelCheckpoint(path).nbytes / 16 or (
        reads.weights == 2 * plain
    )
    kept = decoded((place / name_of(path)).read_bytes(), "")
    assert replace(kept, identity="").encoded() == digests_of(ModelCheckpoint(path)).encoded()
    reads.weights = 0
    assert verified(path).digests
    assert reads.weights == 0


@pytest.mark.usefixtures("own_memory")
@pytest.mark.parametrize(
    "options", [{"num_layers": 1}, {"parts": [Part.DECODER], "method": Method.READBACK}],
    ids=["some layers", "readback"],
)  # fmt: skip
def test_a_verification_of_a_part_keeps_nothing(
    options: dict[str, Any], path: Path, verified: Verified, place: Path, here: Here
) -> None:
    here.holding = path
    verified(path, **options)
    assert not place.exists()


@pytest.mark.usefixtures("own_memory")
def test_a_load_that_differs_keeps_nothing(
    path: Path, verified: Verified, place: Path, here: Here, tmp_path: Path
) -> None:
    here.holding = with_one_byte_flipped(path, tmp_path / "held", TENSOR, 37)
    assert verified(path).status is Status.DIFFERENT
    assert not place.exists()


def test_on_devices_that_share_the_hosts_memory_nothing_is_read_for_it(
    path: Path, verified: Verified, place: Path, reads: type[Reads]
) -> None:
    verified(path, cache=False)
    plain = reads.weights
    verified(path)
    assert (reads.weights, place.exists()) == (2 * plain, False)


# What an entry is found by.


def rewritten(path: Path) -> None:
    """The same bytes, the same time: another file."""
    file = path / "config.json"
    told = file.stat()
    shutil.copy(file, path / "new")
    (path / "new").rename(file)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def one_bit(path: Path) -> None:
    """In place, with the time restored: nobody sets when a file was last changed."""
    file = path / "model-00002-of-00004.safetensors"
    told = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\x01")
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def touched(path: Path) -> None:
    os.utime(path / "model-00002-of-00004.safetensors")


def another_json(path: Path) -> None:
    (path / "generation_config.json").write_text("{}")


def moved(path: Path) -> None:
    path.rename(path.parent / "before")
    shutil.copytree(path.parent / "before", path, copy_function=shutil.copy2)


@pytest.mark.parametrize("change", [rewritten, one_bit, touched, another_json, moved])
def test_files_that_changed_have_another_entry(
    change: Callable[[Path], None], path: Path, verified: Verified
) -> None:
    write_digests(path, None, cache=True)
    before = name_of(path)
    change(path)
    assert name_of(path) != before
    report = verified(path)
    assert (report.status, report.digests) == (Status.EQUAL, None)


def test_hashes_do_not_care_for_times_or_places(path: Path, verified: Verified) -> None:
    said = write_digests(path, None, cache=True, hashed=True).cache
    assert said.startswith("digests kept by SHA-256 of its files")
    assert verified(path).digests is None  # times were not what it was kept by
    assert verified(path, checksums=True).digests
    moved(path)
    assert verified(path, checksums=True).digests
    one_bit(path)
    assert verified(path, checksums=True).digests is None


def test_another_release_has_another_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(path)
    monkeypatch.setattr(digest_cache, "version", lambda _: "other")
    assert name_of(path) != before


def test_a_family_that_is_described_otherwise_has_another_entry(path: Path) -> None:
    file, checkpoint = path.parent / "family.py", ModelCheckpoint(path)
    names = {entry_name(checkpoint)}
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        names.add(entry_name(checkpoint, [file]))
    assert len(names) == 3


def snapshot(base: Path, commit: str, files: dict[str, bytes]) -> Directory:
    """A snapshot as the hub's cache has it."""
    at, blobs = base / "models--org--name" / "snapshots" / commit, base / "models--org--name/blobs"
    at.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    for name, content in files.items():
        blob = blobs / f"{abs(hash(content)):064x}"[:64]
        blob.write_bytes(content)
        (at / name).symlink_to(Path("../../blobs", blob.name))
    return Directory(at)


def identity(place: Directory) -> Identity:
    found = place.identity()
    assert found
    return found


def test_a_snapshot_of_the_hub_goes_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded a moment ago, or again and elsewhere: a commit has one content."""
    monkeypatch.setattr(time, "time_ns", NOW)
    files = {"config.json": b"{}", "model.safetensors": b"1"}
    one = identity(snapshot(tmp_path / "a", "0" * 40, files))
    again = identity(snapshot(tmp_path / "b", "0" * 40, files))
    other = identity(snapshot(tmp_path / "c", "1" * 40, files))
    assert one == again != other
    assert (one.by, one.settled) == ("its commit on the hub", True)
    loose = snapshot(tmp_path / "d", "0" * 40, files)
    (loose.path / "model.safetensors").unlink()
    (loose.path / "model.safetensors").write_bytes(b"1")  # a file of somebody's own
    edited = identity(Directory(loose.path))
    assert (edited.by, edited.settled) == ("its files' sizes and times", False)


class OneObject(Bucket):
    """A bucket with one object."""

    def __init__(self, endpoint: str, version: str, size: int) -> None:
        self.endpoint = endpoint
        self._stored = StoredObject(size, version)

    def list(self, prefix: str) -> dict[str, StoredObject]:
        return {"model.safetensors": self._stored}

    def read(self, key: str, version: str, start: int, stop: int) -> bytes:
        raise AssertionError("nothing is read for an identity")

    def checksums(self, key: str) -> dict[str, str]:
        return {}


def test_a_store_goes_by_its_objects_versions_and_no_secret_is_in_it() -> None:
    def of(url: str, endpoint: str, version: str, size: int) -> tuple[str, ...]:
        found = Store(url, OneObject(endpoint, version, size), "p/").identity()
        assert found
        assert found.settled
        return found.facts

    plain = of("s3://b/p", "http://host:9000", '"1"', 3)
    assert plain == of("s3://b/p", "http://user:pass@host:9000?token=x", '"1"', 3)
    assert "pass" not in str(of("s3://b/p", "http://user:pass@host:9000?token=pass", '"1"', 3))
    others = [
        of("s3://c/p", "http://host:9000", '"1"', 3),
        of("s3://b/p", "http://host:9001", '"1"', 3),
        of("s3://b/p", "http://host:9000", '"2"', 3),
        of("s3://b/p", "http://host:9000", '"1"', 4),
    ]
    assert len({plain, *others}) == 5


def test_names_and_contents_of_entries_hold_no_place(path: Path, place: Path) -> None:
    write_digests(path, None, cache=True)
    (entry,) = place.iterdir()
    assert str(path).encode() not in entry.read_bytes()
    assert set(entry.stem) <= set("0123456789abcdef")


# Races.


def test_what_was_written_a_moment_ago_is_not_kept(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", NOW)
    touched(path)
    said = write_digests(path, None, cache=True).cache
    assert said.startswith("digests are not kept: a file was written less than two seconds before")
    assert not place.exists()


def test_what_changes_while_it_is_digested_is_not_kept(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed = Digesting.completed

    def late(self: Digesting, *given: Any) -> Any:
        one_bit(path)
        return completed(self, *given)

    monkeypatch.setattr(Digesting, "completed", late)
    with pytest.raises(BadInput, match="the file changed while it was loaded"):
        write_digests(path, None, cache=True)
    assert not place.exists()


@pytest.mark.usefixtures("own_memory")
@pytest.mark.parametrize("kept", [True, False])
def test_what_changes_before_the_load_ends_the_run(
    kept: bool, path: Path, here: Here, verified: Verified, place: Path
) -> None:
    if kept:
        write_digests(path, None, cache=True)
    here.before = lambda: one_bit(path)
    with pytest.raises(BadInput, match="changed while it was"):
        verified(path)
    assert place.exists() is kept


def test_an_entry_that_goes_meanwhile_is_not_missed(
    path: Path, here: Here, verified: Verified, place: Path
) -> None:
    write_digests(path, None, cache=True)
    here.before = lambda: shutil.rmtree(place)
    report = verified(path)
    assert (report.status, bool(report.digests)) == (Status.EQUAL, True)


def test_writers_at_once_leave_whole_entries(path: Path, place: Path) -> None:
    digests, cache = digests_of(ModelCheckpoint(path)), DigestCache()
    names = [f"{number:064x}.digests" for number in range(4)]
    writers = [
        threading.Thread(target=lambda n=name: [cache.keep(n, digests) for _ in range(10)])
        for name in names * 2
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        for name in names:
            found = cache.find(name)
            assert found is None or found.identity == name.removesuffix(".digests")
    assert sorted(file.name for file in place.iterdir()) == names
    assert cache.notes == []


# What lies there is not believed unseen.


def truncated(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-7])


def flipped(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)


def emptied(entry: Path) -> None:
    entry.write_bytes(b"")


def foreign(entry: Path) -> None:
    """A valid digest file that is not this entry."""
    digests = decoded(entry.read_bytes(), "")
    entry.write_bytes(digests.encoded("0" * 64))


def exported(entry: Path) -> None:
    """A valid digest file that is no entry at all."""
    entry.write_bytes(decoded(entry.read_bytes(), "").encoded())


def huge(entry: Path) -> None:
    os.truncate(entry, 1 << 40)


def link(entry: Path) -> None:
    entry.rename(entry.parent.parent / "elsewhere")
    entry.symlink_to(entry.parent.parent / "elsewhere")


def pipe(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry)


def folder(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


def shared(entry: Path) -> None:
    entry.parent.chmod(0o777)


def linked_directory(entry: Path) -> None:
    entry.parent.rename(entry.parent.parent / "others")
    entry.parent.symlink_to(entry.parent.parent / "others")


def another_definition(entry: Path) -> None:
    content = entry.read_bytes()
    entry.write_bytes(content.replace(b'"definition":"1"', b'"definition":"7"'))


DAMAGES = [
    truncated, flipped, emptied, foreign, exported, huge, link, pipe, folder, shared,
    linked_directory, another_definition,
]  # fmt: skip
#: Nothing can be written there either.
LASTING = [folder, shared, linked_directory]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_tampered_with_is_ignored_with_a_line_and_made_again(
    damage: Callable[[Path], None], path: Path, place: Path, verified: Verified
) -> None:
    write_digests(path, None, cache=True)
    damage(place / name_of(path))
    report = verified(path)
    assert (report.status, report.digests, report.exit_code) == (Status.EQUAL, None, 0)
    assert "not used" in report.cache
    said = write_digests(path, None, cache=True).cache
    if damage in LASTING:
        assert "digests are not kept in" in said
    else:
        assert verified(path).digests


def test_another_users_directory_is_not_used(
    path: Path, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digests(path, None, cache=True)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert "the directory is another user's" in verified(path).cache


def test_kept_digests_of_other_shapes_are_not_used(
    path: Path, verified: Verified, tmp_path: Path
) -> None:
    """Under the right name, which takes somebody who may write there."""
    other = write_checkpoint(RECIPE, tmp_path / "other", experts=4).path
    DigestCache().keep(name_of(path), digests_of(ModelCheckpoint(other)))
    report = verified(path)
    assert (report.status, report.digests) == (Status.EQUAL, None)
    assert "kept digests are not used: this digest file is of another checkpoint" in report.cache


def test_the_directory_is_the_owners_alone(path: Path, place: Path) -> None:
    write_digests(path, None, cache=True)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_full_disk_is_no_failure(
    path: Path, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digest_cache, "write", full)
    said = write_digests(path, None, cache=True).cache
    assert said.endswith(": No space left on device")


# How much is kept.


def test_the_oldest_go_first(path: Path, place: Path) -> None:
    digests, cache = digests_of(ModelCheckpoint(path)), DigestCache()
    names = [f"{number:064x}.digests" for number in range(5)]
    cache.keep(names[0], digests)
    size = (place / names[0]).stat().st_size
    cache = DigestCache(most=3 * size)
    (place / ".harness-left").write_bytes(b"half of one")
    os.utime(place / ".harness-left", (0, 0))
    for number, name in enumerate(names):
        cache.keep(name, digests)
        os.utime(place / name, (number, number))
    cache.keep(names[4], digests)
    assert sorted(file.name for file in place.iterdir()) == names[2:]


def test_doctor_says_what_is_kept(path: Path, place: Path) -> None:
    def told() -> list[str]:
        lines = CliRunner().invoke(main, ["doctor"]).stdout.splitlines()
        return [line for line in lines if line.startswith("digests")]

    assert told() == [f"digests   0 checkpoints kept, 0 bytes: {place}"]
    write_digests(path, None, cache=True)
    first, entry = told()
    assert first.startswith("digests   1 checkpoint kept, ")
    assert entry.startswith(f"digests     {name_of(path)[:12]} of qwen3-vl-moe, ")
    assert entry.endswith(", 0.0 days old")
    place.chmod(0o777)
    assert "others may write to the directory" in told()[-1]


def test_digest_keeps_unless_it_is_told_not_to(path: Path, place: Path, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["digest", str(path), *out, "--no-cache"])
    assert (result.exit_code, place.exists()) == (0, False)
    assert CliRunner().invoke(main, ["digest", str(path), "--no-cache"]).exit_code == 2
    result = CliRunner().invoke(main, ["digest", str(path)])
    assert (result.exit_code, len(list(place.iterdir()))) == (0, 1)
    assert "cache: digests kept by its files' sizes and times" in result.stdout
