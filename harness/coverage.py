"""Every tensor of the checkpoint and every parameter of the model is accounted for.

A tensor that no loader was called for, and a parameter that nothing was ever written to, are
facts worth a difference even where all experts are equal: a wrong name mapping loses tensors
without a word (vLLM's streamer loader checks neither). What a model leaves alone on purpose is
data, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from harness.difference import Difference, Kind, Tally
from harness.errors import InternalError
from harness.experts import ReferencePart
from harness.family import Part
from harness.ledger import Ledger
from harness.ties import is_tied


class Unused(NamedTuple):
    """Tensors that a part of the stack leaves alone on purpose."""

    part: Part
    pattern: str
    reason: str
    if_tied: bool = False  # only where config.json ties the head to the embedding


UNUSED: tuple[Unused, ...] = (
    Unused(Part.DECODER, r"mtp\..*", "the draft model's own"),
    Unused(
        Part.MTP,
        r"model\.(language_model\.layers|language_model\.norm|visual)\..*",
        "the target model's own",
    ),
    Unused(
        Part.DECODER,
        r"lm_head\.weight",
        "tied to the embedding, where config.json says tie_word_embeddings",
        if_tied=True,
    ),
)


class Counts(NamedTuple):
    """How the checkpoint's tensors are accounted for, as one part of the stack was given them."""

    streamed: int
    delivered: int
    unused: int
    unread: int


def unused_reason(part: Part, tensor: str, tied: bool) -> str:
    """Why ``part`` leaves ``tensor`` alone; empty when it should not.

    Args:
        part: the part of the stack.
        tensor: the tensor's name in the checkpoint.
        tied: whether config.json ties the head to the embedding.
    """
    for row in UNUSED:
        if row.part is part and re.fullmatch(row.pattern, tensor) and (tied or not row.if_tied):
            return row.reason
    return ""


#: What the devices hold when nothing came; others are of arrays, or of the ledger alone.
_NOTHING_CAME = (Kind.MISSING, Kind.BITS, Kind.VALUES, Kind.UNWRITTEN)


def require_recorded(part: Part, ledger: Ledger) -> None:
    """A load that succeeded was recorded to its end, and wrote nothing past the recorder.

    Raises:
        InternalError: it did, so what follows from its ledger follows from nothing.
    """
    missing = [] if ledger.finished else ["its end"]
    if ledger.bypassed:
        missing.append(f"what wrote {len(ledger.bypassed)} parameters, first {ledger.bypassed[0]}")
    _require_none(part, missing)


def require_streamed(part: Part, ledger: Ledger, differences: Iterable[Difference]) -> None:
    """A recorded load that streamed nothing, or called no loader, is seen to have loaded nothing.

    Raises:
        InternalError: nothing in ``differences`` shows it, so the weights came some other way.
    """
    if any(difference.kind in _NOTHING_CAME for difference in differences):
        return
    missing = [] if ledger.streamed else ["a streamed tensor"]
    missing += [] if ledger.calls else ["a call of a weight_loader"]
    _require_none(part, missing)


def _require_none(part: Part, missing: Sequence[str]) -> None:
    if missing:
        raise InternalError(
            f"the load of {part} went past the recorder, which did not see {', '.join(missing)}",
            where=f"the ledger of {part}",
            expected="a load through the loader registered for runai_streamer",
            hint="report this, with the versions of the stack: it may load in another way now",
        )


def require_covered(tallies: Sequence[Tally], parts: Collection[Part]) -> None:
    """Of parts that are called equal, every expert was compared or left out by request.

    Raises:
        InternalError: some were not, and no difference says why.
    """
    short = [t for t in tallies if t.experts_compared + t.left_out != t.experts]
    if short or not tallies or {tally.part for tally in tallies} != set(parts):
        counts = [f"{t.part} {t.experts_compared} of {t.experts - t.left_out}" for t in tallies]
        raise InternalError(
            f"nothing differs, but not all was compared: {', '.join(counts) or 'no part'}",
            where="the tallies of the report",
            expected=f"every expert that was asked for, of {', '.join(parts) or 'some part'}",
            hint="report this, with the JSON of the report",
        )


def coverage(part: ReferencePart, ledger: Ledger) -> tuple[Counts, list[Difference]]:
    """Account for the tensors and parameters of one part.

    Args:
        part: the part's experts, and through them the checkpoint.
        ledger: its load.

    Returns:
        The counts, and a difference for each tensor nobody read, each parameter nobody wrote and
        each expert's matrix that was delivered more than once.
    """
    tied = is_tied(part.checkpoint.config)
    unread = set(ledger.unread())
    unused = {name for name in unread if unused_reason(part.part, name, tied)}
    counts = Counts(
        streamed=len(ledger.streamed),
        delivered=len(ledger.streamed) - len(unread),
        unused=len(unused),
        unread=len(unread - unused),
    )
    return counts, [
        *_unread(part, sorted(unread - unused)),
        *_unwritten(part, ledger),
        *_repeated(part, ledger),
    ]


def _unread(part: ReferencePart, names: list[str]) -> Iterator[Difference]:
    for name in names:
        entry = part.checkpoint.entries.get(name)
        yield Difference(
            kind=Kind.UNREAD, part=part.part, parameter=name, reference="a loader call",
            device="no weight_loader was called for it",
            source=f"{entry.file.name} {name}" if entry else name,
        )  # fmt: skip


def _unwritten(part: ReferencePart, ledger: Ledger) -> Iterator[Difference]:
    for name in ledger.unwritten:
        if ".experts." not in name:  # of experts the comparison tells more
            yield Difference(
                kind=Kind.UNWRITTEN, part=part.part, parameter=name,
                reference="a value from the checkpoint",
                device="never written: all of it is the poison",
            )  # fmt: skip


def _repeated(part: ReferencePart, ledger: Ledger) -> Iterator[Difference]:
    counts = ledger.counts()
    for key in part:
        if (count := counts[ledger.slot(key.layer, key.expert, key.projection)]) > 1:
            yield Difference(
                kind=Kind.DELIVERY, part=key.part, layer=key.layer, expert=key.expert,
                projection=key.projection, source=str(part.source(key)),
                reference="delivered once", device=f"delivered {count} times",
            )  # fmt: skip
