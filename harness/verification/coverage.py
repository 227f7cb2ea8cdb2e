"""Every tensor of both sides and every parameter of the model is accounted for.

A tensor that no loader was called for, and a parameter that nothing was ever written to, are
facts worth a difference even where all experts are equal: a wrong name mapping loses tensors
without a word (vLLM's streamer loader checks neither). What a model leaves alone on purpose is
data, with the reason.

A name alone excuses nothing: ``mtp.`` is the draft model's own where config.json announces one,
and a layer may be left out only if config.json has it and the load was cut before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from harness.base.errors import InternalError
from harness.compare.accounting import beside_experts, left_alone, model_parts
from harness.compare.difference import (
    Account,
    ArrayMissing,
    BitsDiffer,
    DeliveredAgain,
    Difference,
    DigestDiffers,
    ParameterUnwritten,
    ReplicasDiffer,
    Side,
    Subject,
    TensorUnread,
    Unaccounted,
    ValuesDiffer,
)
from harness.compare.selection import Chosen
from harness.compare.words import device_words
from harness.devices.tensors import is_of_experts
from harness.explain.causes import Cause, Diagnosis, Finding, diagnoses_of
from harness.families.experts import ReferencePart
from harness.families.family import Family, Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger

#: Why tensors of a part that the model has are left alone, though no row above says so.
NOT_SELECTED = "not selected by --layers, --experts, --sample or --max-bytes"
NOT_ASKED = "of the {part}, which --only leaves out"


class Counts(NamedTuple):
    """How the checkpoint's tensors are accounted for, as one part of the stack was given them."""

    streamed: int
    delivered: int
    unused: int
    unread: int


#: What the devices hold when nothing came; others are of arrays, or of the ledger alone.
_NOTHING_CAME = (
    ArrayMissing | BitsDiffer | DigestDiffers | ValuesDiffer | ReplicasDiffer | ParameterUnwritten
)


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
    if any(isinstance(difference, _NOTHING_CAME) for difference in differences):
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
            hint="report this with the versions of the stack, which may load in a new way",
        )


def coverage(
    part: ReferencePart,
    ledger: Ledger,
    present: Collection[Part] | None = None,
    others: Collection[str] = (),
) -> tuple[Counts, list[Difference]]:
    """Account for the tensors and parameters of one part.

    Args:
        part: the part's experts, and through them the checkpoint.
        ledger: its load.
        present: the parts that the model has; by default those the reference announces.
        others: tensors that the reference lacks; :func:`account_of_checkpoint` tells of them.

    Returns:
        The counts, and a difference for each tensor nobody read, each parameter nobody wrote and
        each expert's matrix that was delivered more than once.
    """
    present = model_parts(part.checkpoint) if present is None else present
    unread = _not_read(part, ledger)
    unused = {name for name in unread if left_alone(part, name, present)}
    counts = Counts(
        streamed=len(ledger.streamed),
        delivered=len(ledger.streamed) - len(unread),
        unused=len(unused),
        unread=len(unread - unused),
    )
    return counts, [
        *_unread(part, sorted(unread - unused - set(others))),
        *_unwritten(part, ledger),
        *_repeated(part, ledger),
    ]


def _not_read(part: ReferencePart, ledger: Ledger) -> set[str]:
    """Streamed tensors that no loader was called for.

    Of what was gathered first the parameters tell that the calls were for: one of several tensors
    counts with as many calls, one of experts with a call for each matrix that it holds.
    """
    gathered = ledger.gathered()
    if not gathered:
        return set(ledger.unread())
    unknown = {call.source for call in gathered}
    read = {call.source for call in ledger.calls} - unknown
    family = part.checkpoint.family
    for parameter, calls in Counter(call.parameter for call in gathered).items():
        _, sources = family.rule_for(family.in_checkpoint(part.part, parameter)) or (None, ())
        read |= set(sources) if calls >= len(sources) else set()
    experts, lost = set(), set()
    for key in part:
        tensor = part.source(key).tensor
        experts.add(tensor)
        if not ledger.of(key.layer, key.expert, key.projection):
            lost.add(tensor)
    return set(ledger.streamed) - read - (experts - lost)


