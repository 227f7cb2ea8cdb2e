"""Digest files: what is in one, whichever storage it was made from, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st

from harness.base.bits import converted
from harness.base.errors import BadInput
from harness.compare import digest_file
from harness.compare.authority import What
from harness.compare.digest_file import DigestFile, read_digest_file
from harness.compare.digesting import digests_of
from harness.devices.digest import Words, digest, digest_of_rows
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part, Storage
from harness.families.known_families import families, recipes
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from tests.support.restored import restored
from tests.support.retyping import cast

TINY = "qwen3.5-mtp"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ModelCheckpoint:
    return ModelCheckpoint(write_checkpoint(TINY, tmp_path_factory.mktemp("digests") / "c").path)


@pytest.fixture(scope="module")
def content(checkpoint: ModelCheckpoint) -> bytes:
    return digests_of(checkpoint).encoded()


def parts_of(checkpoint: ModelCheckpoint) -> tuple[ReferencePart, ...]:
    return reference_parts(checkpoint, asked=())


def read(content: bytes, path: Path) -> DigestFile:
    path.write_bytes(content)
    return read_digest_file(path)


def known(digests: DigestFile, what: What, dtype: str) -> Words:
    found = digests.digest(what, dtype)
    assert found is not None
    return found


def test_it_has_every_matrix_and_every_tensor(
    recipe: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
    digests = read(digests_of(checkpoint).encoded(), tmp_path / "d")
    digests.require_of(checkpoint, parts_of(checkpoint))
    experts = set()
    for part in parts_of(checkpoint):
        for key in part:
            wanted = digest(part[key], 0 if key.projection == "down_proj" else 1)
            assert np.array_equal(known(digests, key, part.shape.dtype), wanted)
            experts.add(part.source(key).tensor)
    others = {t.name: t for t in digests.contents.tensors}
    assert experts | set(others) == set(checkpoint.entries)
    assert not experts & set(others)
    for name, tensor in others.items():
        entry = checkpoint.entries[name]
        assert (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)
        for dtype in tensor.types:
            bits = converted(np.asarray(entry.bits()), entry.dtype, dtype)
            wanted = digest_of_rows(bits, 0, len(bits))
            assert np.array_equal(known(digests, name, dtype), wanted)


def test_it_says_what_it_is_of(checkpoint: ModelCheckpoint, content: bytes, tmp_path: Path) -> None:
    contents = read(content, tmp_path / "d").contents
    files = {file.name: file.size for file in contents.files}
    assert files == {
        name: file.size
        for name, file in checkpoint.location.files.items()
        if name.endswith(".safetensors")
    }
    assert (contents.family, contents.revision) == ("qwen3.5-moe", "")
    assert [part.part for part in contents.parts] == [Part.DECODER, Part.MTP]


def test_the_same_checkpoint_gives_the_same_bytes(
    checkpoint: ModelCheckpoint, content: bytes, tmp_path: Path
) -> None:
    again = write_checkpoint(TINY, tmp_path / "elsewhere").path
    assert digests_of(ModelCheckpoint(again)).encoded() == content
    other = write_checkpoint(TINY, tmp_path / "other", seed=1).path
    assert digests_of(ModelCheckpoint(other)).encoded() != content


def test_the_field_reads_it(content: bytes, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    (tmp_path / "d").write_bytes(content)
    with safetensors.safe_open(tmp_path / "d", "numpy") as file:
        assert file.metadata()["format"] == digest_file.FORMAT
        assert file.get_tensor("experts.decoder.BF16").shape == (2, 8, 3, 4)


def test_a_snapshot_of_the_hub_is_named_with_its_checksums(tmp_path: Path) -> None:
    repository, commit = tmp_path / "models--org--name", "0123456789" * 4
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    blobs.mkdir(parents=True)
    write_checkpoint(TINY, snapshot)
    for file in snapshot.glob("*.safetensors"):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(blob)
    contents = digests_of(ModelCheckpoint(snapshot)).contents
    assert contents.revision == f"org/name@{commit}"
    assert all(set(file.known) == {"SHA256"} for file in contents.files)


STORAGES = [
    (name, part, storage)
    for name, (family, recipe) in recipes().items()
    for part in {naming.part for naming in family.namings}
    if part is Part.DECODER or recipe.mtp
    for storage in {naming.storage for naming in family.namings if naming.part is part}
]


@pytest.mark.parametrize(("recipe", "part", "storage"), sorted(STORAGES))
def test_another_storage_of_the_same_values_has_the_same_digests(
    recipe: str, part: Part, storage: Storage, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tiny_checkpoints[recipe]
    family = recipes()[recipe][0]
    naming = next(n for n in family.namings if (n.part, n.storage) == (part, storage))
    saved = ModelCheckpoint(restored(path, tmp_path / "saved", {part: naming}), storage)
    digests = digests_of(ModelCheckpoint(path))
    digests.require_of(saved, parts_of(saved))
    again = digests_of(saved)
    assert again.contents.parts == digests.contents.parts
    assert again.contents.tensors == digests.contents.tensors
    assert np.array_equal(again.rows, digests.rows)
    for key, words in digests.experts.items():
        assert np.array_equal(again.experts[key], words)


def test_every_family_with_several_storages_is_tried() -> None:
    several = {f.name for f in families() if len({n.storage for n in f.namings}) > 1}
    assert several
    assert several <= {recipes()[name][0].name for name, *_ in STORAGES}


@pytest.mark.parametrize("dtype", ["F32", "F16", "F64"])
def test_tensors_of_another_type_are_digested_as_they_are_held_too(
    dtype: str, checkpoint: ModelCheckpoint, tmp_path: Path
) -> None:
    made = cast(Path(checkpoint.path), tmp_path / "cast", {".*": dtype})
    digests = digests_of(ModelCheckpoint(made))
    held = {t.name: set(t.types) for t in digests.contents.tensors}
    wide = {name for name, types in held.items() if "F32" in types}
    assert any(name.endswith("A_log") for name in wide)
    assert all(
        types == {dtype, "F32" if n.endswith("A_log") else "BF16"} for n, types in held.items()
    )
    assert digests.contents.parts[0].types == ("BF16", dtype)
    part = parts_of(ModelCheckpoint(made))[0]
    key = next(iter(part))
    stored, _ = part.stored(key)
    assert np.array_equal(known(digests, key, dtype), digest(stored, 1))
    assert np.array_equal(known(digests, key, "BF16"), digest(part[key], 1))


def test_an_fp8_release_has_none(tmp_path: Path) -> None:
    path = write_checkpoint("qwen3-moe", tmp_path / "c", shapes="tiny:blocks", quantised="fp8").path
    with pytest.raises(BadInput, match="digests cannot be used for a quantised release"):
        digests_of(ModelCheckpoint(path))


# What a file that comes from outside may be.

Change = Callable[[dict[str, Any]], None]


def rewritten(content: bytes, change: Change, extra: bytes = b"") -> bytes:
    """The file with its header changed, and the checksum made right again."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["contents"] = json.loads(header["__metadata__"]["contents"])
    change(header)
    contents = header["__metadata__"]["contents"]
    header["__metadata__"]["contents"] = (
        contents if isinstance(contents, str) else json.dumps(contents)
    )
    header["__metadata__"]["checksum"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    blank = len(text).to_bytes(8, "little") + text + content[8 + length :] + extra
    checksum = hashlib.sha256(blank).hexdigest()
    return blank.replace(b'"checksum":"' + b"0" * 64, f'"checksum":"{checksum}'.encode())


def of_contents(change: Callable[[Any], None]) -> Change:
    return lambda header: change(header["__metadata__"]["contents"])


def nothing(header: dict[str, Any]) -> None:
    """Leave it as it is."""


def _first_twice(contents: Any) -> None:
    contents["tensors"][1][0] = contents["tensors"][0][0]


CHANGES: dict[str, tuple[Change, str]] = {
    "another format": (
        lambda h: h["__metadata__"].update(format="other"), "it is not one"
    ),
    "another definition": (
        lambda h: h["__metadata__"].update(definition="2"), "digests by definition '2'"
    ),
    "no contents": (lambda h: h["__metadata__"].update(contents=""), "contents are malformed"),
    "contents of another kind": (
        lambda h: h["__metadata__"].update(contents="[1]"), "contents are malformed"
    ),
    "an unknown field": (of_contents(lambda c: c.update(more=1)), "contents are malformed"),
    "a tensor twice": (of_contents(_first_twice), "names something twice"),
    "a part twice": (
        of_contents(lambda c: c["parts"].append(c["parts"][0])), "names something twice"
    ),
    "a layer twice": (
        of_contents(lambda c: c["parts"][0].update(layers=[0, 0])), "names something twice"
    ),
    "an unknown type": (
        of_contents(lambda c: c["tensors"][0].__setitem__(3, ["B12"])), "an unknown type"
    ),
    "no type": (of_contents(lambda c: c["tensors"][0].__setitem__(3, [])), "malformed"),
    "huge counts": (
        of_contents(lambda c: c["parts"][0].update(experts=2**31 - 1)), "its arrays are not"
    ),
    "counts beyond bounds": (
        of_contents(lambda c: c["parts"][0].update(experts=2**62)), "malformed"
    ),
    "a negative count": (of_contents(lambda c: c["parts"][0].update(experts=-1)), "malformed"),
    "a tensor too many": (
        of_contents(lambda c: c["tensors"].append(["t", "BF16", [1], ["BF16"]])),
        "its arrays are not",
    ),
    "another array": (lambda h: h.update(more=h.pop("tensors")), "its arrays are not"),
    "an array of another type": (
        lambda h: h["tensors"].update(dtype="I32"), "its arrays are not"
    ),
}  # fmt: skip


def test_a_file_that_is_only_written_anew_is_read(content: bytes, tmp_path: Path) -> None:
    assert read(rewritten(content, nothing), tmp_path / "d").matrices == 72


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_says_something_else_is_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    change, told = CHANGES[name]
    with pytest.raises(BadInput, match=re.escape(told)) as error:
        read(rewritten(content, change), tmp_path / "d")
    assert error.value.where == str(tmp_path / "d")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: (
        st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some, max_size=3)
    ),
    max_leaves=5,
)


