"""The table of :mod:`harness.families.parameters` as Markdown, for ``docs/parameters.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.families.parameters import DERIVED, RULES, UPSTREAM, Cut, Pieces, Rule

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

_PIECES = {
    Pieces.WHOLE: "",
    Pieces.QKV: "k and v heads repeated where there are more devices than heads",
    Pieces.QKV_FUSED: "q, k and v thirds of one tensor, each cut for itself",
    Pieces.QKVZ: "q, k, v and z, each cut for itself",
    Pieces.ROWS: "padded with zero rows to a multiple of 64",
}


def parameter_table() -> str:
    """One row a kind of parameter: name, tensors, transform, placement, where upstream does it."""
    return "\n".join(_rows()) + "\n"


def _rows() -> Iterator[str]:
    yield "| kind | parameter | tensors | transform | placement | upstream |"
    yield "|---|---|---|---|---|---|"
    for rule in RULES:
        family = f" ({', '.join(rule.families)})" if rule.families else ""
        cells = (
            f"{rule.kind}{family}", f"`{_readable(rule.pattern)}`", _sources(rule),
            _transform(rule), _placement(rule), rule.upstream,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    for row in DERIVED:
        value = "computed" if row.constant is None else f"{row.constant} everywhere, checked"
        cells = (
            f"{row.kind}, derived", f"`{_readable(row.pattern)}`", "none", value, "listed",
            row.upstream,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def upstream_list() -> str:
    """What the keys of the table's last column stand for, as a Markdown list."""
    return "".join(f"- **{key}**: `{where}`\n" for key, where in UPSTREAM.items())


def _readable(pattern: str) -> str:
    """A regular expression as a name with ``*`` and alternatives."""
    for before, after in ((r"\d+", "*"), (".+", "*"), ("(?:", "("), ("\\.", "."), ("|", ",")):
        pattern = pattern.replace(before, after)
    pattern = re.sub(r"\((\*\.\w+)\)", r"\1", pattern)
    return pattern.replace("(", "{").replace(")", "}")


def _sources(rule: Rule) -> str:
    if rule.sources == (r"\g<0>",):
        return "the same name"
    tails = [re.sub(r"\\\d\.?", "", source).removesuffix(".weight") for source in rule.sources]
    return ", ".join(f"`{tail.strip('.')}`" for tail in tails)


def _transform(rule: Rule) -> str:
    words = ["transposed"] if rule.transposed else []
    if rule.cut is Cut.OUTPUTS and (len(rule.sources) > 1 or rule.pieces in _INTERLEAVED):
        words.append("part i of each piece side by side for device i")
    words += [text] if (text := _PIECES[rule.pieces]) else []
    words += ["made as f32"] if rule.widened else []
    return "; ".join(words) or "none"


_INTERLEAVED = (Pieces.QKV_FUSED, Pieces.QKVZ)


def _placement(rule: Rule) -> str:
    if rule.cut is Cut.NONE:
        return "replicated"
    bias = {Cut.INPUTS: "; a bias is replicated", Cut.OUTPUTS: ""}[rule.cut]
    bias = bias if "bias" in rule.pattern else ""
    return f"cut by {rule.cut} over {', '.join(rule.axes)}{bias}"