def _unread(part: ReferencePart, names: list[str]) -> Iterator[Difference]:
    for name in names:
        entry = part.checkpoint.entries.get(name)
        yield TensorUnread(part=part.part, tensor=name, file=entry.file.name if entry else "")


def _unwritten(part: ReferencePart, ledger: Ledger) -> Iterator[Difference]:
    if part.checkpoint.experts_only:
        return
    for name in ledger.unwritten:
        # Of experts the comparison tells more.
        if not is_of_experts(name, part.checkpoint.family, part.part):
            yield ParameterUnwritten(part=part.part, parameter=name)


def _repeated(part: ReferencePart, ledger: Ledger) -> Iterator[Difference]:
    counts = ledger.counts()
    for key in part:
        if (count := counts[ledger.slot(key.layer, key.expert, key.projection)]) > 1:
            yield DeliveredAgain(
                part=key.part, layer=key.layer, expert=key.expert, projection=key.projection,
                source=part.source(key), times=count,
            )  # fmt: skip


@dataclass(frozen=True)
class ComparedTensors:
    """What of a reference was compared, tensor by tensor.

    Attributes:
        reference: the checkpoint that was compared with.
        parts: of it, those that were compared.
        asked: the parts that were asked for, there or not.
        sources: every tensor that a device's array is made of, of all parts, and whether it was
            to be compared.
    """

    reference: ModelCheckpoint
    parts: Sequence[ReferencePart]
    asked: Collection[Part]
    sources: Mapping[str, bool]

    def present(self, checkpoint: ModelCheckpoint) -> frozenset[Part]:
        """The parts of a model whose tensors ``checkpoint`` may hold without being asked why.

        Those of the reference, and those of its own that nobody asked for.
        """
        return model_parts(self.reference) | (model_parts(checkpoint) - set(self.asked))

    @cached_property
    def _by_name(self) -> dict[Part, ReferencePart]:
        return {part.part: part for part in self.parts}

    def reason(self, name: str, present: Collection[Part]) -> str:
        """Why nothing was compared with a tensor; empty when something should have been."""
        if name in self.sources:
            return "" if self.sources[name] else NOT_SELECTED
        if reason := beside_experts(self.reference, name):
            return reason
        owner = self.reference.family.part_of(name)
        if owner not in present:
            return ""
        if owner not in self.asked:
            return NOT_ASKED.format(part=owner)
        part = self._by_name.get(owner)
        return left_alone(part, name, present) if part else ""


def expert_sources(part: ReferencePart, chosen: Chosen) -> dict[str, bool]:
    """Every expert tensor of a part, its scales too, and whether one of its experts was chosen."""
    found: dict[str, bool] = {}
    for layer in part.layers:
        experts = set(chosen.of(layer))
        for name, _, expert, *_ in part.tensors_of(layer):
            found[name] = bool(experts) if expert is None else expert in experts
    return found


def account_of_reference(
    scope: ComparedTensors, told: Collection[str]
) -> tuple[Account, list[Unaccounted]]:
    """Account for every tensor of the reference.

    Args:
        scope: what was compared.
        told: tensors that differences name already.

    Returns:
        The account, and a difference for each tensor without one that nobody accounts for.
    """
    present = model_parts(scope.reference)
    return _account(Side.REFERENCE, scope.reference, scope, present, told)


def account_of_checkpoint(
    checkpoint: ModelCheckpoint, scope: ComparedTensors, told: Collection[str]
) -> tuple[Account, list[Unaccounted]]:
    """Account for every tensor of a checkpoint that is compared with another.

    Its tensors are those of the reference, by name; experts may be stored in another way that the
    family knows, if that is the only one.

    Args:
        checkpoint: the one under test.
        scope: what was compared.
        told: tensors that differences name already.

    Returns:
        As :func:`account_of_reference`.
    """
    sources = dict(scope.sources)
    for part in scope.parts:
        sources |= _stored_otherwise(part, checkpoint, scope)
    here = ComparedTensors(scope.reference, scope.parts, scope.asked, sources)
    return _account(Side.CHECKPOINT, checkpoint, here, scope.present(checkpoint), told)


