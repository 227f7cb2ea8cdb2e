"""Loads only the first decoder layers of a checkpoint that holds more.

The number of layers in the model's configuration builds a smaller model
(:meth:`harness.families.family.Family.config_overrides`), which then refuses the tensors it has no
layer for (vLLM 0.26, ``AutoWeightsLoader``: "There is no module or parameter named 'layers.2'").
So they are dropped between the streamer and the model. The files are streamed whole all the same,
and what is left goes its usual way; done only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.families.family import Family


def cut(base: type[Any], family: Family | None, num_layers: int | None) -> type[Any]:
    """A loader like ``base`` that passes over decoder layers from ``num_layers`` on.

    Args:
        base: a subclass of vLLM's ``RunaiModelStreamerLoader``.
        family: names the decoder's layers.
        num_layers: how many layers the model has; None for all.
    """
    if num_layers is None or family is None:
        return base
    kept, layer_of = num_layers, family.decoder_layer

    class CutLoader(base):  # type: ignore[misc]
        def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
            for name, tensor in super()._get_weights_iterator(*args, **kwargs):
                layer = layer_of(name)
                if layer is None or layer < kept:
                    yield name, tensor

    return CutLoader
