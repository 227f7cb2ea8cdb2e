"""The table of ``docs/parameters.md``, as Markdown: every row of every family's blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.families.blocks import DERIVED, TENSOR, UPSTREAM, Cut, Pieces, Row
from harness.families.family import Family, ParameterRule
from harness.families.known_families import families

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

_PIECES = {
    Pieces.WHOLE: "",
    Pieces.QKV: "k and v heads repeated where there are more devices than heads",
    Pieces.QKV_ROTARY: "of each head of q and k the even rows first; k and v heads repeated where "
    "there are more devices than heads",
    Pieces.QKV_FUSED: "q, k and v thirds of one tensor, each cut for itself",
    Pieces.THIRDS: "thirds of one tensor, each cut for itself",
    Pieces.QKVZ: "q, k, v and z, each cut for itself",
    Pieces.ROWS: "padded with zero rows to a multiple of 64",
    Pieces.ALTERNATING: "gate's and up's in turn in the tensor, one after the other in each part",
}


def parameter_table() -> str:
    """One row a kind of parameter: its families, name, tensors, transform, placement, source."""
    return "\n".join(_lines()) + "\n"


def upstream_list() -> str:
    """What the keys of the table's last column stand for, as a Markdown list."""
    return "".join(f"- **{key}**: `{where}`\n" for key, where in UPSTREAM.items())


def _lines() -> Iterator[str]:
    yield "| kind | families | parameter | tensors | transform | placement | upstream |"
    yield "|---|---|---|---|---|---|---|"
    for row, uses in _rows().items():
        families = ", ".join(dict.fromkeys(family.name for family, _ in uses))
        names = ", ".join(dict.fromkeys(f"`{_readable(rule.pattern.pattern)}`" for _, rule in uses))
        cells = (row.kind, families, names, _sources(row), _transform(row), _placement(row))
        yield f"| {' | '.join((*cells, row.upstream))} |"
    for derived in DERIVED:
        value = (
            "computed" if derived.constant is None else f"{derived.constant} everywhere, checked"
        )
        name = f"`{_readable(derived.pattern)}`"
        yield (
            f"| {derived.kind}, derived | all | {name} | none | {value} | listed "
            f"| {derived.upstream} |"
        )


def _rows() -> dict[Row, list[tuple[Family, ParameterRule]]]:
    """Where each row is, over all families."""
    found: dict[Row, list[tuple[Family, ParameterRule]]] = {}
    for family in families():
        for rule in family.rules:
            found.setdefault(rule.row, []).append((family, rule))
    return found


def _readable(pattern: str) -> str:
    """A regular expression as a name with ``*`` and alternatives."""
    words = (r"(\d+)", "*"), (r"\d+", "*"), (".+", "*"), ("(?:", "("), ("\\.", "."), ("|", ",")
    for before, after in words:
        pattern = pattern.replace(before, after)
    pattern = re.sub(r"\((\*\.\w+)\)", r"\1", pattern.replace("()", ""))
    if pattern.startswith("("):
        pattern = pattern.replace("(", "", 1).replace(")", "", 1)
    return pattern.replace("(", "{").replace(")", "}")


def _sources(row: Row) -> str:
    names = [name for name, _ in row.stored]
    if names == [row.parameter]:
        return "the same name"
    return ", ".join(f"`{name.removesuffix('.weight')}`" for name in names)


def _transform(row: Row) -> str:
    words = ["transposed"] if row.transposed else []
    if row.cut is Cut.OUTPUTS and (len(row.stored) > 1 or row.pieces in _INTERLEAVED):
        words.append("part i of each piece side by side for device i")
    words += [text] if (text := _PIECES[row.pieces]) else []
    words += ["placed as their matrices' outputs, zeros between; f32"] if row.biases else []
    words += ["made as f32"] if row.widened else []
    words += ["without its first axis, of size 1"] if row.squeezed else []
    if row.left_alone_before:
        words += [f"before vLLM {'.'.join(map(str, row.left_alone_before))} left alone"]
    return "; ".join(words) or "none"


_OF_BIASES = {
    Cut.OUTPUTS: f"cut as their matrices over {', '.join(TENSOR)}: by outputs, or by experts",
    Cut.NONE: f"replicated, or cut by experts over {', '.join(TENSOR)}",
}
_INTERLEAVED = (Pieces.QKV_FUSED, Pieces.THIRDS, Pieces.QKVZ)


def _placement(row: Row) -> str:
    if row.biases:
        return _OF_BIASES[row.cut]
    if row.cut is Cut.NONE:
        return "replicated"
    bias = {Cut.INPUTS: "; a bias is replicated", Cut.OUTPUTS: ""}[row.cut]
    bias = bias if row.parameter.endswith("bias") else ""
    return f"cut by {row.cut} over {', '.join(row.axes)}{bias}"
