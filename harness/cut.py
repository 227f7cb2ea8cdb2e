"""Loads only the first decoder layers of a checkpoint that holds more.

``num_hidden_layers`` of the model's configuration builds a smaller model, which then refuses the
tensors it has no layer for (vLLM 0.26, ``AutoWeightsLoader``: "There is no module or parameter
named 'layers.2'"). So they are dropped between the streamer and the model. The files are streamed
whole all the same, and what is left goes its usual way; done only where it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DECODER_LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.")


def overrides(num_layers: int | None) -> dict[str, Any]:
    """vLLM's ``hf_overrides`` that build ``num_layers`` decoder layers; none for None."""
    return {"text_config": {"num_hidden_layers": num_layers}} if num_layers else {}


def keeps(name: str, num_layers: int) -> bool:
    """Whether the model has a place for tensor ``name``."""
    found = _DECODER_LAYER.match(name)
    return found is None or int(found[1]) < num_layers


def drop_later_layers(num_layers: int | None) -> None:
    """Have this process's streamer loader pass over decoder layers from ``num_layers`` on."""
    if num_layers is None:
        return
    from vllm.model_executor.model_loader import runai_streamer_loader

    loader: Any = runai_streamer_loader.RunaiModelStreamerLoader
    whole = loader._get_weights_iterator

    def cut(self: Any, *args: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        for name, tensor in whole(self, *args, **options):
            if keeps(name, num_layers):
                yield name, tensor

    loader._get_weights_iterator = cut
