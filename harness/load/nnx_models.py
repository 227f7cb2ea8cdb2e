"""tpu-inference's own JAX models: what a load of one leaves, and what it does on the way.

They are trees of flax's nnx. A parameter has no memory until it is assigned to: upstream makes the
model abstract (``models/common/model_loader.py``, ``_get_nnx_model``), so nothing there can be
poisoned, and what was never assigned to is still a shape. The parts of one that is put together of
several tensors wait in a list (``_weights_to_load`` of experts, ``_merged_shards`` of gate and up).

The recorder changes nothing the stack does. It hooks each parameter with flax's own means for that,
has those lists tell what is put into them, and takes all of it away when the load has ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType
from typing import Any

from harness.base.errors import InternalError
from harness.base.progress import Meter
from harness.families.family import Family, Projection
from harness.load.ledger import SHARD_OF, Ledger, LoaderCall
from harness.load.recording import Stream

#: Of an experts' module, what holds which matrices before they are processed
#: (``layers/jax/moe/moe.py``, ``JaxRoutedExperts``).
KERNELS = {
    "kernel_gating_EDF": Projection.GATE,
    "kernel_up_proj_EDF": Projection.UP,
    "kernel_down_proj_EFD": Projection.DOWN,
}
_HOOK = "on_set_value"
#: The lists in which the parts of a parameter wait, and whether a part is an expert's.
_PARTS = {"_weights_to_load": True, "_merged_shards": False}


def is_own_model(state: Any) -> bool:
    """Whether a runner's state is that of such a model; vLLM's is a plain mapping of names."""
    return hasattr(state, "flat_state")


def arrays_of(state: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter of a state, by its path with dots; what makes random numbers is none."""
    for path, variable in state.flat_state():
        if not type(variable).__name__.startswith("Rng"):
            yield ".".join(map(str, path)), variable.get_value()


class _Telling(list[Any]):
    """A list that tells of what is put into it."""

    def __init__(self, content: Iterable[Any], tell: Callable[[Any], None]) -> None:
        super().__init__(content)
        self._tell = tell

    def __setitem__(self, index: Any, value: Any) -> None:
        self._tell(index)
        super().__setitem__(index, value)


class NnxRecorder(Stream):
    """Notes what is assigned to the parameters of one model.

    Args:
        model: a tree of nnx modules before its ``load_weights``.
        family: says which tensor holds an expert's matrix; None where nobody knows.
        ledger: where to.
        meter: counts the bytes that are streamed.
    """

    def __init__(self, model: Any, family: Family | None, ledger: Ledger, meter: Meter) -> None:
        super().__init__(ledger, meter)
        self._model = model
        self._family = family
        self._hooked: dict[str, Any] = {}
        self._wrapped: list[Any] = []

    @InternalError.instead()
    def attach(self) -> None:
        """Hook every parameter, and have the modules of experts tell what they are given."""
        # All: upstream tells modules apart by address, which lists made on the way may share.
        for module_name, module in self._model.named_modules(remove_duplicate=False):
            own = dict(module.named_parameters(recurse=False))
            given = self._given_to(module) if set(KERNELS) <= set(own) else {}
            for name, parameter in own.items():
                full_name = f"{module_name}.{name}".lstrip(".")
                if full_name not in self._hooked:  # a list names what its members name again
                    self._ledger.parameters.append(full_name)
                note = partial(self._note, full_name, type(module).__name__)
                parameter.set_metadata(_HOOK, partial(self._assigned, note))
                self._hooked[full_name] = parameter
                for waiting, of_expert in _PARTS.items():
                    if not parameter.has_metadata(waiting):
                        continue
                    tell = (
                        partial(self._expert, name, given, note)
                        if of_expert
                        else partial(self._part, note)
                    )
                    parts = _Telling(parameter.get_metadata(waiting), tell)
                    parameter.set_metadata(waiting, parts)

    def watching(self) -> AbstractContextManager[Any]:
        """Nothing more is to be watched: there is no memory to copy into."""
        return nullcontext()

    def note_processed(self) -> None:
        """Nothing: of a load that raised, the calls tell."""

    @InternalError.instead()
    def finish(self) -> None:
        """Name what was never assigned to, and leave the model as it was found."""
        self._ledger.finished = True
        for parameter in self._hooked.values():
            if parameter.has_metadata(_HOOK):
                parameter.del_metadata(_HOOK)
            for waiting in _PARTS:
                if parameter.has_metadata(waiting):
                    parameter.set_metadata(waiting, list(parameter.get_metadata(waiting)))
        for module in self._wrapped:
            del module.load_weights
        unassigned = [n for n, p in self._model.named_parameters() if not _has_memory(p)]
        self._ledger.unwritten += unassigned
        self._ledger.unassigned += unassigned

    def _given_to(self, module: Any) -> dict[str, None]:
        """The tensors that a module of experts is given from now on, by their streamed names."""
        given: dict[str, None] = {}
        load_weights = module.load_weights

        def noting(weights: Iterable[Any]) -> Iterator[Any]:
            for weight in weights:
                given[self.source] = None
                yield weight

        def load(weights: Iterable[Any]) -> Any:
            return load_weights(noting(weights))

        module.load_weights = load
        self._wrapped.append(module)
        return given

    def _assigned(self, note: Callable[..., None], parameter: Any, value: Any) -> Any:
        note(self.source, "set_value", {})
        return value

    def _part(self, note: Callable[..., None], index: Any) -> None:
        note(self.source, "_merged_shards", {"shard_id": index})

    def _expert(
        self, kernel: str, given: Mapping[str, None], note: Callable[..., None], expert: Any
    ) -> None:
        """One matrix of one expert was put aside; its tensor is among those the module was given.

        Which, upstream does not say: a module takes all tensors of its layer first. The family
        does.
        """
        if kernel not in KERNELS:
            return
        projection = KERNELS[kernel]
        ids = {"expert_id": expert, "shard_id": SHARD_OF[projection]}
        note(self._tensor_of(given, expert, projection), "_weights_to_load", ids)

    def _tensor_of(self, given: Mapping[str, None], expert: int, projection: Projection) -> str:
        namings = self._family.namings if self._family else ()
        for naming in namings:
            layers = (naming.layer_of(name) for name in given)
            for layer in {layer for layer in layers if layer is not None}:
                tensor = naming.matrix(layer, expert, projection, 1).tensor
                if tensor in given:
                    return tensor
        return self.source

    @InternalError.instead()
    def _note(
        self, parameter: str, layer_type: str, source: str, operation: str, ids: dict[str, object]
    ) -> None:
        self._ledger.calls.append(
            LoaderCall(
                parameter, layer_type, source, (), ids, _site(sys._getframe(1)), False, operation
            )
        )


def _has_memory(parameter: Any) -> bool:
    """Whether a parameter holds an array, rather than the shape of one."""
    return hasattr(parameter.get_value(), "addressable_shards")


def _site(frame: FrameType | None) -> str:
    """``file:line`` of the first frame from there up that is neither ours nor flax's."""
    others = (os.sep + "flax" + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
    inside = ("functools.py", "contextlib.py")
    while frame:
        file = frame.f_code.co_filename
        if not (any(part in file for part in others) or file.endswith(inside)):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
