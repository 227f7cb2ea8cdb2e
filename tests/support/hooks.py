"""Loader hooks of our own, to show both faces of a broken call contract on any stack.

tpu-inference's hook asserts its ids, so a positional call crashes the load. A hook that reads
them with ``kwargs.get`` and goes on loses the experts without a word; that is what the fix's
author describes (vLLM #42521). Both forms are built here, and stand around every expert
parameter's ``weight_loader`` where tpu-inference's would: attached between ``initialize_model``
and ``load_weights``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from harness.base.progress import Meter
from harness.load.loader_layers import LoaderLayer
from harness.report.report import Report
from harness.verification.job import VerifyRequest, run


class Hook(StrEnum):
    """A hook of ours.

    - ``strict``: a call without both ids by keyword is an error.
    - ``lenient``: such a call is passed over, and its expert is never delivered.
    """

    STRICT = "strict"
    LENIENT = "lenient"


class MissingIds(TypeError):
    """A strict hook was called without expert_id and shard_id by keyword."""


def hooked(hook: Hook) -> LoaderLayer:
    """A layer that has a load go through ``hook``, in the stead of tpu-inference's if there is one.

    The one is attached by a function of tpu-inference's loader; vLLM's own loader attaches none,
    so there it follows right after the model is built. With either, layers are processed after the
    whole model is loaded, as vLLM's own loaders do it.
    """

    def layer(base: type[Any]) -> type[Any]:
        if any(each.__module__.startswith("tpu_inference.") for each in base.__mro__):
            from tpu_inference.models.vllm import vllm_model_loader

            vllm_model_loader.attach_incremental_weight_loader = lambda model: attach(model, hook)
            return base
        from vllm.model_executor.model_loader import utils

        initialize = utils.initialize_model

        def initialised(*args: Any, **kwargs: Any) -> Any:
            model = initialize(*args, **kwargs)
            attach(model, hook)
            return model

        utils.initialize_model = initialised
        return base

    return layer


def attach(model: Any, hook: Hook) -> None:
    """Wrap the loader of every expert parameter of ``model``."""
    for module in model.modules():
        if not hasattr(module, "global_num_experts"):
            continue
        for parameter in module.parameters(recurse=False):
            if original := getattr(parameter, "weight_loader", None):
                parameter.weight_loader = wrap(original, hook)


def wrap(weight_loader: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    """``weight_loader`` behind a hook that reads its ids from the keyword arguments."""

    def behind(param: Any, loaded_weight: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("expert_id") is not None and kwargs.get("shard_id") is not None:
            return weight_loader(param, loaded_weight, *args, **kwargs)
        if hook is Hook.STRICT:
            raise MissingIds(
                f"weight_loader got {len(args)} arguments by position and "
                f"{sorted(kwargs) or 'none'} by keyword, expert_id and shard_id are not among these"
            )
        return True

    return behind


def strict(argument: bytes, meter: Meter) -> bytes:
    """The job of a loading process: verify through the strict hook."""
    return _verified(argument, meter, Hook.STRICT)


def lenient(argument: bytes, meter: Meter) -> bytes:
    """The job of a loading process: verify through the lenient hook."""
    return _verified(argument, meter, Hook.LENIENT)


def _verified(argument: bytes, meter: Meter, hook: Hook) -> bytes:
    request, report = msgspec.json.decode(argument, type=tuple[VerifyRequest, Report])
    return msgspec.json.encode(run(request, report, meter, [hooked(hook)]))


def job_of(hook: Hook) -> str:
    """The name of the job that verifies through ``hook``."""
    return f"tests.support.hooks:{hook}"
