"""Blocks as tpu-inference's own JAX models have them on the device: what follows from vLLM's rows.

Those models are trees of flax's nnx (``models/jax``), whose parameters are called as the
checkpoint's tensors are, and are made of them by one loader for all models
(``models/jax/utils/weight_utils.py``, ``JaxAutoWeightsLoader``, 0.26 and 0.32). So a family says
nothing of its parameters twice: q, k and v are three, each with an axis for heads; gate and up are
one, cut and put together as vLLM's is; the vocabulary is not padded. Where a row does not follow
from vLLM's, vLLM's says it (:attr:`harness.families.blocks.Row.own`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.families.blocks import Block, Cut, Pieces, Row

_UPSTREAM = "own"
#: The axis that embeddings are cut over (``gemma4.py``, ``embedding_init``).
_EMBEDDING_AXES = ("model",)


def own_block(block: Block) -> Block:
    """A block in tpu-inference's own models."""
    return replace(block, rows=tuple(own for row in block.rows for own in own_rows(row)))


def own_rows(row: Row) -> Iterator[Row]:
    """The parameters there that hold the tensors of a row."""
    if row.own:
        yield from row.own
    elif row.pieces in (Pieces.QKV, Pieces.QKV_ROTARY):
        for stored in dict.fromkeys(row.stored):
            yield Row(
                row.kind, stored[0], (stored,), _UPSTREAM, cut=Cut.OUTPUTS, transposed=True,
                pieces=Pieces.HEADS, of_heads=True,
            )  # fmt: skip
    elif row.pieces is Pieces.ROWS:
        yield _of_vocabulary(row)
    else:
        yield replace(row, upstream=_UPSTREAM, casts=True)


def _of_vocabulary(row: Row) -> Row:
    """An embedding is cut by words; a head lies transposed, on every device whole.

    (``layers/jax/linear.py``, ``JaxLmHead``, which is made without a partition.)
    """
    whole = replace(row, upstream=_UPSTREAM, pieces=Pieces.WHOLE)
    if row.kind == "head":
        return replace(whole, cut=Cut.NONE, transposed=True)
    return replace(whole, axes=_EMBEDDING_AXES)
