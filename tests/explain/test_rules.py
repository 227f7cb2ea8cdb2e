"""Each rule sees what it is for, names its place, and lets everything else pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.base.bits import Bits, converted
from harness.explain import provenance
from harness.explain.causes import Cause, Finding
from harness.explain.delivery_rules import bias_lost
from harness.explain.diagnosis import AroundExpert, slice_of, words_of
from harness.explain.evidence import Evidence, Granule, Need, Rule
from harness.explain.origin_rules import another_tensor, draft_layer
from harness.explain.provenance import (
    FileSearch,
    ReferenceIndex,
    find_bytes,
    lines_of,
    needle,
)
from harness.explain.rules import RULES, explain
from harness.explain.value_rules import nan_canonicalised, nans_of_a_conversion
from harness.families.experts import ExpertKey, ReferencePart
from harness.families.family import Part, Projection
from harness.load.ledger import POISON
from tests.support.damages import DAMAGES

KEY = ExpertKey(Part.DECODER, 1, 4, Projection.UP)
Change = Callable[[Bits, ReferencePart], Bits]


def evidence(
    reference: ReferencePart,
    change: Change,
    key: ExpertKey = KEY,
    index: ReferenceIndex | None = None,
    search: FileSearch | None = None,
) -> Evidence:
    """What a rule sees of ``key`` when the device holds ``change`` of its reference."""

    def held(other: ExpertKey) -> Bits:
        bits = reference[other]
        return change(bits.copy(), reference) if other == key else bits

    index = index or ReferenceIndex([reference], reference.__getitem__)
    around = AroundExpert(key, index, search or FileSearch(reference.checkpoint), held, 8)
    return Evidence(
        slice=slice_of(key), words=words_of(key), wanted=lambda: reference[key],
        device=around.device, dtype="BF16", stored=lambda: reference.stored(key), around=around,
        stored_transposed=True,
        granules=(Granule("shard", 0, 12),), has=frozenset(Need) - {Need.HEADS, Need.TIE},
    )  # fmt: skip


def found(reference: ReferencePart, change: Change) -> Finding:
    """What the first rule that fires says, or the last resort."""
    return explain(evidence(reference, change))


def other(**changes: object) -> Change:
    return lambda bits, reference: reference[KEY._replace(**changes)]  # type: ignore[arg-type]


def filled(value: int, where: tuple[slice, slice]) -> Change:
    def change(bits: Bits, _: ReferencePart) -> Bits:
        bits[where] = value
        return bits

    return change


def flip(bits: Bits, _: ReferencePart) -> Bits:
    bits[5, 7] ^= 64
    return bits


def no_sign(bits: Bits, _: ReferencePart) -> Bits:
    bits[bits == 0x8000] = 0
    return bits


def flushed(bits: Bits, _: ReferencePart) -> Bits:
    return np.where((bits & 0x7F80) == 0, bits & 0x8000, bits).astype(bits.dtype)


def through_float16(bits: Bits, _: ReferencePart) -> Bits:
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        back = wide.astype(np.float16).astype(np.float32).view(np.uint32)
    return ((back + 0x7FFF + ((back >> 16) & 1)) >> 16).astype(np.uint16)


def halves_of_two(bits: Bits, reference: ReferencePart) -> Bits:
    bits[:24] = reference[KEY._replace(expert=2)][:24]
    return bits


def corner(bits: Bits, reference: ReferencePart) -> Bits:
    bits[:] = POISON[2]
    bits[:48, :48] = reference[KEY].T[:48, :48]
    return bits


def bytes_of_attention(bits: Bits, reference: ReferencePart) -> Bits:
    name = "model.language_model.layers.0.self_attn.o_proj.weight"
    bits.ravel()[:] = reference.checkpoint.bits(name).ravel()[: bits.size]
    return bits


def broken_run(bits: Bits, _: ReferencePart) -> Bits:
    flat = bits.T.copy()
    flat.ravel()[640:704] = np.arange(64) * 257 + 11
    return np.ascontiguousarray(flat.T)


def noise(bits: Bits, _: ReferencePart) -> Bits:
    return np.random.default_rng(1).integers(0, 1 << 15, bits.shape).astype(np.uint16)


ROWS = slice(44, 48), slice(None)
# fmt: off
CASES: dict[str, tuple[Change, Cause]] = {
    "zeros": (filled(0, (slice(None), slice(None))), Cause.ZEROS),
    "another layer": (other(layer=0), Cause.OTHER_LAYER),
    "another expert": (other(expert=2), Cause.EXPERTS_PERMUTED),
    "another projection": (other(projection=Projection.GATE), Cause.OTHER_SLICE),
    "the transpose": (lambda b, _: b.T.reshape(b.shape), Cause.TRANSPOSED),
    "no sign of zero": (no_sign, Cause.SIGN_OF_ZERO),
    "no subnormals": (flushed, Cause.SUBNORMALS_FLUSHED),
    "one bit": (flip, Cause.BIT_FLIP),
    "last rows never written": (filled(POISON[2], ROWS), Cause.NARROWED),
    "last rows zero": (filled(0, ROWS), Cause.NARROWED),
    "a corner of the transpose": (corner, Cause.WRONG_CORNER),
    "taken for float16": (lambda b, _: converted(b, "F16", "BF16"), Cause.OTHER_DTYPE),
    "through float16": (through_float16, Cause.DTYPE_ROUND_TRIP),
    "never written": (filled(POISON[2], (slice(None), slice(None))), Cause.UNWRITTEN),
    "rows rolled": (lambda b, _: np.roll(b, 12, 0), Cause.ROLLED),
    "shards exchanged": (
        lambda b, _: b[[*range(12, 24), *range(12), *range(24, 48)]], Cause.SHARDS_EXCHANGED,
    ),
    "two rows exchanged": (
        lambda b, _: b[[0, 7, *range(2, 7), 1, *range(8, 48)]], Cause.ROWS_EXCHANGED,
    ),
    "two columns exchanged": (
        lambda b, _: b[:, [9, *range(1, 9), 0, *range(10, 128)]], Cause.ROWS_EXCHANGED,
    ),
    "halves taken for alternating rows": (
        lambda b, r: np.concatenate([r[KEY._replace(projection=Projection.GATE)], b])[1::2],
        Cause.INTERLEAVED,
    ),
    "columns rolled": (lambda b, _: np.roll(b, -3, 1), Cause.ROLLED),
    "half of another expert": (halves_of_two, Cause.MIXED),
    "bytes of another tensor": (bytes_of_attention, Cause.OTHER_BYTES),
    "a broken run": (broken_run, Cause.DAMAGED),
    "noise": (noise, Cause.UNEXPLAINED),
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_a_slice_is_explained(decoder: ReferencePart, case: str) -> None:
    change, cause = CASES[case]
    finding = found(decoder, change)
    assert finding.cause is cause, finding
    assert "decoder layer 1" in f"{finding.summary} {finding.evidence}"


def test_every_rule_has_a_damage_or_is_the_first_to_fire_in_a_case(decoder: ReferencePart) -> None:
    """But for those of values that this checkpoint does not hold, and of tensors."""
    fired: set[Rule | None] = set()
    for change, _ in CASES.values():
        e = evidence(decoder, change)
        fired.add(next((each for each in RULES if each.needs <= e.has and each.look(e)), None))
    planted = {damage.rule for damage in DAMAGES}
    elsewhere = {nan_canonicalised, nans_of_a_conversion, another_tensor, draft_layer, bias_lost}
    assert {*RULES} - planted <= fired | elsewhere


def test_every_rule_names_a_cause_and_no_two_causes_are_told_alike() -> None:
    assert all(each.causes for each in RULES)
    steps = [cause.next_step for cause in Cause]
    assert all(steps)
    assert len(set(steps)) > len(steps) - 3


def test_the_place_is_told(decoder: ReferencePart) -> None:
    assert "rolled by 12" in found(decoder, CASES["rows rolled"][0]).summary
    assert (
        "[44:48, 0:128] is never written"
        in found(decoder, CASES["last rows never written"][0]).evidence
    )
    assert (
        "0-23 from expert 2 up_proj" in found(decoder, CASES["half of another expert"][0]).evidence
    )
    assert "a run of 128 bytes" in found(decoder, CASES["a broken run"][0]).summary
    bytes_ = found(decoder, CASES["bytes of another tensor"][0])
    assert "layers.0.self_attn.o_proj.weight at byte 0" in bytes_.evidence


def test_a_mutual_exchange_needs_both(decoder: ReferencePart) -> None:
    """Expert 4 holding 2's bytes is an exchange only if 2 holds 4's."""
    assert found(decoder, other(expert=2)).cause is Cause.EXPERTS_PERMUTED


def test_a_run_of_one_value_is_no_needle(decoder: ReferencePart) -> None:
    constant = np.full((4, 64), 7, np.uint16)
    assert needle(constant, constant == constant) is None
    varied = np.arange(256, dtype=np.uint16).reshape(4, 64)
    run = needle(varied, varied == varied)
    assert run == varied[0, :24].tobytes()
    assert find_bytes(decoder.checkpoint, run) is None


def noise_of(key: ExpertKey) -> Change:
    rng = np.random.default_rng(key.expert + 100 * key.layer)
    return lambda bits, _: rng.integers(0, 1 << 16, bits.shape, dtype=np.uint16)


def test_garbage_is_looked_for_so_many_times_only(
    decoder: ReferencePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[bytes] = []
    monkeypatch.setattr(provenance, "find_bytes", lambda _, run: searched.append(run))
    each = decoder.checkpoint.nbytes
    index = ReferenceIndex([decoder], decoder.__getitem__)
    search = FileSearch(decoder.checkpoint, of_layer=8 * each, of_all=9 * each)

    def garbage(layer: int, expert: int) -> Finding:
        key = ExpertKey(Part.DECODER, layer, expert, Projection.UP)
        return explain(evidence(decoder, noise_of(key), key, index, search))

    findings = [garbage(0, expert) for expert in range(8)]
    assert len(searched) == 8  # two for a slice: as it is, and transposed
    assert {f.cause for f in findings} == {Cause.UNEXPLAINED}
    assert len({f.group for f in findings}) == 1
    told = ["not looked for" in f.evidence for f in findings]
    assert told == [False] * 4 + [True] * 4
    garbage(1, 0)
    assert len(searched) == 9  # another layer has searches of its own, if any are left


def test_what_was_found_once_is_looked_at_first(
    decoder: ReferencePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.language_model.layers.0.self_attn.o_proj.weight"
    held = decoder.checkpoint.bits(name).tobytes()
    search = FileSearch(decoder.checkpoint)
    assert search.bytes_at(KEY, 1, held[:48]) == (name, 0)
    monkeypatch.setattr(provenance, "find_bytes", lambda *_: pytest.fail("searched again"))
    assert search.bytes_at(KEY._replace(expert=5), 1, held[64:112]) == (name, 64)
    assert not search.unsearched


def test_the_lines_of_one_layer_are_kept(decoder: ReferencePart) -> None:
    """Both axes of it; those of another layer are made anew, and take their place."""
    read: list[ExpertKey] = []

    def bits_of(key: ExpertKey) -> Bits:
        read.append(key)
        return decoder[key]

    index = ReferenceIndex([decoder], bits_of)
    of_a_layer = len(list(decoder.keys_of(0)))
    for layer, axis, made in (
        (0, 0, True), (0, 1, True), (0, 0, False), (1, 0, True), (1, 0, False), (0, 1, True),
    ):  # fmt: skip
        key = KEY._replace(layer=layer)
        known = index.lines(key, axis)
        assert {known[line].key for line in lines_of(decoder[key], axis)} == {key}
        assert len(read) == (of_a_layer if made else 0)
        read.clear()
