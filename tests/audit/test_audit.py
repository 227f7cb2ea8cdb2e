"""Each shape in which a loader is called, and what the audit says of it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from harness.audit.audit_report import AuditReport
from harness.audit.call import CallVerdict
from harness.audit.contract import audit
from harness.base.errors import BadInput
from tests.support import audited
from tests.support.audit_shapes import IN_ORDER, POSITIONAL, UNDECIDED, Shape

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
    found = [(c.verdict.value, c.line - 2) for c in calls if c.verdict is not CallVerdict.PLAIN]
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
