"""What naming rules find in a checkpoint that no family describes, and how it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.families import unknown
from harness.families.family import Family, Part
from harness.families.known_families import recipe_named
from harness.families.model_checkpoint import ModelCheckpoint
from harness.families.storage import ExpertNaming, ExpertSizes, Storage
from harness.families.unknown import (
    NamingRule,
    UnknownTensors,
    account_of,
    family_of_experts,
    readings_of,
)

SIZES = ExpertSizes(4, 32, 12)
TEXT = {"hidden_size": 32}


def entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    """Tensors of no file."""
    nowhere: Any = None
    return {name: TensorEntry(name, "BF16", shape, nowhere, 0) for name, shape in shapes.items()}


def experts(
    prefix: str = "model.layers.{layer}.mlp.experts",
    storage: Storage = Storage.PER_EXPERT,
    layers: tuple[int, ...] = (0, 1),
) -> dict[str, tuple[int, ...]]:
    naming = ExpertNaming(Part.DECODER, prefix, storage)
    return {t.name: t.shape for layer in layers for t in naming.tensors(layer, SIZES)}


def renamed(tiny: Path, to: Path, name: str = "FooForCausalLM") -> Path:
    """A copy of a checkpoint, of an architecture that nobody knows."""
    shutil.copytree(tiny, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    return to


@pytest.fixture
def found(tiny_checkpoints: dict[str, Path], recipe: str) -> UnknownTensors:
    """The account of a known family's checkpoint, by rules alone."""
    checkpoint = ModelCheckpoint(tiny_checkpoints[recipe])
    return account_of(checkpoint.entries, checkpoint.text)


def test_the_rules_find_the_experts_of_every_family(found: UnknownTensors, recipe: str) -> None:
    family, described = recipe_named(recipe)
    storage = described.decoder or family.namings[0].storage
    wanted = next(n for n in family.namings if (n.part, n.storage) == (Part.DECODER, storage))
    (reading,) = (r for r in found.readings if r.naming == wanted)
    tiny = family.tiny
    assert reading.sizes == (tiny.experts, tiny.hidden, tiny.intermediate)
    of_decoder = tuple(n for n in range(tiny.layers) if tiny.has_experts(n))
    # A draft model that goes on counting: names alone do not tell its layer from the decoder's.
    assert reading.layers in (of_decoder, (*of_decoder, tiny.layers))
    assert (tiny.layers in reading.layers) is (recipe == "deepseek-v3-mtp")


def test_the_rules_know_the_names_of_every_family(found: UnknownTensors) -> None:
    assert not found.unknown


@pytest.mark.parametrize("front", ["model.", "transformer.", "a.b.c.model.language_model."])
@pytest.mark.parametrize("storage", [Storage.PER_EXPERT, Storage.FUSED])
def test_what_comes_before_a_layer_may_be_anything(front: str, storage: Storage) -> None:
    prefix = f"{front}layers.{{layer}}.mlp.experts"
    (reading,) = readings_of(entries(experts(prefix, storage, (1, 3))), TEXT)
    assert (reading.naming.prefix, reading.naming.storage) == (prefix, storage)
    assert (reading.layers, reading.sizes) == ((1, 3), SIZES)


LAST = "model.layers.1.mlp.experts.3.down_proj.weight"
FIRST = "model.layers.0.mlp.experts.0.up_proj.weight"


@pytest.mark.parametrize(
    "spoiled",
    [
        {LAST: None},
        {FIRST: (32, 12)},
        {LAST: (32, 13)},
        {LAST.replace(".3.", ".4."): (32, 12)},
        {LAST.replace(".3.", ".999999999."): (32, 12)},
        {LAST.replace(".3.", f".{'9' * 5000}."): (32, 12)},
        {LAST: (32, 12, 1)},
        {FIRST.replace(".up_proj", ".down_proj"): ()},
    ],
    ids=["one lost", "one turned", "one wider", "one more", "a large number", "no number", "a cube",
         "a scalar"],
)  # fmt: skip
def test_shapes_have_to_agree_with_names(spoiled: dict[str, tuple[int, ...] | None]) -> None:
    shapes = {n: s for n, s in (experts() | spoiled).items() if s is not None}
    assert readings_of(entries(shapes), TEXT) == ()
    assert len(readings_of(entries(experts()), TEXT)) == 1


def test_the_hidden_size_has_to_be_that_of_the_configuration() -> None:
    assert readings_of(entries(experts()), {"hidden_size": 33}) == ()
    assert len(readings_of(entries(experts()), {})) == 1


