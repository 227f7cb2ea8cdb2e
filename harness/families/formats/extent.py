"""How far a quantised release is quantised: which parts, which layers, and what besides experts.

A part's experts are all in the release's format, or none of them is: draft models are often left as
they were (compressed-tensors' ``ignore``, AWQ's ``modules_to_not_convert``, ModelOpt's
``exclude_modules``). What the device makes of attention and other linear layers is described for
FP8 in blocks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import TensorEntry
from harness.families.family import Family
from harness.families.formats.format import WeightFormat, parts_of, single
from harness.families.storage import ExpertNaming

#: Scales of a quantised cache of keys and values, as all writers call them.
_OF_CACHES = (".k_scale", ".v_scale")


def coded_layers(
    form: WeightFormat, naming: ExpertNaming, family: Family, entries: Mapping[str, TensorEntry]
) -> set[int]:
    """The layers that have any expert tensor of codes, by a naming of the format."""
    found = family.tensors_in(naming, entries)
    return {layer for name, layer in found.items() if entries[name].dtype == form.tensors[0].dtype}


def quantised_namings(
    form: WeightFormat, family: Family, entries: Mapping[str, TensorEntry], where: str
) -> tuple[ExpertNaming, ...]:
    """How the experts of quantised parts are named.

    Raises:
        BadInput: some layers of a part are quantised, and others are not.
    """
    found = []
    for published in parts_of(family.namings).values():
        naming = form.naming(published)
        coded = coded_layers(form, naming, family, entries)
        plain = {
            layer
            for each in {*(n for n in family.namings if n.part is naming.part), single(published)}
            for layer in family.layers_of(each, entries)
        }
        if coded and plain - coded:
            raise BadInput(
                f"{naming.part} layers {shown(sorted(coded))} with experts in {form.name}, and "
                f"{shown(sorted(plain - coded))} with experts that are not quantised",
                where=where,
                expected="layers of one kind: the two lie on the device in different ways, and a "
                "part is compared in one",
                hint="a release without experts in its list of modules that are not quantised",
            )
        if coded:
            found.append(naming)
    return tuple(found)


def require_nothing_besides(
    form: WeightFormat,
    namings: Sequence[ExpertNaming],
    entries: Mapping[str, TensorEntry],
    where: str,
) -> None:
    """Nothing is quantised besides experts.

    Raises:
        BadInput: something is.
    """
    codes = form.tensors[0]
    ends = (f".{codes.suffix}", f"_{codes.suffix}")
    others = sorted(
        name
        for name, entry in entries.items()
        if (entry.dtype == codes.dtype and name.endswith(ends)) or name.endswith(_OF_CACHES)
        if all(naming.layer_of(name) is None for naming in namings)
    )
    if others:
        raise BadInput(
            f"a release in {form.name} that quantises more than experts: {len(others)} tensors, "
            f"the first is {shown(others[0])}",
            where=where,
            expected="a release whose experts alone are quantised: what the device makes of "
            "attention and other layers in this format is not described",
            hint="--experts-only, which compares the experts and looks at nothing else",
        )
