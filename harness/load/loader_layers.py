"""Layers around the loader under test: each makes a subclass of it that steps in at one place.

A load goes through a list of them, the innermost first: one that cuts the model short where that is
asked for, those a test plants faults with, and the one that records
(:func:`harness.load.recording.recording`). The target registers what comes of it for the load
format, where the loader under test registers itself (vLLM ``model_loader/__init__.py``,
``register_model_loader``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness.families.family import Family

#: Makes of a loader class, a subclass of vLLM's ``RunaiModelStreamerLoader``, another one.
LoaderLayer = Callable[[type[Any]], type[Any]]


def layered(loader: type[Any], layers: Sequence[LoaderLayer]) -> type[Any]:
    """``loader`` inside ``layers``, of which the first is the innermost."""
    for layer in layers:
        loader = layer(loader)
    return loader


def cutting(family: Family, num_layers: int) -> LoaderLayer:
    """A layer that passes over decoder layers from ``num_layers`` on.

    The number of layers in the model's configuration builds a smaller model
    (:meth:`harness.families.family.Family.config_overrides`), which then refuses the tensors it
    has no layer for (vLLM 0.26, ``AutoWeightsLoader``: "There is no module or parameter named
    'layers.2'"). So they are dropped between the streamer and the model. The files are streamed
    whole all the same, and what is left goes its usual way.

    Args:
        family: names the decoder's layers.
        num_layers: how many layers the model has.
    """

    def layer(base: type[Any]) -> type[Any]:
        class CutLoader(base):  # type: ignore[misc]
            def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
                for name, tensor in super()._get_weights_iterator(*args, **kwargs):
                    number = family.decoder_layer(name)
                    if number is None or number < num_layers:
                        yield name, tensor

        return CutLoader

    return layer
