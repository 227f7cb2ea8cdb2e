"""Tensors nobody read, parameters nobody wrote and experts that came twice are differences."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import InternalError
from harness.compare.accounting import CUT, left_alone
from harness.compare.difference import Difference, Kind, Tally, TensorUnread
from harness.compare.parameter_comparison import ParameterComparison
from harness.compare.selection import Chosen
from harness.compare.words import device_words, source_words
from harness.devices.parameter_layout import Packing
from harness.families.experts import ReferencePart, reference_parts
from harness.families.family import Part
from harness.families.known_families import family_named
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger, LoaderCall
from harness.report.report import require_covered
from harness.synthetic.writer import write_checkpoint
from harness.verification.coverage import (
    NOT_ASKED,
    NOT_SELECTED,
    ComparedTensors,
    account_of_reference,
    coverage,
    expert_sources,
    require_recorded,
    require_streamed,
)
from tests.support.differences import a_difference
from tests.support.ledgers import call, whole
from tests.support.parameter_packing import PackedParameters, line
from tests.support.silent_worlds import change_tensors, some

HEAD = "lm_head.weight"


def delivered(*names: str) -> list[LoaderCall]:
    return [call("some.weight", source=name) for name in names]


def uncovered(part: ReferencePart, **ledger: Any) -> list[Difference]:
    return coverage(part, Ledger(**ledger))[1]


def test_all_is_accounted_for(decoder: ReferencePart) -> None:
    counts, differences = coverage(decoder, Ledger(calls=delivered("a"), streamed=["a"]))
    assert (counts.streamed, counts.delivered, counts.unused, counts.unread) == (1, 1, 0, 0)
    assert differences == []


def test_a_tensor_nobody_read(decoder: ReferencePart) -> None:
    (difference,) = uncovered(decoder, streamed=[HEAD])
    assert difference.kind is Kind.UNREAD
    assert source_words(difference).endswith(f".safetensors {HEAD}")


def test_a_parameter_nobody_wrote(decoder: ReferencePart) -> None:
    (difference,) = uncovered(decoder, unwritten=["language_model.lm_head.weight"])
    assert (difference.kind, difference.parameter) == (
        Kind.UNWRITTEN, "language_model.lm_head.weight",
    )  # fmt: skip


def test_unwritten_experts_are_left_to_the_comparison(decoder: ReferencePart) -> None:
    assert uncovered(decoder, unwritten=["model.layers.0.mlp.experts.w13_weight"]) == []


def test_an_expert_delivered_twice(decoder: ReferencePart) -> None:
    calls = [c._replace(parameter=c.parameter.replace(".3.", ".1.")) for c in whole(2) * 2]
    differences = uncovered(decoder, calls=calls)
    assert [(d.kind, d.layer, d.expert) for d in differences] == [(Kind.DELIVERY, 1, 2)] * 3
    assert device_words(differences[0]) == "delivered 2 times"


@pytest.mark.parametrize(
    ("part", "tensor", "tied", "unused"),
    [
        (Part.DECODER, "mtp.layers.0.mlp.gate.weight", False, True),
        (Part.MTP, "mtp.layers.0.mlp.gate.weight", False, False),
        (Part.MTP, "model.visual.blocks.0.attn.qkv.weight", False, True),
        (Part.MTP, "model.language_model.layers.1.mlp.gate.weight", False, True),
        (Part.MTP, "model.language_model.embed_tokens.weight", False, False),
        (Part.DECODER, HEAD, True, True),
        (Part.DECODER, HEAD, False, False),
        (Part.DECODER, "model.visual.blocks.0.attn.qkv.weight", False, False),
    ],
)
def test_what_a_part_leaves_alone(part: Part, tensor: str, tied: bool, unused: bool) -> None:
    assert bool(family_named("qwen3.5-moe").unused_reason(part, tensor, tied)) is unused


def test_a_tied_head_is_counted_as_unused(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "tied")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    counts, differences = coverage(
        reference_parts(ModelCheckpoint(path))[0], Ledger(streamed=[HEAD])
    )
    assert (counts.unused, counts.unread, differences) == (1, 0, [])


def test_scales_count_beside_codes_alone(tmp_path: Path) -> None:
    """Of an FP8 release every tensor is some array's source, but for a scale of a BF16 norm."""
    path = write_checkpoint(
        "qwen3.5-mtp", tmp_path / "c", shapes="tiny:blocks", quantised="fp8"
    ).path
    stray = "mtp.layers.0.input_layernorm.weight_scale_inv"
    change_tensors(path, lambda tensors: tensors.update({stray: some()}))
    checkpoint = ModelCheckpoint(path)
    sources: set[str] = set()
    for part in reference_parts(checkpoint):
        device = PackedParameters(checkpoint, part.part)
        mesh = line(device.devices)
        comparison = ParameterComparison(part, device.tensors(), mesh, packing=Packing())
        sources |= comparison.sources.keys() | expert_sources(part, Chosen(part)).keys()
    assert checkpoint.entries.keys() - sources == {stray}


@pytest.mark.parametrize(("layer", "reason"), [(0, ""), (1, CUT), (2, ""), ("01", "")], ids=str)
def test_a_layer_is_left_out_if_config_json_has_it(
    tiny_checkpoints: dict[str, Path], layer: object, reason: str
) -> None:
    part, *_ = reference_parts(ModelCheckpoint(tiny_checkpoints["qwen3-vl-moe"]), 1)
    name = f"model.language_model.layers.{layer}.input_layernorm.weight"
    assert left_alone(part, name, [Part.DECODER]) == reason