def _stored_otherwise(
    part: ReferencePart, checkpoint: ModelCheckpoint, scope: ComparedTensors
) -> dict[str, bool]:
    """Expert tensors of a part that ``checkpoint`` stores in another way than the reference."""
    used = [naming for naming in checkpoint.namings if naming.part is part.part]
    if len(used) != 1 or used[0] == part.naming:
        return {}
    found: dict[str, bool] = {}
    for layer in part.layers:
        compared = any(scope.sources.get(tensor.name, False) for tensor in part.tensors_of(layer))
        for tensor in part.tensors_of(layer, used[0]):
            found[tensor.name] = compared
    return found


def _account(
    side: Side,
    checkpoint: ModelCheckpoint,
    scope: ComparedTensors,
    present: Collection[Part],
    told: Collection[str],
) -> tuple[Account, list[Unaccounted]]:
    account = Account(side=side, tensors=len(checkpoint.entries))
    left: Counter[str] = Counter()
    differences: list[Unaccounted] = []
    for name, entry in checkpoint.entries.items():
        if scope.sources.get(name):
            account.compared += 1
        elif reason := scope.reason(name, present):
            left[reason] += 1
        else:
            account.unaccounted += 1
            differences += (
                []
                if name in told
                else [_unaccounted(side, checkpoint.family, name, entry.file.name)]
            )
    account.left_alone = dict(sorted(left.items()))
    return account, differences


def beside_the_index(checkpoint: ModelCheckpoint) -> list[Unaccounted]:
    """A difference for each tensor that is streamed from a file the index does not name.

    Copies of the index's own tensors are equal (``Checkpoint.require_copies_equal``); whether one
    of them arrived, or both, the devices do not tell.
    """
    family = checkpoint.family
    return [
        Unaccounted(
            part=family.part_of(entry.name), layer=family.layer_of(entry.name),
            subject=Subject.TENSOR_NOT_IN_THE_INDEX, name=entry.name, file=entry.file.name,
        )
        for entry in checkpoint.beside
    ]  # fmt: skip


def _unaccounted(side: Side, family: Family, name: str, file: str) -> Unaccounted:
    return Unaccounted(
        part=family.part_of(name), layer=family.layer_of(name), subject=_SUBJECT[side], name=name,
        file=file,
    )  # fmt: skip


_SUBJECT = {
    Side.REFERENCE: Subject.TENSOR_NOT_COMPARED,
    Side.CHECKPOINT: Subject.TENSOR_NOT_IN_THE_REFERENCE,
}
_LACKING = {
    Subject.TENSOR_NOT_COMPARED: "tensors of the reference were not compared",
    Subject.TENSOR_NOT_IN_THE_REFERENCE: "the reference lacks tensors of the checkpoint",
    Subject.TENSOR_NOT_IN_THE_INDEX: "tensors of files that the index does not name are streamed, "
    "too",
}


def named(differences: Iterable[Difference]) -> set[str]:
    """The tensors and arrays that differences say were not accounted for."""
    return {each.name for each in differences if isinstance(each, Unaccounted | TensorUnread)}


def diagnosed(differences: Iterable[Unaccounted]) -> list[Diagnosis]:
    """The diagnoses of what :func:`account_of_reference` and its like found."""
    return diagnoses_of((each, _finding(each)) for each in differences)


def _finding(difference: Unaccounted) -> Finding:
    what = _LACKING[difference.subject]
    evidence = f"{difference.name}: {device_words(difference)}"
    group = f"{Cause.UNACCOUNTED} {what} {difference.part}"
    return Finding(Cause.UNACCOUNTED, group, f"{what} ({difference.part})", evidence)
