"""Each shape in which a loader is called, and what the audit says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

import pytest

from harness.audit import audit
from harness.audit.call import Verdict
from harness.audit.report import AuditReport
from harness.errors import BadInput
from tests import audited

CALL = "weight_loader(param, weight, name, shard_id, expert_id, return_success=True)"


@dataclass(frozen=True)
class Shape:
    """The body of a function of a model, and the calls found in it.

    ``param``, ``weight``, ``name``, ``shard_id`` and ``expert_id`` are the function's arguments.

    Attributes:
        calls: verdict and line inside the body, of each call but the plain ones.
        corrected: of the first call.
    """

    id: str
    body: str
    calls: tuple[tuple[str, int], ...]
    corrected: str = ""


RIGHT = CALL.replace("shard_id, expert_id", "shard_id=shard_id, expert_id=expert_id")

POSITIONAL = (
    Shape("attribute", f"weight_loader = param.weight_loader\n{CALL}", (("positional", 2),), RIGHT),
    Shape(
        "getattr",
        f'weight_loader = getattr(param, "weight_loader", default_weight_loader)\n{CALL}',
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "cast",
        f"weight_loader = typing.cast(Callable[..., bool], param.weight_loader)\n{CALL}",
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "annotated, in a loop",
        f"weight_loader: Callable = param.weight_loader\nfor expert_id in ids:\n    {CALL}",
        (("positional", 3),),
        RIGHT,
    ),
    Shape(
        "direct",
        "param.weight_loader(param, weight, name, shard_id, expert_id)",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "of a dictionary",
        "params[name].weight_loader(params[name], weight, name, shard_id, expert_id, True)",
        (("positional", 1),),
        "params[name].weight_loader(params[name], weight, name, shard_id=shard_id, "
        "expert_id=expert_id, return_success=True)",
    ),
    Shape(
        "walrus",
        f'if (weight_loader := getattr(param, "weight_loader", None)) is not None:\n    {CALL}',
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "walrus called at once",
        '(load := getattr(param, "weight_loader"))(param, weight, name, shard_id, expert_id)',
        (("positional", 1),),
    ),
    Shape(
        "one id only",
        "param.weight_loader(param, weight, name, shard_id, expert_id=expert_id)",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "either of two",
        f"weight_loader = param.weight_loader if fused else default_weight_loader\n{CALL}",
        (("positional", 2),),
    ),
    Shape(
        "partial of the parameter",
        "load = functools.partial(param.weight_loader, param)\n"
        "load(weight, name, shard_id, expert_id)",
        (("positional", 2),),
        "load(weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "partial of the ids",
        "load = partial(param.weight_loader, param, weight, name, shard_id, expert_id)\nload()",
        (("positional", 1), ("forwarded", 2)),
        "partial(param.weight_loader, param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "helper gets the loader",
        """
        def load(loader, expert_id):
            return loader(param, weight, name, shard_id, expert_id)

        load(param.weight_loader, expert_id=expert_id)
        """,
        (("positional", 2),),
    ),
    Shape(
        "helper of a helper",
        """
        def inner(loader, target):
            loader(target, weight, name, shard_id, expert_id)

        def outer(loader, target):
            inner(target=target, loader=loader)

        outer(param.weight_loader, param)
        """,
        (("positional", 2),),
    ),
    Shape(
        "helper returns the loader",
        """
        def loader_of(tensor):
            found = getattr(tensor, "weight_loader", default_weight_loader)
            return found

        loader_of(param)(param, weight, name, shard_id, expert_id)
        """,
        (("positional", 5),),
    ),
    Shape(
        "nested lambda",
        "weight_loader = param.weight_loader\n"
        "load = lambda e: (lambda s: weight_loader(param, weight[e], name, s, e))(shard_id)\n"
        "load(expert_id)",
        (("positional", 2),),
        "weight_loader(param, weight[e], name, shard_id=s, expert_id=e)",
    ),
    Shape(
        "local function called by its name",
        """
        weight_loader = param.weight_loader

        def load(param, expert_id):
            weight_loader(param, weight, name, shard_id, expert_id)

        load(param, expert_id)
        """,
        (("positional", 4),),
    ),
    Shape(
        "kept on self",
        "self.load = param.weight_loader\nself.load(param, weight, name, shard_id, expert_id)",
        (("positional", 2),),
    ),
    Shape(
        "literal star",
        "param.weight_loader(param, weight, *(name, shard_id, expert_id))",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "star for the ids",
        "param.weight_loader(param, weight, name, *ids, return_success=True)",
        (("positional", 1),),
    ),
    Shape(
        "both in one tuple assignment",
        "load, target = param.weight_loader, param\n"
        "load(target, weight, name, shard_id, expert_id)",
        (("positional", 2),),
    ),
)

IN_ORDER = (
    Shape("keyword", f"weight_loader = param.weight_loader\n{RIGHT}", (("keyword", 2),)),
    Shape(
        "all by keyword",
        "param.weight_loader(param=param, loaded_weight=weight, weight_name=name, "
        "shard_id=shard_id, expert_id=expert_id)",
        (("keyword", 1),),
    ),
    Shape(
        "ids that are None",
        "param.weight_loader(param, weight, weight_name=name, shard_id=None, expert_id=None)",
        (("null", 1),),
    ),
    Shape("linear", "param.weight_loader(param, weight, shard_id)", (("linear", 1),)),
    Shape("plain", "param.weight_loader(param, weight)", ()),
    Shape(
        "another contract",
        "param.weight_loader(param, weight, name, layer_name)",
        (("other", 1),),
    ),
    Shape(
        "another contract, by keyword",
        "param.weight_loader(param, weight, name, expert_id=expert_id)",
        (("other", 1),),
    ),
    Shape(
        "passed on",
        "param.weight_loader(param, weight, *args, **kwargs)",
        (("forwarded", 1),),
    ),
    Shape(
        "wrapper put in the loader's place",
        """
        original = param.weight_loader

        def converted(param, weight, name, shard_id, expert_id):
            return original(param, weight.T, name, shard_id, expert_id)

        param.weight_loader = converted
        """,
        (("wrapped", 4),),
    ),
    Shape(
        "wrapper as a lambda",
        "original = param.weight_loader\n"
        "param.weight_loader = lambda p, w, n, s, e: original(p, w, n, s, e)",
        (("wrapped", 2),),
    ),
    Shape(
        "wrapper around a loader handed in",
        """
        def around(weight_loader):
            def inner(param, weight, name, shard_id, expert_id):
                return weight_loader(param, weight, name, shard_id, expert_id)

            return inner

        around(attributes.pop("weight_loader"))
        """,
        (("wrapped", 3),),
    ),
    Shape(
        "the parent's",
        "super().weight_loader(param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "its own",
        "self.weight_loader(param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "a class's",
        "FusedMoE.weight_loader(self, param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "a layer's",
        "self.block.weight_loader(self.block.w13, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape("no loader", "compute(param, weight, name, shard_id, expert_id)", ()),
    Shape(
        "the default's",
        "default_weight_loader(param, weight, name, shard_id, expert_id)",
        (),
    ),
)

UNDECIDED = (
    Shape(
        "out of a table",
        "loaders[name] = param.weight_loader\n"
        "loaders[name](param, weight, name, shard_id, expert_id)",
        (("undecided", 2),),
        "loaders[name](param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "out of another module",
        "find_weight_loader(param)(param, weight, name, shard_id, expert_id)",
        (("undecided", 1),),
    ),
)

_HEAD = """class TinyMoeModel:
    def load(self, param, weight, name, shard_id, expert_id):