def leaves(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The paths of all that a JSON value holds, its own first."""
    keys: Iterable[Any] = ()
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
    return [path, *(found for key in keys for found in leaves(value[key], (*path, key)))]


@hypothesis.given(data=st.data(), instead=ANYTHING)
def test_whatever_it_says_it_is_read_or_refused(
    data: st.DataObject, instead: Any, content: bytes, checkpoint: ModelCheckpoint
) -> None:
    def change(header: dict[str, Any]) -> None:
        whole = header["__metadata__"]
        place = data.draw(st.sampled_from(leaves(whole["contents"], ("contents",))[:60]))
        for key in place[:-1]:
            whole = whole[key]
        whole[place[-1]] = instead

    try:
        with tempfile.TemporaryDirectory() as directory:
            found = read(rewritten(content, change), Path(directory, "d"))
        found.require_of(checkpoint, parts_of(checkpoint))
    except BadInput:
        return
    assert found.matrices == 72


def _duplicated(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].rstrip()[:-1] + b',"tensors":{}}'
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "broken safetensors file"),
    "truncated": (lambda c: c[:-1], "its checksum"),
    "too long": (lambda c: c + b"\0", "its checksum"),
    "a huge header": (lambda c: (2**62).to_bytes(8, "little") + c[8:], "broken safetensors file"),
    "an array twice": (_duplicated, "names 'tensors' twice"),
    "one digest changed": (lambda c: c[:-5] + bytes([c[-5] ^ 1]) + c[-4:], "its checksum"),
    "one name changed": (lambda c: c.replace(b"lm_head", b"lm_haed", 1), "its checksum"),
    "another checksum": (
        lambda c: re.sub(rb'"checksum":"[0-9a-f]{64}', b'"checksum":"' + b"1" * 64, c),
        "its checksum",
    ),
    "no checksum": (
        lambda c: re.sub(rb'"checksum":"[0-9a-f]{64}', b'"checksum":"' + b"0" * 64, c),
        "its checksum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    change, told = BYTES[name]
    with pytest.raises(BadInput, match=re.escape(told)):
        read(change(content), tmp_path / "d")


def test_every_byte_counts(content: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for at in {8, len(content) - 1, *rng.integers(0, len(content), 60).tolist()}:
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(BadInput):
            read(bytes(damaged), tmp_path / "d")


def test_weights_are_no_digest_file(checkpoint: ModelCheckpoint) -> None:
    file = next(f for n, f in checkpoint.location.files.items() if n.endswith(".safetensors"))
    with pytest.raises(BadInput, match="it is not one"):
        read_digest_file(str(file))


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "d").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match="a file of 1099511627776 bytes"):
        read_digest_file(tmp_path / "d")


# Of which checkpoint.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": 3}, "layers with experts, or their sizes"),
        ({"experts": 16}, "layers with experts, or their sizes"),
        ({"tied": True}, "only one of the two ties the head"),
        ({"shapes": "tiny:vocabulary"}, "is BF16"),
    ],
    ids=str,
)
def test_another_checkpoints_digests_are_refused(
    options: dict[str, Any], told: str, content: bytes, tmp_path: Path
) -> None:
    other = ModelCheckpoint(write_checkpoint(TINY, tmp_path / "c", **options).path)
    with pytest.raises(BadInput, match=re.escape(told)):
        read(content, tmp_path / "d").require_of(other, parts_of(other))


def test_other_parts_are_refused(content: bytes, tmp_path: Path) -> None:
    other = ModelCheckpoint(write_checkpoint("qwen3.5-moe", tmp_path / "c").path)
    with pytest.raises(BadInput, match="of decoder, mtp, the checkpoint experts of decoder"):
        read(content, tmp_path / "d").require_of(other, parts_of(other))


def test_another_revision_is_refused(tmp_path: Path) -> None:
    commits = "a" * 40, "b" * 40
    made = []
    for commit in commits:
        snapshot = tmp_path / "models--org--name" / "snapshots" / commit
        made.append(ModelCheckpoint(write_checkpoint(TINY, snapshot).path))
    digests = digests_of(made[0])
    digests.require_of(made[0], parts_of(made[0]))
    with pytest.raises(BadInput, match="file is of another checkpoint: it is of 'org/name@aaa"):
        digests.require_of(made[1], parts_of(made[1]))
    unknown = replace(digests, contents=replace_revision(digests, ""))
    unknown.require_of(made[1], parts_of(made[1]))


def replace_revision(digests: DigestFile, revision: str) -> Any:
    return msgspec.structs.replace(digests.contents, revision=revision)


def test_digests_of_another_type_than_the_checkpoints_are_refused(
    checkpoint: ModelCheckpoint, content: bytes, tmp_path: Path
) -> None:
    wide = ModelCheckpoint(cast(Path(checkpoint.path), tmp_path / "wide", {".*norm.*": "F32"}))
    with pytest.raises(BadInput, match="in the file and F32"):
        read(content, tmp_path / "d").require_of(wide, parts_of(wide))
    of_wide = read(digests_of(wide).encoded(), tmp_path / "w")
    of_wide.require_of(checkpoint, parts_of(checkpoint))  # it has those of bf16, too
