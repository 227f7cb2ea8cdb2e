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

_DECODER_LAYER = re.compile(r"model\.(?:language_model\.)?layers\.([0-9]+)\.")


def overrides(num_layers: int | None) -> dict[str, Any]:
    """vLLM's ``hf_overrides`` that build ``num_layers`` decoder layers; none for None."""
    return {"text_config": {"num_hidden_layers": num_layers}} if num_layers else {}


def keeps(name: str, num_layers: int | None) -> bool:
    """Whether a model of so many layers has a place for tensor ``name``."""
    found = _DECODER_LAYER.match(name)
    return found is None or num_layers is None or int(found[1]) < num_layers


def cut(base: type[Any], num_layers: int | None) -> type[Any]:
    """A loader like ``base`` that passes over decoder layers from ``num_layers`` on.

    Args:
        base: a subclass of vLLM's ``RunaiModelStreamerLoader``.
        num_layers: how many layers the model has; None for all.
    """
    if num_layers is None:
        return base

    class CutLoader(base):  # type: ignore[misc]
        def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
            for name, tensor in super()._get_weights_iterator(*args, **kwargs):
                if keeps(name, num_layers):
                    yield name, tensor

    return CutLoader
