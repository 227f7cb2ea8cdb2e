"""What each position of an expert's ``weight_loader`` means, read from the audited sources.

Up to 0.25 the method is ``FusedMoE.weight_loader`` in ``fused_moe/layer.py``, from 0.26 on
``RoutedExperts.weight_loader`` in ``fused_moe/routed_experts.py``. It is found by what it takes,
not by where it stands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

import msgspec

from harness.audit.source import Package, SourceModule
from harness.base.errors import BadInput

LOADER = "weight_loader"
IDS = ("shard_id", "expert_id")
_WHERE = "model_executor/layers/fused_moe/"


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The expert loader's signature.

    Attributes:
        file: where it stands, with ``line`` and the class as ``owner``.
        parameters: names in order, without ``self``.
        required: how many of them have no default.
    """

    file: str
    line: int
    owner: str
    parameters: tuple[str, ...]
    required: int

    def __str__(self) -> str:
        return f"{self.owner}.{LOADER}({', '.join(self.parameters)})"

    def positional_ids(self, count: int) -> tuple[str, ...]:
        """The ids among the first ``count`` arguments by position."""
        return tuple(name for name in self.parameters[:count] if name in IDS)

    def binds(self, count: int, keywords: Iterable[str]) -> bool:
        """Whether ``count`` arguments by position and ``keywords`` make a complete call."""
        names = set(keywords)
        given = [*self.parameters[:count], *names]
        complete = set(self.parameters[: self.required]) <= set(given)
        known = names <= set(self.parameters) and count <= len(self.parameters)
        return complete and known and len(given) == len(set(given))


def expert_signature(vllm: Package) -> Signature:
    """The signature of the method that loads an expert's weight.

    Raises:
        BadInput: no class of the fused MoE layers has a ``weight_loader`` with both ids.
    """
    for module in vllm.modules(f"def {LOADER}", under=_WHERE):
        for owner in (node for node in module.tree.body if isinstance(node, ast.ClassDef)):
            if found := _signature(module, owner):
                return found
    raise BadInput(
        f"no class here has a {LOADER} with {' and '.join(IDS)}",
        where=str(vllm.path / _WHERE),
        expected="the sources of a vLLM release, with its fused MoE layers",
        hint="name another path, or extend harness/audit/signature.py if the layers moved",
    )


def _signature(module: SourceModule, owner: ast.ClassDef) -> Signature | None:
    for method in reversed(owner.body):  # overloads come first, the implementation last
        if isinstance(method, ast.FunctionDef) and method.name == LOADER:
            names = [argument.arg for argument in method.args.args][1:]
            if set(IDS) <= set(names):
                return Signature(
                    file=module.file,
                    line=method.lineno,
                    owner=owner.name,
                    parameters=tuple(names),
                    required=len(names) - len(method.args.defaults),
                )
    return None
