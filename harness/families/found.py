"""How a checkpoint's experts are stored: found in its names and shapes, held against config.json.

People save checkpoints in other storages than the publishers': transformers 5 writes Qwen3-VL-MoE
with the axes of fused tensors swapped, and Qwen3.5-MoE one tensor an expert. Names tell one tensor
an expert, three stacked ones and fused ones apart; the shapes of gate and up and of down together
tell how fused ones lie, even where one of them is square: 2F = D and F = D do not hold both. What
shapes cannot tell is whether gate's and up's columns alternate. That is so for a family that
publishes them so, and for no other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.families.family import Family
from harness.families.storage import GATE_UP_DOWN, ExpertNaming, ExpertSizes, Storage


def found_namings(
    entries: Mapping[str, TensorEntry],
    family: Family,
    sizes: ExpertSizes,
    asked: Storage | None,
    where: str,
) -> tuple[ExpertNaming, ...]:
    """Every way in which ``entries`` hold experts, part by part; one a part in a sound checkpoint.

    A naming whose names are there and whose shapes are not is returned, too: what exactly is
    wrong with its tensors is for their reader to say.

    Args:
        entries: the checkpoint's tensors.
        family: its family, bound to it.
        sizes: of the experts, from config.json.
        asked: the storage that the user says it is; it decides between readings.
        where: the checkpoint is.

    Raises:
        BadInput: names and shapes allow several readings, or not the one that was asked for.
    """
    found: list[ExpertNaming] = []
    readings: list[ExpertNaming] = []
    for group in _there(_groups(family, asked), family, entries):
        layer = family.layers_of(group[0], entries)[0]
        fitting = [naming for naming in group if _fits(naming, layer, sizes, entries)]
        readings += fitting
        found.append(_chosen(fitting, family, asked, where) if fitting else group[0])
    if asked and readings and asked not in (naming.storage for naming in found):
        raise BadInput(
            f"--storage {asked}: this checkpoint stores no experts this way",
            where=where,
            expected=" or ".join(dict.fromkeys(naming.storage for naming in readings))
            + ", by the names and shapes of its tensors",
            hint="leave out --storage: the harness finds the right one",
        )
    return tuple(found)


def _there(
    groups: Iterable[list[ExpertNaming]], family: Family, entries: Collection[str]
) -> Iterator[list[ExpertNaming]]:
    """The groups that the files have tensors of, none of which another group has all of.

    Three stacked tensors and two fused ones have ``down_proj`` in common.
    """
    held = [(group, set(family.tensors_in(group[0], entries))) for group in groups]
    for number, (group, names) in enumerate(held):
        others = (
            other > names or (other == names and place < number)
            for place, (_, other) in enumerate(held)
            if place != number
        )
        if names and not any(others):
            yield group


def _groups(family: Family, asked: Storage | None) -> Iterator[list[ExpertNaming]]:
    """The namings an expert tensor may have, those of the same tensors' names together."""
    groups: dict[tuple[object, ...], list[ExpertNaming]] = {}
    for naming in candidates(family, asked):
        single = naming.storage is Storage.PER_EXPERT
        group = groups.setdefault((naming.part, naming.prefix, single, naming.names), [])
        if naming not in group:
            group.append(naming)
    yield from groups.values()


def candidates(family: Family, asked: Storage | None) -> Iterable[ExpertNaming]:
    """The family's own namings first, then how else its experts may stand below that name."""
    yield from family.namings
    alternating = {n.part for n in family.namings if n.storage is Storage.INTERLEAVED}
    for own in family.namings:
        three = own.names if len(own.names) == len(GATE_UP_DOWN) else ()
        two = () if three else own.names
        for storage in Storage:
            halves = storage in (Storage.FUSED, Storage.FUSED_TRANSPOSED)
            # Rows of gate and up that alternate are a quantised format's alone.
            in_turn = storage in (Storage.INTERLEAVED, Storage.ALTERNATING)
            unlikely = in_turn or (halves and own.part in alternating)
            if storage is asked or not unlikely:
                names = two if storage.is_fused else three
                yield ExpertNaming(own.part, own.prefix, storage, names)


def _fits(
    naming: ExpertNaming, layer: int, sizes: ExpertSizes, entries: Mapping[str, TensorEntry]
) -> bool:
    """Whether a layer has the tensors of a naming, in the shapes it gives them."""
    return all(
        (entry := entries.get(tensor.name)) is not None and entry.shape == tensor.shape
        for tensor in naming.tensors(layer, sizes)
    )


def _chosen(
    fitting: list[ExpertNaming], family: Family, asked: Storage | None, where: str
) -> ExpertNaming:
    """The one reading, or of several the one that was asked for, or that the family publishes."""
    for naming in fitting:
        if naming.storage is asked:
            return naming
    published = [naming for naming in fitting if naming in family.namings]
    if len(decided := published or fitting) == 1:
        return decided[0]
    part, readings = decided[0].part, [str(naming.storage) for naming in decided]
    raise BadInput(
        f"the {part}'s experts can be read in several ways: {' or '.join(readings)}",
        where=where,
        expected="names and shapes that allow only one",
        hint=" or ".join(f"--storage {reading}" for reading in readings),
    )
