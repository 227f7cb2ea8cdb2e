"""What the harness says of mirrored rows, wherever it is imported from; run as a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import harness
from harness.explain.causes import Cause
from harness.explain.rules import RULES
from harness.report.renderings import json_schema
from tests.support.cause_list import listed
from tests.support.damages import DAMAGES, KINDS, Damage, site_of, write_reference

CAUSE = Cause.__members__.get("MIRRORED", Cause.ROWS_EXCHANGED)
MIRRORED = Damage("mirrored", CAUSE, lambda site: site.bits[::-1].copy())


def main(path: Path) -> None:
    """Plant it in an expert and in a norm, and print what is known of it."""
    checkpoint = write_reference(path)
    of = {KINDS[0].of: checkpoint}
    experts, norm = (MIRRORED.cell(site_of(of, kind)) for kind in KINDS[:2])
    known = {str(cause): cause.next_step for cause in Cause}
    told = {
        "package": harness.__file__,
        "experts": experts,
        "a norm": norm,
        "next step": known.get(experts),
        "causes": list(dict.fromkeys(str(c) for rule in RULES for c in rule.causes)),
        "schema": json_schema()["$defs"]["Cause"]["enum"],
        "page": listed((*DAMAGES, MIRRORED)).splitlines(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
