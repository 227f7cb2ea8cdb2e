"""Which layers of a model have experts: what ``config.json`` says of it, in each family's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.base.bounds import shown, size
from harness.base.errors import BadInput


@dataclass(frozen=True)
class MoeLayers:
    """The keys by which a family says which decoder layers have experts; the others are dense.

    Of the keys that a family names, an absent one says nothing, so the default of no keys is that
    all layers have experts.

    Attributes:
        dense_first: the number of dense layers at the start (``first_k_dense_replace``,
            ``num_dense_layers``).
        step: n, where every n-th layer has experts, the n-th first (``decoder_sparse_step``;
            ``(layer + 1) % n == 0``).
        step_from_zero: n, where layers 0, n, 2n … may have them (DeepSeek's ``moe_layer_freq``).
        dense: the list of layers without (``mlp_only_layers``).
        sparse: the list of layers with, which decides alone where it is there and not null
            (Llama-4's ``moe_layers``).
        last: the last layer that may have them, from its number on (ERNIE's
            ``moe_layer_end_index``; negative counts from the end).
    """

    dense_first: str = ""
    step: str = ""
    step_from_zero: str = ""
    dense: str = ""
    sparse: str = ""
    last: str = ""

    def of(self, text: Mapping[str, Any], layers: int, where: str) -> tuple[int, ...]:
        """The layers with experts, ascending.

        Args:
            text: what config.json says of the language model.
            layers: how many the decoder has.
            where: config.json is, for errors.

        Raises:
            BadInput: a key holds something else than it should.
        """
        if not layers:
            return ()
        if self.sparse and text.get(self.sparse) is not None:
            return tuple(sorted(_listed(text, self.sparse, where)))
        first = _number(text, self.dense_first, where, least=0, default=0)
        step = _number(text, self.step, where, least=1, default=1)
        from_zero = _number(text, self.step_from_zero, where, least=1, default=1)
        end = _number(text, self.last, where, least=-layers, default=-1)
        without = _listed(text, self.dense, where)
        return tuple(
            layer
            for layer in range(first, min(layers, end % layers + 1 if end < 0 else end + 1))
            if (layer + 1) % step == 0 and layer % from_zero == 0 and layer not in without
        )


ALL_LAYERS = MoeLayers()


def _number(text: Mapping[str, Any], key: str, where: str, *, least: int, default: int) -> int:
    if not key or text.get(key) is None:
        return default
    return size(text, key, where, least=least)


def _listed(text: Mapping[str, Any], key: str, where: str) -> frozenset[int]:
    found = text.get(key) if key else None
    if found is None:
        return frozenset()
    if isinstance(found, list) and all(type(n) is int and n >= 0 for n in found):
        return frozenset(found)
    raise BadInput(
        f"{key} is {shown(found)}",
        where=where,
        expected="a list of the numbers of layers",
        hint="the config.json of the published model",
    )