@pytest.mark.parametrize(("present", "unused"), [((), False), (tuple(Part), True)])
def test_the_draft_models_own_needs_a_draft_model(present: tuple[Part, ...], unused: bool) -> None:
    assert (
        bool(family_named("qwen3.5-moe").unused_reason(Part.DECODER, "mtp.foo", False, present))
        is unused
    )


def test_what_is_left_alone_is_counted_by_its_reason(tiny_checkpoints: dict[str, Path]) -> None:
    checkpoint = ModelCheckpoint(tiny_checkpoints["qwen3.6-mtp"])
    (decoder, _) = reference_parts(checkpoint, 1)
    sources = dict.fromkeys((n for n in checkpoint.entries if ".layers.1." not in n), True)
    sources |= {name: False for name in sources if ".visual." in name}
    drafts = {name for name in sources if name.startswith("mtp.")}
    here = {name: chosen for name, chosen in sources.items() if name not in drafts}
    scope = ComparedTensors(checkpoint, [decoder], [Part.DECODER], here)
    account, differences = account_of_reference(scope, ())
    assert differences == []
    assert account.left_alone == {
        CUT: len(checkpoint.entries) - len(sources),
        NOT_SELECTED: sum(".visual." in name for name in sources),
        NOT_ASKED.format(part="mtp"): len(drafts),
    }
    assert account.compared == sum(here.values())


PAST = "load of mtp went past the recorder, which did not see "


@pytest.mark.parametrize(
    ("ledger", "missing"),
    [
        (Ledger(), "its end"),
        (Ledger(finished=True, bypassed=["a", "b"]), "what wrote 2 parameters, first a"),
    ],
)
def test_a_load_past_the_recorder(ledger: Ledger, missing: str) -> None:
    require_recorded(Part.MTP, Ledger(finished=True))
    with pytest.raises(InternalError, match=PAST + missing):
        require_recorded(Part.MTP, ledger)


@pytest.mark.parametrize("kind", Kind)
def test_a_load_of_nothing_is_told_by_what_the_devices_hold(kind: Kind) -> None:
    """Of all differences those of the weights alone show that nothing came."""
    nothing, differences = Ledger(finished=True), [a_difference(kind, part=Part.MTP)]
    told = (
        Kind.MISSING, Kind.BITS, Kind.VALUES, Kind.REPLICAS, Kind.UNWRITTEN, Kind.DIGEST,
    )  # fmt: skip
    if kind in told:
        require_streamed(Part.MTP, nothing, differences)
    else:
        with pytest.raises(InternalError, match=f"{PAST}a streamed tensor, a call of a weight"):
            require_streamed(Part.MTP, nothing, differences)


@pytest.mark.parametrize(
    ("ledger", "missing"),
    [
        (Ledger(calls=delivered("a")), "a streamed tensor"),
        (Ledger(streamed=["a"]), "a call of a weight_loader"),
    ],
)
def test_equal_weights_came_by_the_loader(ledger: Ledger, missing: str) -> None:
    require_streamed(Part.MTP, Ledger(calls=delivered("a"), streamed=["a"]), [])
    with pytest.raises(InternalError, match=PAST + missing):
        require_streamed(Part.MTP, ledger, [])


@pytest.mark.parametrize(
    ("compared", "parts", "told"),
    [(5, [Part.MTP], "mtp 5 of 6"), (6, list(Part), "mtp 6 of 6"), (7, [Part.MTP], "mtp 7 of 6")],
)
def test_what_was_not_compared_is_counted(compared: int, parts: list[Part], told: str) -> None:
    tally = Tally(part=Part.MTP, layers=1, experts=8, left_out=2, experts_compared=6)
    require_covered([tally], [Part.MTP])
    tally.experts_compared = compared
    with pytest.raises(InternalError, match=f"not all was compared: {told}"):
        require_covered([tally], parts)


def test_no_part_is_not_covered() -> None:
    with pytest.raises(InternalError, match="not all was compared: no part"):
        require_covered([], [])


def gathered(part: ReferencePart, lost: int | None = None) -> Ledger:
    """The ledger of a model that takes all but the head first; one call of a kind may be lost."""
    streamed = sorted(part.checkpoint.entries)
    below = "model.layers.{}.block_sparse_moe.experts.routed_experts.{}"
    calls = [
        call(below.format(layer, name), shard_id=shard, expert_id=expert, source=streamed[-1])
        for layer in part.layers
        for expert in range(part.shape.experts)
        for name, shard in (("w13_weight", "w1"), ("w13_weight", "w3"), ("w2_weight", "w2"))
    ]
    for rule in part.checkpoint.family.rules:
        for layer in (0, 1) if r"\d+" in rule.pattern.pattern else (0,):
            name = rule.pattern.pattern.replace(r"\d+", str(layer)).replace("\\", "")
            name = re.sub("[()]", "", name)
            source = name if name == HEAD else streamed[-1]
            calls += [call(name, source=source)] * len(rule.sources)
    if lost is not None:
        calls.pop(lost)
    return Ledger(streamed=streamed, calls=calls, finished=True)


@pytest.mark.parametrize(
    ("lost", "unread"),
    [
        (None, set()),
        (0, {"block_sparse_moe.input_linear"}),
        (2, {"block_sparse_moe.output_linear"}),
        (-1, {"lm_head"}),
    ],
)
def test_a_stream_that_is_gathered_first_is_accounted_for_by_parameters(
    tiny_checkpoints: dict[str, Path], lost: int | None, unread: set[str]
) -> None:
    (part,) = reference_parts(ModelCheckpoint(tiny_checkpoints["granite-moe"]))
    _, differences = coverage(part, gathered(part, lost))
    names = {each.tensor for each in differences if isinstance(each, TensorUnread)}
    ends = {name.removeprefix("model.layers.0.").removesuffix(".weight") for name in names}
    assert ends == unread