@pytest.mark.parametrize("hidden", [None, 24])
def test_what_shapes_cannot_tell_apart_has_several_readings(
    hidden: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 2F = D the down projection alone tells the orientation; nothing tells of alternation."""
    storages = (Storage.FUSED, Storage.FUSED_TRANSPOSED, Storage.INTERLEAVED)
    names = ("gate_up_proj", "down_proj")
    rules = tuple(NamingRule(".mlp.experts", each, names, "mlp.experts") for each in storages)
    monkeypatch.setattr(unknown, "rules", lambda asked: rules)
    shapes = {"layers.0.mlp.experts.gate_up_proj": (4, 24, 24)}
    shapes["layers.0.mlp.experts.down_proj"] = (4, 12, 24)
    text = {"hidden_size": hidden} if hidden else {}
    found = readings_of(entries(shapes), text)
    assert [r.naming.storage for r in found] == [Storage.FUSED_TRANSPOSED, Storage.INTERLEAVED]
    account = account_of(entries(shapes), text)
    assert "names and shapes allow several readings" in account.lines[0]


def family(spoiled: Mapping[str, object], shapes: dict[str, tuple[int, ...]]) -> Family:
    """What stands for a family of tensors, whose configuration is complete but for ``spoiled``."""
    config = TEXT | {"num_experts": 4, "moe_intermediate_size": 12, "num_hidden_layers": 2}
    return family_of_experts("Foo", "config.json", config | dict(spoiled), entries(shapes))


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({}, ["num_experts", "moe_intermediate_size"]),
        (
            {"num_experts": None, "num_local_experts": 4, "intermediate_size": 12,
             "moe_intermediate_size": 13},
            ["num_local_experts", "intermediate_size"],
        ),
    ],
    ids=["the usual keys", "others"],
)  # fmt: skip
def test_experts_alone_need_no_family(config: dict[str, object], keys: list[str]) -> None:
    found = family(config, experts("x.layers.{layer}.mlp.experts"))
    assert [found.sizes[0][0], found.sizes[2][0]] == keys
    assert found.namings[0].prefix == "x.layers.{layer}.mlp.experts"
    assert (found.name, found.sections, found.experts_module) == ("Foo", (), "mlp.experts")
    assert found.moe_layers.of({}, 2, "") == (0, 1)
    assert found.moe_layers.of({}, 1, "") == (0,)


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ({}, {"lm_head.weight": (8, 32)}, "the naming rules of known families find no experts"),
        ({"hidden_size": 31}, experts(), "the naming rules of known families find no experts"),
        ({}, experts() | experts("audio.{layer}.mlp.experts"), "2 readings of the experts"),
        ({"num_experts": 5}, experts(), "the files hold 4 experts, config.json says"),
        ({"moe_intermediate_size": 9}, experts(), "the files hold 12 features of an expert"),
    ],
    ids=["none", "another width", "two models", "another count", "another size"],
)
def test_experts_that_cannot_be_told_are_refused(
    config: dict[str, object],
    shapes: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    with pytest.raises(BadInput, match=message):
        family(config, shapes)


def test_what_nobody_knows_is_listed_by_patterns() -> None:
    shapes = experts() | {
        f"model.layers.{n}.mixer.conv.{i}.w": (1,) for n in (0, 1) for i in (0, 7)
    }
    shapes |= {"lm_head.weight": (8, 32), "model.layers.0.self_attn.q_proj.weight": (32, 32)}
    found = account_of(entries(shapes), TEXT)
    assert found.unknown == {"model.layers.*.mixer.conv.*.w": 4}
    assert sum(found.kinds.values()) == 2
    assert found.summary == "by names, 26 of its 30 tensors can be accounted for, 4 not"
    assert found.lines[-1] == "       4 model.layers.*.mixer.conv.*.w"


def test_a_long_list_is_cut() -> None:
    found = account_of(entries({f"odd.{'x' * n}": (1,) for n in range(1, 40)}), TEXT)
    assert found.lines[-1] == "         and 27 more kinds of name"
    assert found.lines[1] == "  none"


def test_an_architecture_without_a_family(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = renamed(tiny_checkpoints["qwen3-moe"], tmp_path / "foo")
    ended = CliRunner().invoke(main, ["verify", str(path)])
    assert ended.exit_code == 2
    paragraph, *lines = ended.stderr.splitlines()
    assert "unknown architecture FooForCausalLM: no family describes it" in paragraph
    assert "69 of its 69 tensors can be accounted for, 0 not" in paragraph
    assert "--family FILE" in paragraph
    assert "docs/own-family.md" in paragraph
    assert (
        "  8 experts in each of 2 layers (0 to 1), per-expert, model.layers.*.mlp.experts: "
        "gate_proj, up_proj, down_proj; hidden size 128, width 48"
    ) in lines
    assert lines[-2:] == ["tensors that nobody accounts for:", "  none"]