"""


def audit_of(at: Path, body: str) -> AuditReport:
    source = _HEAD + indent(dedent(body).strip("\n"), " " * 8) + "\n"
    return audit(audited.vllm(at, {"tiny_moe": source}))


@pytest.mark.parametrize("shape", [*POSITIONAL, *IN_ORDER, *UNDECIDED], ids=lambda s: s.id)
def test_every_shape(tmp_path: Path, shape: Shape) -> None:
    report = audit_of(tmp_path, shape.body)
    calls = sorted([*report.findings, *report.others], key=lambda call: call.line)
    found = [(c.verdict.value, c.line - 2) for c in calls if c.verdict is not Verdict.PLAIN]
    assert found == list(shape.calls)
    assert report.exit_code == int(shape in POSITIONAL)
    if shape.corrected:
        assert calls[0].corrected == shape.corrected


def test_what_a_finding_says(tmp_path: Path) -> None:
    (finding,) = audit_of(tmp_path, POSITIONAL[1].body).findings
    assert finding.place == "vllm/model_executor/models/tiny_moe.py:4:9"
    assert finding.function == "TinyMoeModel.load"
    assert finding.seen_by_hook == "args=(name, shard_id, expert_id), kwargs={return_success: True}"
    assert finding.positional_ids == ("shard_id", "expert_id")


def test_the_signature_is_read_and_not_assumed(tmp_path: Path) -> None:
    """Where the ids stand elsewhere, other positions are theirs."""
    layer = """
    class RoutedExperts:
        def weight_loader(self, param, expert_id, shard_id, loaded_weight): ...
    """
    model = "def load(param):\n    param.weight_loader(param, 0, 'w1', w)\n"
    report = audit(audited.vllm(tmp_path, {"tiny_moe": model}, layer))
    assert str(report.signature).startswith("RoutedExperts.weight_loader(param, expert_id, ")
    (finding,) = report.findings
    assert finding.corrected == (
        "param.weight_loader(param, expert_id=0, shard_id='w1', loaded_weight=w)"
    )


def test_the_classes_concerned(tmp_path: Path) -> None:
    tiny = """
    def load_experts(param, weight, name, s, e):
        param.weight_loader(param, weight, name, s, e)

    class TinyMoeModel:
        def load_weights(self, weights):
            load_experts(*weights)

    class TinyMoeForCausalLM:
        def __init__(self):
            self.model = TinyMoeModel()

    class Unconcerned:
        pass
    """
    user = """
    from vllm.model_executor.models.tiny_moe import TinyMoeForCausalLM

    class UserForCausalLM(TinyMoeForCausalLM):
        pass
    """
    other = "class OtherForCausalLM:\n    pass\n"
    path = audited.vllm(tmp_path, {"tiny_moe": tiny, "user": user, "other": other})
    (finding,) = audit(path).findings
    assert finding.function == "load_experts"
    assert finding.classes == ("TinyMoeForCausalLM", "TinyMoeModel", "UserForCausalLM")
    assert finding.architectures == ("TinyMoeForCausalLM", "UserForCausalLM")


def test_what_the_hooks_read(tmp_path: Path) -> None:
    report = audit(audited.vllm(tmp_path, {}), audited.tpu_inference(tmp_path))
    linear, moe, wrapper = report.hooks
    assert [(read.name, read.source, read.line) for read in linear.reads] == [
        ("shard_id", "args[0]", 4)
    ]
    assert linear.requires == ("len(args) == 1, 'the shard alone'",)
    assert moe.function == "MoeMethod.maybe_process_weights"
    assert [(read.name, read.source) for read in moe.reads] == [
        ("expert_id", "kwargs.get('expert_id')"),
        ("shard_id", "kwargs['shard_id']"),
    ]
    assert (wrapper.function, wrapper.hands_to) == (
        "attach.create.wrapper",
        "maybe_process_weights",
    )


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (None, "no package vllm here"),
        ({}, "no class here has a weight_loader with shard_id and expert_id"),
        ({"model_executor/layers/fused_moe/layer.py": "def weight_loader(:"}, "not Python"),
    ],
)
def test_no_vllm(tmp_path: Path, files: dict[str, str] | None, match: str) -> None:
    if files is not None:
        audited.package(tmp_path, "vllm", files)
    with pytest.raises(BadInput, match=match):
        audit(tmp_path)


def test_a_checkout_and_a_package_directory_are_alike(tmp_path: Path) -> None:
    checkout = audited.vllm(tmp_path, {})
    assert audit(checkout).packages[0].files == audit(checkout / "vllm").packages[0].files == 3
