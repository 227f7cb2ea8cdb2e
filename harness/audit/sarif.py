"""An audit as SARIF 2.1.0 (OASIS), in the form GitHub code scanning takes.

Findings alone are results: what is in order is no alert. Paths are relative to the directory that
holds the package, which for a checkout is its root; two calls alike in one function are told
apart by their number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.audit.audit_report import AuditReport
from harness.audit.call import CallVerdict, SourceCall
from harness.base.writing import indented

RULE = "expert-ids-by-position"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "%SRCROOT%"
_FIX = "https://github.com/vllm-project/vllm/pull/42716"
_WHAT = "A parameter's weight_loader gets shard_id or expert_id by position"
_WHY = (
    "Loaders that stream weights onto a device replace each parameter's weight_loader and read "
    "shard_id and expert_id from its keyword arguments. Passed by position they are not seen: "
    "the load ends with an error, or the expert is counted under no id and lost. "
    "Pass both by keyword."
)
_LEVELS = {CallVerdict.POSITIONAL: "error", CallVerdict.UNDECIDED: "note"}


def audit_sarif(report: AuditReport) -> bytes:
    """The findings as a SARIF log."""
    vllm = report.packages[0]
    run = {
        "tool": {"driver": _driver()},
        "originalUriBaseIds": {
            _ROOT: {"description": {"text": f"The directory that holds the package {vllm.name}."}}
        },
        "columnKind": "unicodeCodePoints",
        "results": list(_results(report.findings)),
        "properties": {p.name: p.version for p in report.packages if p.version},
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return indented(log)


def _driver() -> dict[str, Any]:
    rule = {
        "id": RULE,
        "name": "ExpertIdsByPosition",
        "shortDescription": {"text": _WHAT},
        "fullDescription": {"text": _WHY},
        "help": {"text": _WHY, "markdown": f"{_WHY} [The fix in vLLM]({_FIX})."},
        "helpUri": _FIX,
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["correctness", "weight-loading"], "precision": "high"},
    }
    return {"name": "harness-audit", "informationUri": _FIX, "rules": [rule]}


def _results(findings: tuple[SourceCall, ...]) -> Iterator[dict[str, Any]]:
    seen: Counter[tuple[str, str, str]] = Counter()
    for call in findings:
        alike = (call.file, call.function, call.call)
        seen[alike] += 1
        yield {
            "ruleId": RULE,
            "ruleIndex": 0,
            "level": _LEVELS[call.verdict],
            "message": {"text": _message(call)},
            "locations": [_location(call)],
            "partialFingerprints": {"primaryLocationLineHash": _hash(*alike, str(seen[alike]))},
        }


def _message(call: SourceCall) -> str:
    ids = " and ".join(call.positional_ids)
    sure = "" if call.verdict is CallVerdict.POSITIONAL else " Whose loader this is cannot be told."
    write = f" Write {call.corrected}" if call.corrected else ""
    return f"{ids} by position: the hook sees {call.seen_by_hook}.{sure}{write}"


def _location(call: SourceCall) -> dict[str, Any]:
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": call.file, "uriBaseId": _ROOT},
            "region": {
                "startLine": call.line,
                "startColumn": call.column,
                "endLine": call.end_line,
                "endColumn": call.end_column,
            },
        },
        "logicalLocations": [{"fullyQualifiedName": call.function, "kind": "function"}],
    }


def _hash(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{digest[:16]}:1"
