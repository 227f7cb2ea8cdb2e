"""Upstream's faults, planted where upstream had them: the fault catalogue as code.

Each fault works on the loader class under test or on upstream's code, in the one forked process of
its load: the stream of tensors, the model's ``load_weights``, the calls of an expert's
``weight_loader``, that loader itself, or what puts the weights onto the mesh. None of this is
part of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from harness.explain.causes import Cause
from harness.families.family import ExpertNaming, Part
from harness.families.known_families import families
from harness.load.loader_layers import LoaderLayer
from harness.report.report import Status
from harness.verification.job import VerifyRequest, run
from tests.support.hooks import Hook, hooked
from tests.support.reports import a_report

Tensors = Iterator[tuple[str, Any]]
Change = Callable[[Tensors], Tensors]
Call = Callable[[Any, Any, dict[str, Any]], Any]

#: Checkpoints of the table have so many experts that ids sorted as strings are in another order.
EXPERTS = 12


@dataclass(frozen=True)
class Fault:
    """One way to lose or spoil a weight.

    Attributes:
        name: stable.
        catalogued: its class in the catalogue.
        layer: plants it into the loader class, or into upstream's modules.
        causes: the diagnoses that are right; empty where the load must stay equal.
        fused_only: the fault needs gate and up in one tensor.
        only: the model of the table that has what the fault is of; empty for all of them.
        whole: a draft model is loaded together with its decoder, so that either's layers are known.
        hook: the hook the load goes through instead of tpu-inference's.
    """

    name: str
    catalogued: str
    layer: LoaderLayer
    causes: tuple[Cause, ...]
    fused_only: bool = False
    only: str = ""
    whole: bool = False
    hook: Hook | None = None

    @property
    def layers(self) -> list[LoaderLayer]:
        """What the loader under test is put into."""
        return [*([hooked(self.hook)] if self.hook else []), self.layer]


def of_part(name: str) -> bool:
    """Whether a checkpoint tensor holds experts the faults are planted into."""
    return _naming_of(name) is not None


def is_down(name: str) -> bool:
    """Whether it holds down projections of these experts."""
    naming = _naming_of(name)
    return naming is not None and name.removesuffix(".weight").endswith(
        naming.names[-1].removesuffix(".weight")
    )


def is_gate_up(name: str) -> bool:
    """Whether it holds gate or up projections of these experts."""
    return of_part(name) and not is_down(name)


@cache
def _naming_of(name: str) -> ExpertNaming | None:
    """How a family stores the experts in a tensor of layer 1, or of a draft model."""
    for naming in {naming for family in families() for naming in family.namings}:
        layer = naming.layer_of(name)
        if layer == 1 or (layer is not None and name.startswith("mtp.")):
            return naming
    return None


def part_of(model: Any) -> Part:
    """Which part of the stack a model is."""
    return Part.MTP if "MTP" in type(model).__name__ else Part.DECODER


def streaming(change: Change) -> LoaderLayer:
    """A fault of the stream: what the streamer hands to vLLM."""

    def layer(base: type[Any]) -> type[Any]:
        class Faulty(base):  # type: ignore[misc]
            def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Tensors:
                return change(super()._get_weights_iterator(*args, **kwargs))

        return Faulty

    return layer


def mapping(change: Change) -> LoaderLayer:
    """A fault of the model's ``load_weights``: it takes the tensors otherwise than they came."""

    def layer(base: type[Any]) -> type[Any]:
        class Faulty(base):  # type: ignore[misc]
            def load_weights(self, model: Any, model_config: Any) -> None:
                whole = model.load_weights
                model.load_weights = lambda weights: whole(change(iter(weights)))
                super().load_weights(model, model_config)

        return Faulty

    return layer


def calling(change: Call) -> LoaderLayer:
    """A fault of the caller: expert loaders are called with other arguments, or not at all.

    ``change(loader, weight, keywords)`` calls the loader, which wants the weight first.
    """

    def layer(base: type[Any]) -> type[Any]:
        class Faulty(base):  # type: ignore[misc]
            def load_weights(self, model: Any, model_config: Any) -> None:
                for parameter in _expert_parameters(model):
                    parameter.weight_loader = _by_way_of(change, parameter.weight_loader)
                super().load_weights(model, model_config)

        return Faulty

    return layer


def _expert_parameters(model: Any) -> Iterator[Any]:
    for name, parameter in model.named_parameters():
        if ".experts." in name and (part_of(model) is Part.MTP or ".layers.1." in name):
            yield parameter


def _by_way_of(change: Call, loader: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*args: Any, **kwargs: Any) -> Any:
        names = ("param", "loaded_weight", "weight_name", "shard_id", "expert_id")
        given = dict(zip(names, args, strict=False)) | kwargs
        parameter, weight = given.pop("param"), given.pop("loaded_weight")
        return change(
            lambda weight, *ids, **keywords: loader(parameter, weight, *ids, **keywords),
            weight,
            given,
        )

    return changed


def loading(change: Call) -> LoaderLayer:
    """A fault of the experts' ``weight_loader`` itself, below the hook."""

    def layer(base: type[Any]) -> type[Any]:
        owner = _experts_class()
        loader = owner.weight_loader

        def changed(self: Any, param: Any, loaded_weight: Any, *args: Any, **kwargs: Any) -> Any:
            names = ("weight_name", "shard_id", "expert_id", "return_success")
            given = dict(zip(names, args, strict=False)) | kwargs

            def load(weight: Any, **keywords: Any) -> Any:
                return loader(self, param, weight, **keywords)

            load.parameter = param  # type: ignore[attr-defined]
            return change(load, loaded_weight, given)

        owner.weight_loader = changed
        return base

    return layer


def _experts_class() -> Any:
    """The layer whose ``weight_loader`` writes experts; vLLM 0.26 moved it."""
    from vllm.model_executor.layers.fused_moe import layer

    try:
        from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    except ImportError:
        return layer.FusedMoE
    return RoutedExperts


def hooking(name: str, replacement: Callable[[Any], Any]) -> LoaderLayer:
    """A fault of tpu-inference's processing: ``name`` in its module of unquantised layers."""

    def layer(base: type[Any]) -> type[Any]:
        from tpu_inference.layers.vllm.quantization import unquantized

        setattr(unquantized, name, replacement(getattr(unquantized, name)))
        return base

    return layer


def changed(change: Callable[[Any], Any], only: Callable[[str], bool] = of_part) -> Change:
    """A stream in which ``change`` makes other tensors of the faulty part's experts."""

    def stream(tensors: Tensors) -> Tensors:
        for name, tensor in tensors:
            yield name, change(tensor.clone()) if only(name) else tensor

    return stream


def without(lost: Callable[[str], bool]) -> Change:
    """A stream without some tensors."""
    return lambda tensors: ((name, tensor) for name, tensor in tensors if not lost(name))


def verified_with(request: VerifyRequest, planted: Sequence[LoaderLayer]) -> bytes:
    """Verify a checkpoint with faults planted, in the process that loads; the report."""
    report = a_report(
        checkpoint=request.checkpoint,
        reference=request.reference,
        status=Status.LOAD_FAILED,
        tallies=[],
    )
    return msgspec.json.encode(run(request, report, planted=planted))
