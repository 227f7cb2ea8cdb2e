"""Records a load and poisons what it is to fill, by a loader registered for the load format.

A subclass of the loader under test, registered where that one registers itself (vLLM
``model_loader/__init__.py``, ``register_model_loader``), steps in once: between the model's
initialisation and its ``load_weights``. It changes nothing the stack does. Each parameter's
``weight_loader``, with whatever hook is around it already, gets one more wrapper, that notes the
call and passes it on. What a model copies into a parameter itself is seen by torch's own means for
that, a mode that every function on tensors is passed through.

Poison is a bit pattern in every parameter before anything is written to it, so that "never
written" is told from "written with zeros". A parameter gets it right before its first write, or,
never written, at the end: the same as all at the start, without making the whole model resident
at once, which incremental processing is there to avoid. One element is poisoned at the start: where
that is gone and neither a loader nor a copy was seen, the parameter was written past the recorder,
and left alone.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import update_wrapper
from types import FrameType
from typing import Any, cast

from harness.base.errors import InternalError
from harness.base.progress import Meter
from harness.families.blocks import DEFAULTED
from harness.families.family import Family, Part
from harness.load.ledger import POISON, Ledger, LoaderCall
from harness.load.loader_layers import LoaderLayer

#: :data:`harness.load.ledger.POISON` as the signed integers torch fills with.
_AS_INTEGER = {1: POISON[1], 2: POISON[2] - (1 << 16), 4: POISON[4] - (1 << 32)}

#: Operations that copy a tensor into another, which is their first argument.
_COPIES = frozenset({"copy_", "__setitem__", "index_copy_"})

#: The loader's arguments that every call has.
_NOT_IDS = ("param", "loaded_weight")


def recording(family: Family | None, ledgers: dict[Part, Ledger], meter: Meter) -> LoaderLayer:
    """A layer that records the load of each part of the stack.

    Args:
        family: tells which part of the stack a model is; None for a decoder alone.
        ledgers: receives a ledger for each part that is loaded.
        meter: counts the bytes that are streamed.
    """

    def layer(base: type[Any]) -> type[Any]:
        class RecordingLoader(base):  # type: ignore[misc]
            def load_weights(self, model: Any, model_config: Any) -> None:
                part = family.part_of_class(type(model).__name__) if family else Part.DECODER
                recorder = _recorder(model, family, ledgers.setdefault(part, Ledger()), meter)
                self._recorder = recorder
                recorder.attach()
                try:
                    with recorder.watching():
                        super().load_weights(model, model_config)
                except Exception:
                    recorder.note_processed()
                    raise
                recorder.finish()

            def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
                stream = super()._get_weights_iterator(*args, **kwargs)
                if (recorder := getattr(self, "_recorder", None)) is None:
                    # Some of tpu-inference's own models take the stream past ``load_weights``.
                    recorder = Stream(ledgers.setdefault(Part.DECODER, Ledger()), meter)
                for name, tensor in recorder.timed(stream):
                    recorder.streaming(name)
                    yield name, tensor

        return RecordingLoader

    return layer


def _recorder(model: Any, family: Family | None, ledger: Ledger, meter: Meter) -> Any:
    """The recorder for a model: vLLM's, or one of tpu-inference's own."""
    import torch

    from harness.load.nnx_models import NnxRecorder  # which is a Stream

    if isinstance(model, torch.nn.Module):
        return Recorder(model, ledger, meter)
    return NnxRecorder(model, family, ledger, meter)


class Stream:
    """Notes what the streamer gives, and counts it.

    Args:
        ledger: where to.
        meter: counts the bytes that are streamed.

    Attributes:
        source: the tensor that was streamed last.
    """

    def __init__(self, ledger: Ledger, meter: Meter) -> None:
        self._ledger = ledger
        self._meter = meter
        self.source = ""

    def streaming(self, name: str) -> None:
        """Note which tensor of the checkpoint comes next."""
        self.source = name
        self._ledger.streamed.append(name)

    def timed(self, stream: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Pass a stream on; count its bytes and the seconds waited for it."""
        started = time.perf_counter()
        for name, tensor in stream:
            self._ledger.stream_seconds += time.perf_counter() - started
            self._ledger.stream_bytes += tensor.nbytes
            self._meter.advance(tensor.nbytes)
            yield name, tensor
            started = time.perf_counter()


