"""The audit of sources: every call of a weight loader that a vLLM has, judged by the contract."""

from __future__ import annotations

import ast
import time
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from harness.audit.audit_report import AuditedPackage, AuditReport
from harness.audit.audit_text import audit_text
from harness.audit.call import Arguments, CallVerdict, SourceCall, loader_call
from harness.audit.classes import architectures, concerned_classes
from harness.audit.hooks import hooks
from harness.audit.origin import Origin, OriginKind, Origins, last_name, loader_owner
from harness.audit.sarif import audit_sarif
from harness.audit.scope import Names, Scope
from harness.audit.signature import LOADER, Signature, expert_signature
from harness.audit.source import Package, SourceModule, installed_package, package_at
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


def loader_calls(module: SourceModule, signature: Signature) -> list[SourceCall]:
    """The calls of weight loaders in ``module``, in the order of their lines.

    A ``partial`` that binds an id by position is a finding itself: wherever its result is called,
    the id arrives so.
    """
    names = Names(module.tree)
    origins = Origins(names)
    found = [each for call in names.calls for each in _judged(module, *call, origins, signature)]
    return sorted(found, key=lambda call: (call.line, call.column))


def _judged(
    module: SourceModule, call: ast.Call, scope: Scope, origins: Origins, signature: Signature
) -> Iterator[SourceCall]:
    place = (module.file, scope.path)
    if loader_owner(call):  # getattr(x, "weight_loader") is a value, no call of it
        return
    if last_name(call.func) == "partial" and call.args:
        origin = origins.of(call.args[0], scope)
        arguments = Arguments(call, origin, binding=True)
        judged = loader_call(place, call, arguments, origin.kind, signature)
        if origin.kind is not OriginKind.NONE and judged.verdict is CallVerdict.POSITIONAL:
            yield judged
        return
    origin = origins.of_callee(call, scope)
    if origin.kind is not OriginKind.NONE and not _is_any_other(call, origin):
        yield loader_call(place, call, Arguments(call, origin), origin.kind, signature)


def _is_any_other(call: ast.Call, origin: Origin) -> bool:
    """A value that cannot be told counts as a loader only where it is called one."""
    return origin.kind is OriginKind.UNKNOWN and "loader" not in ast.unparse(call.func)
