"""Records every call of an expert parameter's ``weight_loader`` while a model loads its weights.

The recorder stands where a loader hook stands: a loader made from the one under test builds the
model, replaces the parameters' loaders, and hands the model a stream of tensors. The stream is
made on the spot from names and shapes; neither files nor the streamer are needed to see how a
model calls. Nothing is put onto devices: when the last tensor is consumed, the load is over.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from harness.base.progress import Meter
from harness.families.family import Part
from harness.load import engine
from harness.load.loader_layers import LoaderLayer
from harness.load.target import Target

_IDS = ("shard_id", "expert_id")
_SHARDS = 3


class ModelSource(msgspec.Struct, frozen=True):
    """A model to build and what to feed it.

    Attributes:
        config: the content of ``config.json``.
        tensors: names and shapes, in the order of the stream; all bf16 zeros.
        part: the target model, or its MTP draft.
        environment: variables to set before the stack reads its configuration.
    """

    config: dict[str, Any]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    part: Part = Part.DECODER
    environment: dict[str, str] = {}


class CallSite(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of expert parameters' loaders from one line, alike in what they pass how.

    Attributes:
        place: ``file:line`` inside the package, with its function.
        parameter: the layer's name for it.
        positional: how many arguments came by position after parameter and weight.
        ids: of shard_id and expert_id, those by keyword and not None.
        count: how many such calls.
    """

    place: str
    function: str
    parameter: str
    positional: int
    ids: tuple[str, ...]
    count: int = 0

    @property
    def ids_are_positional(self) -> bool:
        """Whether name and both ids came, and an id among them by position."""
        return self.positional > 1 and self.positional + len(self.ids) > len(_IDS)


class Recording(msgspec.Struct, kw_only=True):
    """What was recorded.

    Attributes:
        calls: calls of any parameter's loader.
        sites: calls of expert parameters' loaders.
        layers: how many expert layers the model has.
        complete: those of which every (expert, shard) came by keyword: the hook's own count, E
            experts times three shards (tpu-inference ``unquantized.py``).
        error: what ended it early; empty when all tensors were consumed.
        stage: what was going on then: ``build`` or ``load``.
    """

    calls: int = 0
    sites: list[CallSite] = []
    layers: int = 0
    complete: int = 0
    error: str = ""
    stage: str = "build"


class Consumed(Exception):
    """The model has taken all its tensors; the rest of the load is not needed."""


class CallRecorder:
    """Replaces parameters' loaders and remembers what they are called with."""

    def __init__(self) -> None:
        self.recording = Recording()
        self._sites: dict[CallSite, int] = {}
        self._delivered: dict[int, set[tuple[object, object]]] = {}
        self._experts: dict[int, int] = {}

    def attach(self, model: Any) -> None:
        """Replace the loader of every parameter that has one."""
        for module in model.modules():
            experts = getattr(module, "global_num_experts", 0)
            if experts and hasattr(module, "weight_loader"):
                self._experts[id(module)] = experts
            for name, parameter in module.named_parameters(recurse=False):
                if original := getattr(parameter, "weight_loader", None):
                    parameter.weight_loader = self._recorded(original, module, name)

    def _recorded(
        self, original: Callable[..., Any], layer: Any, parameter: str
    ) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.recording.calls += 1
            if id(layer) in self._experts:
                self._remember((id(layer), parameter), args, kwargs, sys._getframe(1))
            return original(*args, **kwargs)

        return recorded

    def _remember(self, of: tuple[int, str], args: Any, kwargs: Any, caller: Any) -> None:
        layer, parameter = of
        ids = tuple(name for name in _IDS if kwargs.get(name) is not None)
        before_hook = 2 - len({"param", "loaded_weight"} & set(kwargs))
        site = CallSite(
            place=f"{_inside_package(caller.f_code.co_filename)}:{caller.f_lineno}",
            function=caller.f_code.co_qualname,
            parameter=parameter,
            positional=len(args) - before_hook,
            ids=ids,
        )
        self._sites[site] = self._sites.get(site, 0) + 1
        if ids == _IDS:
            pair = (kwargs["expert_id"], kwargs["shard_id"])
            self._delivered.setdefault(layer, set()).add(pair)

    def finished(self) -> Recording:
        """The recording, summed up."""
        done = self.recording
        done.sites = [
            msgspec.structs.replace(site, count=count) for site, count in self._sites.items()
        ]
        done.layers = len(self._experts)
        done.complete = sum(
            len(self._delivered.get(layer, ())) == _SHARDS * experts
            for layer, experts in self._experts.items()
        )
        return done


def record_job(argument: bytes, _: Meter) -> bytes:
    """The job of a loading process: a source and a target in, the recording out."""
    source, target = msgspec.json.decode(argument, type=tuple[ModelSource, Target])
    recorder = CallRecorder()
    os.environ.update(source.environment)
    directory = Path(tempfile.mkdtemp())
    (directory / "config.json").write_text(json.dumps(source.config))
    try:
        engine.load(
            str(directory), None, target, [source.part], planted=[feeding(recorder, source)]
        )
    except Consumed:
        pass
    except Exception as error:  # whatever the model raises is the row's result
        recorder.recording.error = _in_words(error)
        traceback.print_exc()
    return msgspec.json.encode(recorder.finished())


def feeding(recorder: CallRecorder, source: ModelSource) -> LoaderLayer:
    """Makes of the loader under test one that feeds the model and records."""

    def layer(base: type[Any]) -> type[Any]:
        import torch
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        def stream() -> Iterator[tuple[str, Any]]:
            for name, shape in source.tensors:
                yield name, torch.zeros(shape, dtype=torch.bfloat16)

        class FeedingLoader(base):  # type: ignore[misc]
            def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
                device = torch.device(vllm_config.device_config.device)
                with set_default_torch_dtype(model_config.dtype), device:
                    model = initialize_model(vllm_config=vllm_config, model_config=model_config)
                recorder.attach(model)
                recorder.recording.stage = "load"
                model.load_weights(stream())
                raise Consumed

        return FeedingLoader

    return layer


def _inside_package(file: str) -> str:
    """A file's path from ``site-packages`` on, or as it is."""
    return file.rpartition("site-packages/")[2]


def _in_words(error: Exception) -> str:
    """The innermost cause: its type, its first lines, and where it was raised."""
    while error.__cause__ and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    *_, last = traceback.extract_tb(error.__traceback__) or [None]
    where = f" ({_inside_package(last.filename)}:{last.lineno})" if last else ""
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}{where}"