class Recorder(Stream):
    """Notes the loader calls of one model.

    Args:
        model: a ``torch.nn.Module`` before its ``load_weights``.
        ledger: where to.
        meter: counts the bytes that are streamed.
    """

    def __init__(self, model: Any, ledger: Ledger, meter: Meter) -> None:
        super().__init__(ledger, meter)
        self._model = model
        self._clean: set[int] = set()  # ids of parameters that hold no poison yet
        self._wrapped_in: dict[str, tuple[Any, str, weakref.ref[Any]]] = {}
        self._at: dict[int, str] = {}  # by the address of their memory, parameters on the host
        self._loaders = 0  # so many loaders are at work, each called by the one before

    @InternalError.instead()
    def attach(self) -> None:
        """Wrap the ``weight_loader`` of every parameter.

        A parameter without one is loaded by ``default_weight_loader``: every caller in vLLM asks
        ``getattr(param, "weight_loader", default_weight_loader)``. It gets that, wrapped.
        """
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        for module_name, module in self._model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full_name = f"{module_name}.{name}".lstrip(".")
                self._ledger.parameters.append(full_name)
                if id(parameter) in self._clean:
                    continue  # tied: it belongs to several modules
                if not DEFAULTED.fullmatch(full_name):
                    self._clean.add(id(parameter))
                    _mark(parameter)
                if (bits := _bits(parameter)) is not None and bits.numel():
                    self._at[bits.untyped_storage().data_ptr()] = full_name
                self._wrapped_in[full_name] = (module, name, weakref.ref(parameter))
                loader = getattr(parameter, "weight_loader", default_weight_loader)
                parameter.weight_loader = self._wrapped(loader, module, name, full_name)
            passing: set[str] = getattr(module, "_non_persistent_buffers_set", set())
            for name, buffer in module.named_buffers(recurse=False):
                # What a checkpoint may hold of them is loaded as parameters are: Gemma-4's scales.
                if name not in passing and not hasattr(buffer, "weight_loader"):
                    full_name = f"{module_name}.{name}".lstrip(".")
                    loader = self._wrapped(default_weight_loader, module, name, full_name)
                    buffer.weight_loader = loader

    def watching(self) -> AbstractContextManager[Any]:
        """While it is entered, copies into parameters that no loader makes are noted."""
        from torch.overrides import TorchFunctionMode

        def passed(_: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            is_copy = not self._loaders and getattr(function, "__name__", "") in _COPIES
            noted = is_copy and self._note_copy(function.__name__, args[0], sys._getframe(1))
            result = function(*args, **(kwargs or {}))
            if noted:
                self._ledger.failed = False
            return result

        mode = type("Watching", (TorchFunctionMode,), {"__torch_function__": passed})
        return cast("AbstractContextManager[Any]", mode())

    @InternalError.instead()
    def _note_copy(self, operation: str, into: Any, frame: FrameType | None) -> bool:
        """Note a copy into a parameter, or into a part of one; poison that before the first.

        Returns:
            Whether it is one of a parameter.
        """
        if (bits := _bits(into)) is None or not bits.numel():
            return False
        full_name = self._at.get(bits.untyped_storage().data_ptr(), "")
        if not full_name:
            return False
        module, name, reference = self._wrapped_in[full_name]
        parameter = reference()
        if parameter is None or not _share_memory(parameter, into):
            return False  # that memory was given to somebody else
        if id(parameter) in self._clean:
            self._clean.discard(id(parameter))
            _poison(parameter)
        whole = operation == "copy_" and into.numel() == parameter.numel()
        self._ledger.calls.append(
            LoaderCall(
                full_name, type(module).__name__, self.source, (), {}, _site(frame),
                module._parameters.get(name) is not parameter, operation,
                parameter.shape[0] if whole and parameter.ndim else 0,
            )
        )  # fmt: skip
        self._ledger.failed = True
        return True

    @InternalError.instead()
    def note_processed(self) -> None:
        """Name the parameters that are in their modules no more: processing replaced them."""
        self._ledger.processed += [
            full_name
            for full_name, (module, name, parameter) in self._wrapped_in.items()
            if module._parameters.get(name) is not parameter()
        ]

    @InternalError.instead()
    def finish(self) -> None:
        """Poison what was never written, and name it; name what was written by no loader."""
        self._ledger.finished = True
        for name, parameter in self._model.named_parameters():
            if id(parameter) in self._clean:
                if not _is_marked(parameter):
                    self._ledger.bypassed.append(name)
                    continue
                _poison(parameter)
            if _is_poison(parameter):
                self._ledger.unwritten.append(name)

    def _wrapped(
        self, loader: Callable[..., Any], module: Any, name: str, full_name: str
    ) -> Callable[..., Any]:
        ledger, clean, layer_type = self._ledger, self._clean, type(module).__name__
        held = module._buffers if name in module._buffers else module._parameters

        def recorded(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            parameter = args[0] if args else kwargs["param"]
            ledger.calls.append(
                LoaderCall(
                    full_name,
                    layer_type,
                    self.source,
                    tuple(map(_plain, args[2:])),
                    {k: _plain(v) for k, v in kwargs.items() if k not in _NOT_IDS},
                    f"{frame.f_code.co_filename}:{frame.f_lineno}",
                    held.get(name) is not parameter,
                )
            )
            if id(parameter) in clean:
                clean.discard(id(parameter))
                _poison(parameter)
            ledger.failed = True
            self._loaders += 1
            try:
                result = loader(*args, **kwargs)
            finally:
                self._loaders -= 1
            ledger.failed = False
            return result

        # Attributes of the loader (vLLM reads ``supports_moe_loading``) stay visible.
        return update_wrapper(recorded, loader)


def _poison(parameter: Any) -> None:
    """Fill a host tensor of floats with the poison; leave all others alone."""
    if (bits := _bits(parameter)) is not None:
        bits.fill_(_AS_INTEGER[bits.element_size()])


def _mark(parameter: Any) -> None:
    """Poison the first element of a host tensor of floats."""
    if (bits := _bits(parameter)) is not None and bits.numel():
        bits[(0,) * bits.ndim] = _AS_INTEGER[bits.element_size()]


def _is_marked(parameter: Any) -> bool:
    """Whether its first element is poison; of what cannot be poisoned nothing is known."""
    if (bits := _bits(parameter)) is None or not bits.numel():
        return True
    return bool(bits[(0,) * bits.ndim] == _AS_INTEGER[bits.element_size()])


def _is_poison(parameter: Any) -> bool:
    bits = _bits(parameter)
    if bits is None or not bits.numel() or not _is_marked(parameter):
        return False  # as a rule by the first element: the rest need not be read
    return bool((bits == _AS_INTEGER[bits.element_size()]).all())


def _bits(parameter: Any) -> Any:
    """The bits of a host tensor of floats, as integers; None for any other."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    on_host = type(parameter.data) is torch.Tensor and parameter.device.type == "cpu"
    width = parameter.element_size()
    if not (on_host and parameter.is_floating_point() and width in integers):
        return None
    if parameter.untyped_storage().nbytes() == 0:  # processed and freed
        return None
    return parameter.data.view(integers[width])


def _share_memory(one: Any, other: Any) -> bool:
    a, b = (_bits(each) for each in (one, other))
    if a is None or b is None:
        return False
    return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def _site(frame: FrameType | None) -> str:
    """``file:line`` of the first frame from there up that is not torch's own."""
    import torch

    own = os.path.dirname(torch.__file__) + os.sep
    while frame and frame.f_code.co_filename.startswith(own):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""


def _plain(value: object) -> object:
    """An argument as the ledger keeps it: ids and names as they are, of the rest the type."""
    return value if isinstance(value, int | str | None) else type(value).__name__
