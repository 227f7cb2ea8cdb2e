"""What is read and digested by one compiled call is what the definition says, or is told of."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from harness.base.bits import ITEMSIZE, bits_dtype
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.checkpoint.stores.directory import LocalFile
from harness.compare import file_sums
from harness.compare.file_sums import HeldForm, digests_of_rows, form_of
from harness.devices import digest as definition
from harness.devices.digest import digest_of_rows
from harness.devices.expert_layout import Span

OFFSET = 6  # of the tensor in its file: no multiple of a word


def entry(path: Path, dtype: str, shape: tuple[int, ...]) -> TensorEntry:
    size = int(np.prod(shape)) * ITEMSIZE[dtype]
    path.write_bytes(b"\x01" * OFFSET + np.random.default_rng(3).bytes(size) + b"\x02" * 9)
    return TensorEntry("t", dtype, shape, LocalFile(path), OFFSET)


@pytest.mark.parametrize("chunk", [64, 4096, 1 << 20])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F8_E4M3"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (33, 6), (33, 7), (16, 3, 4), (0, 4), (4, 0), (260, 128)]
)
def test_rows_of_any_tensor(
    shape: tuple[int, ...], dtype: str, compiled: bool, chunk: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tensor = entry(tmp_path / "f", dtype, shape)
    bits = np.frombuffer((tmp_path / "f").read_bytes()[OFFSET:-9], bits_dtype(dtype)).reshape(shape)
    count = shape[0] if shape else 1
    if not compiled:
        monkeypatch.setattr(file_sums, "kernels", lambda: None)
    some = {Span(count // 3, count), Span(count // 2, count // 2)} if shape else set()
    for rows in {Span(0, count), *some}:
        (found,) = digests_of_rows(tensor, rows, [form_of(dtype)], chunk)
        wanted = digest_of_rows(bits[rows.as_slice()] if shape else bits, rows.start, count)
        assert found.tolist() == wanted.tolist()


def test_a_form_that_keeps_nothing_is_asked(tmp_path: Path) -> None:
    tensor = entry(tmp_path / "f", "BF16", (8, 8))
    turned = HeldForm(lambda bits, dtype: bits ^ np.uint16(1))
    bits = np.asarray(tensor.bits())
    (found,) = digests_of_rows(tensor, Span(0, 8), [turned])
    assert found.tolist() == digest_of_rows(bits ^ np.uint16(1), 0, 8).tolist()


def test_a_file_that_was_cut_short_is_bad_input(tmp_path: Path) -> None:
    tensor = entry(tmp_path / "f", "BF16", (64, 128))
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[: OFFSET + 5000])
    with pytest.raises(BadInput, match=r"ends .* bytes too early"):
        digests_of_rows(tensor, Span(0, 64), [form_of("BF16")])


@pytest.mark.parametrize("made", ["a folder", "nothing"])
def test_what_cannot_be_opened_is_bad_input(made: str, tmp_path: Path) -> None:
    tensor = entry(tmp_path / "f", "BF16", (64, 128))
    (tmp_path / "f").unlink()
    if made == "a folder":
        (tmp_path / "f").mkdir()
    with pytest.raises(BadInput):
        digests_of_rows(tensor, Span(0, 64), [form_of("BF16")])


def test_the_second_level_is_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(5).integers(0, 1 << 32, (4, 77), dtype=np.uint32)
    found = [definition.finished(part, 3, 100) for part in (sums, sums[:, ::2], sums[:, 5:6])]
    monkeypatch.setattr(definition, "kernels", lambda: None)
    again = [definition.finished(part, 3, 100) for part in (sums, sums[:, ::2], sums[:, 5:6])]
    assert [f.tolist() for f in found] == [a.tolist() for a in again]


def test_reading_holds_no_lock(tmp_path: Path) -> None:
    """A thread of Python's goes on while another one's part is read: it is one call."""
    tensor = entry(tmp_path / "f", "BF16", (4096, 4096))
    digests_of_rows(tensor, Span(0, 8), [form_of("BF16")])
    calls: list[int] = []
    by_descriptor = tensor.file.by_descriptor

    def counted(offset: int, nbytes: int, read: object) -> int:
        calls.append(nbytes)
        return by_descriptor(offset, nbytes, read)  # type: ignore[arg-type]

    tensor.file.by_descriptor = counted  # type: ignore[method-assign]
    turns, ended = [0], threading.Event()

    def count() -> None:
        while not ended.is_set():
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = turns[0]
        for _ in range(5):
            digests_of_rows(tensor, Span(0, 4096), [form_of("BF16")])
    finally:
        ended.set()
        thread.join()
    assert calls == [tensor.nbytes] * 5
    assert turns[0] > before
