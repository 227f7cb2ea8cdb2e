"""Parameters besides experts by what devices say that they digest to: nothing passes unread.

The devices here are the host's arrays that answer as a device does; XLA's answers are held to the
host's by ``tests/on_stack/test_digest_xla.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.bits import Bits, Nan
from harness.base.errors import BadInput
from harness.compare import parameter_comparison, tensor_sums
from harness.compare.authority import WEIGHTS
from harness.compare.difference import Kind
from harness.compare.digest_comparison import Method
from harness.compare.digesting import Digesting, digests_of
from harness.compare.expert_comparison import PartComparison
from harness.compare.pieces import PieceSize
from harness.devices import programs
from harness.devices.tensors import DeviceShard, DeviceTensor
from harness.explain.causes import Cause
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.synthetic.writer import write_checkpoint
from tests.support.packing import PackedDevice
from tests.support.parameter_cases import Case, Paths, case
from tests.support.parameter_faults import (
    ATTENTION,
    FAULTS,
    HEAD,
    VL,
    Change,
    array_of,
    poison_the_head,
)
from tests.support.parameter_packing import LANGUAGE, Array, PackedParameters, line


def unread(tensors: list[DeviceTensor], but: str = "") -> list[DeviceTensor]:
    """Tensors whose bits cannot be fetched, but for buffers and those of one name."""

    def never(_: object) -> Bits:
        raise AssertionError("bits were read back")

    def closed(shard: DeviceShard) -> DeviceShard:
        return replace(shard, fetch=never, in_host_memory=False)

    return [
        t
        if "_scale" in t.name or t.name == but
        else replace(t, shards=tuple(map(closed, t.shards)))
        for t in tensors
    ]


@pytest.mark.parametrize("from_file", [False, True], ids=["weights", "digest-file"])
@pytest.mark.parametrize("size", [PieceSize(), PieceSize(4096, 8)])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("recipe", "part"),
    [(VL, Part.DECODER), ("qwen3.5-moe", Part.DECODER), ("qwen3.6-mtp", Part.MTP)],
)
def test_faithful_parameters_are_equal_and_not_read_back(
    tiny_checkpoints: Paths, recipe: str, part: Part, devices: int, size: PieceSize, from_file: bool
) -> None:
    given = case(tiny_checkpoints, recipe, part, devices)
    given.size = size
    tally = given.compared()[2].tally
    given.authority = digests_of(given.checkpoint) if from_file else WEIGHTS
    differences, _, comparison = given.compared(unread(given.device.tensors()))
    assert differences == []
    assert comparison.tally == tally


@pytest.mark.parametrize("from_file", [False, True], ids=["weights", "digest-file"])
@pytest.mark.parametrize(
    ("recipe", "change", "cause", "evidence"), FAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_fault_is_named_as_by_reading_back(
    tiny_checkpoints: Paths,
    recipe: str,
    change: Change,
    cause: Cause,
    evidence: str,
    from_file: bool,
) -> None:
    """Exchanged heads of an interleaved qkv, one replica of a norm, a state in f32, and so on."""
    planted = case(tiny_checkpoints, recipe)
    change(planted.device)
    read_back = planted.compared()[:2]
    planted.method = Method.DIGESTS
    planted.authority = digests_of(planted.checkpoint) if from_file else WEIGHTS
    assert planted.compared()[:2] == read_back
    assert {diagnosis.cause for diagnosis in read_back[1]} == {cause}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "part"),
    [("qwen3.5-moe", Part.DECODER), (VL, Part.DECODER), ("qwen3.5-mtp", Part.MTP)],
)
def test_one_bit_of_any_parameter_on_any_device_is_found(
    tiny_checkpoints: Paths, recipe: str, part: Part
) -> None:
    """Of every replica: each device is asked for its own."""
    given = case(tiny_checkpoints, recipe, part)
    given.method = Method.DIGESTS
    for name in given.device.packed:
        if "rotary" in name:
            continue
        for device in given.device.devices:
            given.device.reading = {(name, device): flipped}
            (difference,) = given.compared()[0]
            assert difference.parameter == name
            assert (difference.kind, difference.device_name) == (Kind.BITS, device)


def flipped(bits: Array) -> Array:
    bits = np.array(bits)  # of a scalar, too
    bits[(-1,) * bits.ndim] ^= 1
    return bits


def test_what_differs_alone_is_read_back(tiny_checkpoints: Paths) -> None:
    given = case(tiny_checkpoints, VL)
    array_of(given.device, ATTENTION)[3, 2 * 128 + 40] ^= 2
    (difference,) = given.compared(unread(given.device.tensors(), but=ATTENTION))[0]
    assert (difference.kind, difference.parameter) == (Kind.BITS, ATTENTION)


def uneven_vocabulary(tmp_path: Path) -> Case:
    """500 rows in arrays of 512."""
    checkpoint = ModelCheckpoint(
        write_checkpoint(VL, tmp_path / "c", shapes="tiny:vocabulary").path
    )
    device = PackedParameters(checkpoint, Part.DECODER)
    return Case(checkpoint, Part.DECODER, device, line(device.devices), method=Method.DIGESTS)


def test_padding_that_is_not_zero(tmp_path: Path) -> None:
    given = uneven_vocabulary(tmp_path)
    differences, _, comparison = given.compared(unread(given.device.tensors()))
    assert (differences, comparison.tally.padding_bytes) == ([], 2 * 12 * 128 * 2)
    for row in (500, 511):
        array = array_of(given.device, HEAD)
        array[row, 9] = 0x8000  # of two zeros, the one with a sign
        (difference,) = given.compared(unread(given.device.tensors(), but=HEAD))[0]
        assert (difference.kind, difference.device_name) == (Kind.PADDING, "cpu:4")
        array[row, 9] = 0
    poison_the_head(given.device)
    assert given.causes() == {Cause.UNWRITTEN}


def test_a_cut_within_a_word_is_read_back(tiny_checkpoints: Paths) -> None:
    """Inputs cut over so many devices that a part of a row is an odd number of elements."""
    given = case(tiny_checkpoints, VL)
    name = f"{LANGUAGE}layers.0.self_attn.o_proj.weight"
    (tensor,) = [t for t in given.device.tensors() if t.name == name]
    view = given.compared()[2].views.fitting[name]
    odd = replace(
        tensor.shards[1], index=tuple(replace(s, start=s.start + 1) for s in tensor.shards[1].index)
    )
    assert tensor_sums.question_of(tensor.shards[1], view.layout)
    assert tensor_sums.question_of(odd, view.layout) is None


@pytest.mark.parametrize("nan", Nan)
def test_nans_count_as_they_do_by_reading_back(tiny_checkpoints: Paths, nan: Nan) -> None:
    given = case(tiny_checkpoints, VL)
    read_back = given.compared(nan=nan)[0]
    given.method = Method.DIGESTS
    assert given.compared(nan=nan)[0] == read_back


def test_devices_that_make_no_digests_are_refused(tiny_checkpoints: Paths) -> None:
    given = case(tiny_checkpoints, VL)
    given.method = Method.DIGESTS
    unable = [
        replace(t, shards=tuple(replace(s, held=None) for s in t.shards))
        for t in given.device.tensors()
    ]
    with pytest.raises(BadInput, match=r"digests cannot be used for cpu:1 \(--compare digests\)"):
        given.compared(unable)


@pytest.mark.parametrize("spoilt", ["wanted", "padding"])
def test_a_digest_that_differs_while_the_bits_do_not_is_no_equality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    given = uneven_vocabulary(tmp_path)
    if spoilt == "wanted":
        monkeypatch.setattr(
            parameter_comparison, "digests_of_rows", lambda *_: [np.zeros(4, np.uint32)]
        )
    else:
        given.device.reading[HEAD, "cpu:4"] = lambda bits: bits
        tensors = [with_other_answers(t) if t.name == HEAD else t for t in given.device.tensors()]
    with pytest.raises(RuntimeError, match="our fault"):
        given.compared(tensors if spoilt == "padding" else None)


def with_other_answers(tensor: DeviceTensor) -> DeviceTensor:
    """The same bits, of which the last device says something else: its last row is not zero."""
    *others, last = tensor.shards
    assert last.held
    array = np.array(last.held.array)
    array[-1, 0] = 1
    return replace(tensor, shards=(*others, replace(last, held=replace(last.held, array=array))))


def test_devices_are_asked_about_a_layer_at_once(
    tiny_checkpoints: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = programs.ask

    def counted(questions: Any) -> Any:
        questions = list(questions)
        asked.append(len(questions))
        return ask(questions)

    monkeypatch.setattr(parameter_comparison, "ask", counted)
    given = case(tiny_checkpoints, VL)
    given.method = Method.DIGESTS
    comparison = given.compared()[2]
    layers = {name.split(".layers.")[1][0] for name in given.device.packed if ".layers." in name}
    assert sum(asked) == len(given.device.devices) * comparison.tally.compared
    assert len(asked) < comparison.tally.compared / 4
    assert len(asked) > len(layers)


def test_whoever_listens_hears_of_what_was_digested(tiny_checkpoints: Paths) -> None:
    """So that digests can be kept of a checkpoint of which no bits were handed on."""
    made = digests_of(ModelCheckpoint(tiny_checkpoints[VL]))
    given = case(tiny_checkpoints, VL)
    given.method, checkpoint = Method.DIGESTS, given.checkpoint
    checkpoint.listener = heard = Digesting(checkpoint)
    assert given.compared()[0] == []
    (part,) = reference_parts(checkpoint)
    device = PackedDevice(part).part()
    assert list(PartComparison(part, device, method=Method.DIGESTS).differences()) == []
    assert heard.missing == 0
    assert heard.completed().encoded() == made.encoded()
