"""What the loader hook was called with when it raised, read from the traceback.

tpu-inference wraps every parameter's ``weight_loader`` (``models/vllm/vllm_model_loader.py``,
``attach_incremental_weight_loader``) and hands the extra arguments to the layer's
``maybe_process_weights``, which reads ``expert_id`` and ``shard_id`` from the keyword arguments
(``layers/vllm/quantization/unquantized.py``). When it raises, the frames still hold the arguments,
the layer and the model; nothing is imported or changed to read them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import msgspec

_WRAPPER = "weight_loader_wrapper"
_SHARDS_OF_AN_EXPERT = 3
_LAYER = re.compile(r"layers\.(\d+)\.mlp\.experts")


class HookCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a parameter's wrapped ``weight_loader``.

    Attributes:
        file: the caller's file.
        line: the caller's line.
        layer_type: class of the layer that owns the parameter.
        positional: the arguments after parameter and weight, as Python would write them.
        keywords: the keyword arguments alike.
        undelivered: layer number to the experts whose three shards were not all recorded.
    """

    file: str
    line: int
    layer_type: str
    positional: tuple[str, ...]
    keywords: dict[str, str]
    undelivered: dict[int, tuple[int, ...]]

    @property
    def as_call(self) -> str:
        """The call as source code would show it."""
        words = [*self.positional, *(f"{name}={value}" for name, value in self.keywords.items())]
        return f"weight_loader({', '.join(['param', 'loaded_weight', *words])})"

    @property
    def ids_are_positional(self) -> bool:
        """Whether name, shard_id and expert_id came positionally and neither id by keyword."""
        by_keyword = {"expert_id", "shard_id"} & set(self.keywords)
        return len(self.positional) >= 3 and not by_keyword


def hook_call(error: BaseException) -> HookCall | None:
    """The hook's call in the traceback of ``error``, or None when the hook was not in it."""
    frames = list(_frames(error.__traceback__))
    for (caller, line), (frame, _) in itertools.pairwise(frames):
        if frame.f_code.co_name == _WRAPPER:
            return HookCall(
                file=caller.f_code.co_filename,
                line=line,
                layer_type=type(_layer(frame)).__name__,
                positional=tuple(map(repr, frame.f_locals["args"])),
                keywords={k: repr(v) for k, v in frame.f_locals["kwargs"].items()},
                undelivered=_undelivered([frame for frame, _ in frames]),
            )
    return None


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _layer(wrapper: FrameType) -> Any:
    return wrapper.f_locals.get("layer")


def _undelivered(frames: list[FrameType]) -> dict[int, tuple[int, ...]]:
    """Experts the hook has no full record of, by layer, of the model that was being loaded."""
    models = [frame.f_locals.get("model") for frame in frames]
    model = next((m for m in models if hasattr(m, "named_modules")), None)
    missing = {}
    for name, module in model.named_modules() if model is not None else ():
        count = getattr(module, "global_num_experts", None)
        match = _LAYER.search(name)
        if match and count and hasattr(module, "_loaded_weights"):
            recorded = [expert for expert, _ in module._loaded_weights]
            experts = tuple(e for e in range(count) if recorded.count(e) < _SHARDS_OF_AN_EXPERT)
            if experts:
                missing[int(match[1])] = experts
    return missing
