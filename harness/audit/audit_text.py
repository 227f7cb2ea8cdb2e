"""An audit as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from harness.audit.audit_report import AuditReport
from harness.audit.call import CallVerdict, SourceCall
from harness.audit.hooks import HookCode

_MODELS_SHOWN = 6


def audit_text(report: AuditReport) -> str:
    """The report as paragraphs: what was read, each finding, the hooks, the sum."""
    blocks = [_heading(report), *map(_finding, report.findings)]
    if report.others:
        blocks.append("\n".join(_row(call) for call in report.others))
    if report.hooks:
        blocks.append("\n".join(["what the hooks read", *map(_hook, report.hooks)]))
    return "\n\n".join([*blocks, _sum(report)])


def _heading(report: AuditReport) -> str:
    packages = [
        f"{p.name} {p.version or '(no release stated)'}: {p.files} files, {p.parsed} parsed"
        for p in report.packages
    ]
    signature = report.signature
    return "\n".join([*packages, f"{signature}  {signature.file}:{signature.line}"])


def _finding(call: SourceCall) -> str:
    return "\n".join([f"{call.place}  {call.function}", *_details(call)])


def _details(call: SourceCall) -> Iterator[str]:
    if call.verdict is CallVerdict.UNDECIDED:
        yield "  undecided  whose loader this is cannot be told"
    yield f"  call       {call.call}"
    yield f"  hook sees  {call.seen_by_hook}"
    if call.corrected:
        yield f"  write      {call.corrected}"
    models = call.architectures or call.classes
    more = f" and {len(models) - _MODELS_SHOWN} more" if len(models) > _MODELS_SHOWN else ""
    yield f"  models     {', '.join(models[:_MODELS_SHOWN])}{more}"


def _row(call: SourceCall) -> str:
    return f"{call.verdict:<10} {call.place}  {call.function}  {call.call}"


def _hook(hook: HookCode) -> str:
    lines = [f"  {hook.file}:{hook.line}  {hook.function}"]
    lines += [f"    {read.name} from {read.source}, line {read.line}" for read in hook.reads]
    lines += [f"    requires {requirement}" for requirement in hook.requires]
    lines += [f"    hands args and kwargs to {hook.hands_to}"] if hook.hands_to else []
    return "\n".join(lines)


def _sum(report: AuditReport) -> str:
    count = report.tally.get(CallVerdict.POSITIONAL, 0)
    rest = ", ".join(f"{n} {v}" for v, n in report.tally.items() if v != CallVerdict.POSITIONAL)
    findings = f"{count or 'no'} finding{'' if count == 1 else 's'}"
    return f"{findings}; {rest or 'no other call'}; {report.seconds:.1f} s"
