"""What is noted of a load by tpu-inference's own models; these are made up, like those of nnx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.progress import Meter
from harness.explain.causes import Cause
from harness.explain.load_failure import diagnose_failure
from harness.families.family import Projection
from harness.families.known_families import family_of_architecture
from harness.load.ledger import Ledger
from harness.load.nnx_models import NnxRecorder, arrays_of, is_own_model

GEMMA = family_of_architecture("Gemma4ForConditionalGeneration")
EXPERTS = ("kernel_gating_EDF", "kernel_up_proj_EDF", "kernel_down_proj_EFD")
LAYER = "model.language_model.layers.0"


class Variable:
    """A parameter: an array once something is assigned, and metadata with flax's hook."""

    def __init__(self, **metadata: Any) -> None:
        self.value: Any = SimpleNamespace(shape=(2,))
        self.metadata = metadata

    def get_value(self) -> Any:
        return self.value

    def set_value(self, value: Any) -> None:
        hook = self.metadata.get("on_set_value", lambda _, value: value)
        self.value = hook(self, value)

    def set_metadata(self, name: str, value: Any) -> None:
        self.metadata[name] = value

    def get_metadata(self, name: str) -> Any:
        return self.metadata[name]

    def has_metadata(self, name: str) -> bool:
        return name in self.metadata

    def del_metadata(self, name: str) -> None:
        del self.metadata[name]


ARRAY = SimpleNamespace(addressable_shards=[])


class Module:
    """A module of parameters, which are its attributes."""

    def __init__(self, **parameters: Variable) -> None:
        vars(self).update(parameters)

    def named_parameters(self, recurse: bool = True) -> Iterator[tuple[str, Variable]]:
        yield from ((n, p) for n, p in vars(self).items() if isinstance(p, Variable))


class Experts(Module):
    """Experts: each is put aside, all are put together when the last has come."""

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        for name, tensor in list(weights):
            for expert, _ in enumerate(tensor):
                for kernel in EXPERTS[2:] if "down" in name else EXPERTS[:2]:
                    getattr(self, kernel).get_metadata("_weights_to_load")[expert] = 1
        for kernel in EXPERTS:
            if all(getattr(self, kernel).get_metadata("_weights_to_load")):
                getattr(self, kernel).set_value(ARRAY)


class Model:
    """A layer: experts, a merged gate and up, and a norm."""

    def __init__(self) -> None:
        self.experts = Experts(**{k: Variable(_weights_to_load=[None, None]) for k in EXPERTS})
        self.mlp = Module(weight=Variable(_merged_shards=[None, None]))
        self.norm = Module(weight=Variable())

    def named_modules(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        assert not remove_duplicate, "upstream's would leave some out"
        for name in ("experts", "mlp", "norm"):
            yield f"{LAYER}.{name}", getattr(self, name)

    def named_parameters(self) -> Iterator[tuple[str, Variable]]:
        for path, module in self.named_modules(remove_duplicate=False):
            yield from ((f"{path}.{name}", p) for name, p in module.named_parameters())


def loaded(*streamed: str) -> tuple[Ledger, Model]:
    """A load of these tensors of the layer."""
    ledger, model = Ledger(), Model()
    recorder = NnxRecorder(model, GEMMA, ledger, Meter())
    recorder.attach()
    of_experts = []
    for name in streamed:
        recorder.streaming(f"{LAYER}.{name}")
        if name.startswith("experts."):
            of_experts.append(name)
        elif name.startswith("mlp."):
            parts = model.mlp.weight.get_metadata("_merged_shards")  # type: ignore[attr-defined]
            parts[int("up" in name)] = 1
            if all(parts):
                model.mlp.weight.set_value(ARRAY)  # type: ignore[attr-defined]
        else:
            model.norm.weight.set_value(ARRAY)  # type: ignore[attr-defined]

    def lazily() -> Iterator[tuple[str, Any]]:
        for name in of_experts:
            recorder.source = f"{LAYER}.{name}"
            yield name, [0, 1]
        recorder.source = f"{LAYER}.norm.weight"  # a grouping of tensors reads one ahead

    model.experts.load_weights(lazily())
    recorder.finish()
    return ledger, model


ALL = (
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "norm.weight", "experts.gate_up_proj",
    "experts.down_proj",
)  # fmt: skip


@pytest.mark.parametrize("projection", Projection)
def test_an_experts_matrix_is_delivered_from_the_tensor_that_holds_it(
    projection: Projection,
) -> None:
    ledger, _ = loaded(*ALL)
    (call,) = ledger.of(0, 1, projection)
    tensor = "down_proj" if projection is Projection.DOWN else "gate_up_proj"
    assert call.source == f"{LAYER}.experts.{tensor}"
    assert call.layer_type == "Experts"
    assert "expert_id=1" in call.as_call
    assert call.site.startswith(__file__)
    assert not ledger.undelivered([0], 2)


def test_each_part_of_a_merged_parameter_counts_as_read() -> None:
    ledger, _ = loaded(*ALL)
    assert not ledger.unread()


def test_the_model_is_left_as_it_was_found() -> None:
    ledger, model = loaded(*ALL)
    assert ledger.finished
    for _, parameter in model.named_parameters():
        assert not parameter.has_metadata("on_set_value")
        assert {type(value) for value in parameter.metadata.values()} <= {list}
    assert "load_weights" not in vars(model.experts)


@pytest.mark.parametrize(
    ("lost", "unassigned"),
    [
        ("norm.weight", [f"{LAYER}.norm.weight"]),
        ("mlp.up_proj.weight", [f"{LAYER}.mlp.weight"]),
        ("experts.down_proj", [f"{LAYER}.experts.kernel_down_proj_EFD"]),
        ("experts.gate_up_proj", [f"{LAYER}.experts.{kernel}" for kernel in EXPERTS[:2]]),
    ],
)
def test_what_nothing_was_assigned_to_is_named(lost: str, unassigned: list[str]) -> None:
    ledger, _ = loaded(*(name for name in ALL if name != lost))
    assert ledger.unassigned == ledger.unwritten == unassigned
    (diagnosis,) = diagnose_failure(ledger, [0], 2)
    assert diagnosis.cause is Cause.PARAMETER_UNWRITTEN
    assert unassigned[0] in diagnosis.summary


def test_a_failure_with_everything_assigned_stays_unexplained() -> None:
    ledger, _ = loaded(*ALL)
    (diagnosis,) = diagnose_failure(ledger, [0], 2)
    assert diagnosis.cause is Cause.UNEXPLAINED


def test_a_state_has_arrays_by_their_paths() -> None:
    count = type("RngCount", (Variable,), {})()
    state = SimpleNamespace(
        flat_state=lambda: [(("layers", 0, "norm"), Variable()), (("rng", "count"), count)]
    )
    assert is_own_model(state)
    assert [name for name, _ in arrays_of(state)] == ["layers.0.norm"]
    assert not is_own_model({"vllm_model.norm": None})
