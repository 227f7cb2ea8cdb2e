"""Loader hooks of our own, to show both faces of a broken call contract on any stack.

tpu-inference's hook asserts its ids, so a positional call crashes the load. A hook that reads
them with ``kwargs.get`` and goes on loses the experts without a word; that is what the fix's
author describes (vLLM #42521). Both forms are built here and attached at the same public place:
a model loader registered for the load format, which wraps every expert parameter's
``weight_loader`` between ``initialize_model`` and ``load_weights``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any


class Hook(StrEnum):
    """Which loader hook a load goes through.

    - ``upstream``: tpu-inference's own.
    - ``strict``: ours; a call without both ids by keyword is an error.
    - ``lenient``: ours; such a call is passed over, and its expert is never delivered.
    """

    UPSTREAM = "upstream"
    STRICT = "strict"
    LENIENT = "lenient"


class MissingIds(TypeError):
    """A strict hook was called without expert_id and shard_id by keyword."""


def wrap(weight_loader: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    """``weight_loader`` behind a hook that reads its ids from the keyword arguments.

    Args:
        weight_loader: a parameter's original loader.
        hook: ``strict`` or ``lenient``.
    """

    def hooked(param: Any, loaded_weight: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("expert_id") is not None and kwargs.get("shard_id") is not None:
            return weight_loader(param, loaded_weight, *args, **kwargs)
        if hook is Hook.STRICT:
            raise MissingIds(
                f"weight_loader got {len(args)} arguments by position and "
                f"{sorted(kwargs) or 'none'} by keyword, expert_id and shard_id are not among these"
            )
        return True

    return hooked


def hooked_loader(hook: Hook) -> type[Any]:
    """A model loader that loads through ``hook``, in tpu-inference's stead.

    It is registered where tpu-inference registers its own (vLLM ``model_loader/__init__.py``,
    ``register_model_loader``). Layers are processed after the whole model is loaded, as vLLM's
    own loaders do it.
    """
    import torch
    from vllm.model_executor.model_loader.runai_streamer_loader import RunaiModelStreamerLoader
    from vllm.model_executor.model_loader.utils import (
        initialize_model,
        process_weights_after_loading,
    )
    from vllm.utils.torch_utils import set_default_torch_dtype

    class HookedLoader(RunaiModelStreamerLoader):  # type: ignore[misc]
        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            device = torch.device(vllm_config.device_config.device)
            with set_default_torch_dtype(model_config.dtype):
                with device:
                    model = initialize_model(vllm_config=vllm_config, model_config=model_config)
                attach(model, hook)
                self.load_weights(model, model_config)
                process_weights_after_loading(model, model_config, device)
            return model.eval()

    return HookedLoader


def attach(model: Any, hook: Hook) -> None:
    """Wrap the loader of every expert parameter of ``model``."""
    for module in model.modules():
        if not hasattr(module, "global_num_experts"):
            continue
        for parameter in module.parameters(recurse=False):
            if original := getattr(parameter, "weight_loader", None):
                parameter.weight_loader = wrap(original, hook)
