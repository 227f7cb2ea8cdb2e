"""The same damage gets the same cause wherever it sits; the table of that is a document.

``pytest tests/explain/test_damages.py --write-docs`` writes it to ``docs/causes.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.writing import write
from tests.support.damages import DAMAGES, KINDS, Damage, Site, site_of, write_references

DOCUMENT = Path(__file__).parents[2] / "docs" / "causes.md"
_BEGIN, _END = "<!-- table: written by tests/explain/test_damages.py -->", "<!-- end of table -->"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    checkpoints = write_references(tmp_path_factory.mktemp("damages"))
    return {kind.name: site_of(checkpoints, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_what_is_faithful_is_equal(sites: dict[str, Site], kind: str) -> None:
    assert sites[kind].compared({}, None)[0] == []


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_the_same_damage_gets_the_same_cause(
    sites: dict[str, Site], damage: Damage, kind: str, request: pytest.FixtureRequest
) -> None:
    said = damage.cell(sites[kind])
    assert said == damage.cause or said.startswith("("), said
    if not request.config.getoption("--write-docs"):
        assert read()[damage.name, kind] == said, "run with --write-docs"


@pytest.mark.slow
def test_every_damage_is_named_somewhere(sites: dict[str, Site]) -> None:
    """And those that need nothing wherever bits are compared."""
    for damage in DAMAGES:
        cells = {name: damage.cell(site) for name, site in sites.items()}
        assert damage.cause in cells.values()
        needs = damage.needs or (damage.rule and damage.rule.needs)
        if not (needs or damage.of_scales or damage.of_padding):
            bits = {cell for name, cell in cells.items() if not name.startswith("FP8")}
            assert bits == {damage.cause}


@pytest.mark.slow
def test_the_document_has_every_row(sites: dict[str, Site], request: pytest.FixtureRequest) -> None:
    before, rest = DOCUMENT.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    text = f"{before}{_BEGIN}\n{table(sites)}{_END}{after}"
    if request.config.getoption("--write-docs"):
        write(DOCUMENT, text.encode())
    else:
        assert DOCUMENT.read_text() == text, "run with --write-docs"


def table(sites: dict[str, Site]) -> str:
    """A row a damage; then the reasons that stand in the table by their letters, and the steps."""
    reasons: dict[str, str] = {}
    rows = []
    for damage in DAMAGES:
        cells = [damage.cell(site) for site in sites.values()]
        told = [
            f"({reasons.setdefault(cell, letter(reasons))})" if cell.startswith("(")
            else "yes" if cell == damage.cause
            else cell
            for cell in cells
        ]  # fmt: skip
        rows.append(row(damage.name, f"`{damage.cause}`", *told))
    lines = [row("damage", "cause", *sites), row(*["---"] * (2 + len(sites))), *rows, ""]
    lines += ["A cause cannot apply because", ""]
    lines += [f"- ({mark}) {cell[1:-1]}" for cell, mark in reasons.items()]
    return "\n".join(lines) + "\n"


def letter(taken: dict[str, str]) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[len(taken)]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def read() -> dict[tuple[str, str], str]:
    """The cells of the document, by damage and kind."""
    text = DOCUMENT.read_text().split(_BEGIN)[1].split(_END)[0]
    lines = text.splitlines()
    reasons = dict(line[2:].split(" ", 1) for line in lines if line.startswith("- ("))
    rows = (line.strip("|").split(" | ") for line in lines if line.startswith("|"))
    (_, _, *kinds), _, *cells_of = [[cell.strip() for cell in cells] for cells in rows]
    return {
        (name, kind): cause.strip("`") if cell == "yes" else f"({reasons[cell]})"
        for name, cause, *cells in cells_of
        for kind, cell in zip(kinds, cells, strict=True)
    }
