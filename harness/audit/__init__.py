"""The call-contract audit: which calls hide an expert's ids from a loader hook.

It reads the sources of a vLLM and of a tpu-inference, and imports neither. The contract comes
from tpu-inference: its hook reads ``expert_id`` and ``shard_id`` from the keyword arguments
(``layers/vllm/quantization/unquantized.py``, 0.21 to 0.32). vLLM #42521, #42671 and #42716 fixed
the calls of 0.21 that passed them by position; the pattern came back in 0.32.
"""

from __future__ import annotations

import time
from collections import Counter
from enum import StrEnum
from pathlib import Path

import msgspec

from harness.audit.audit_report import AuditedPackage, AuditReport
from harness.audit.audit_text import audit_text
from harness.audit.call import CallVerdict, SourceCall
from harness.audit.classes import architectures, concerned_classes
from harness.audit.hooks import hooks
from harness.audit.sarif import audit_sarif
from harness.audit.signature import LOADER, expert_signature
from harness.audit.sites import loader_calls
from harness.audit.source import Package, installed_package, package_at
from harness.base.foreign import presentable

_WRONG = (CallVerdict.POSITIONAL, CallVerdict.UNDECIDED)


def audit(vllm: Path | None = None, tpu_inference: Path | None = None) -> AuditReport:
    """Audit a vLLM, and read the hooks of a tpu-inference.

    Args:
        vllm: a checkout or the package's directory; None for the installed package.
        tpu_inference: alike; None for the installed one, or none where it is not installed.

    Raises:
        BadInput: no such package, or no expert loader in it.
    """
    started = time.perf_counter()
    package = package_at("vllm", vllm)
    signature = expert_signature(package)
    modules = list(package.modules(LOADER))
    calls = [call for module in modules for call in loader_calls(module, signature)]
    tpu = package_at("tpu_inference", tpu_inference) if tpu_inference else None
    tpu = tpu or installed_package("tpu_inference")
    found = hooks(tpu) if tpu else []
    packages = [_audited(package, len(modules))]
    if tpu:
        packages.append(_audited(tpu, len({hook.file for hook in found})))
    return AuditReport(
        packages=tuple(packages),
        signature=signature,
        findings=tuple(_with_classes(package, call) for call in calls if call.verdict in _WRONG),
        others=tuple(call for call in calls if call.verdict not in _WRONG),
        hooks=tuple(found),
        tally=dict(Counter(call.verdict.value for call in calls)),
        seconds=time.perf_counter() - started,
    )


class Format(StrEnum):
    """How an audit is written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


def rendered(report: AuditReport, form: Format) -> bytes:
    """The report as it is written; SARIF holds the findings alone."""
    report = presentable(report)
    if form is Format.JSON:
        return report.to_json()
    return audit_sarif(report) if form is Format.SARIF else f"{audit_text(report)}\n".encode()


def _audited(package: Package, parsed: int) -> AuditedPackage:
    return AuditedPackage(package.name, package.version, len(package.texts), parsed)


def _with_classes(vllm: Package, call: SourceCall) -> SourceCall:
    classes = concerned_classes(vllm, call.file, call.function)
    return msgspec.structs.replace(
        call, classes=classes, architectures=architectures(vllm, classes)
    )
