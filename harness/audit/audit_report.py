"""The result of an audit, and how it is written.

``to_json`` is the documented form (``docs/audit.md``); text and SARIF are made from it.
"""

from __future__ import annotations

import msgspec

from harness.audit.call import CallVerdict, SourceCall
from harness.audit.hooks import HookCode
from harness.audit.signature import Signature
from harness.base.writing import indented

SCHEMA = 1


class AuditedPackage(msgspec.Struct, frozen=True):
    """A package that was read: its release, how many files it has, and how many were parsed."""

    name: str
    version: str
    files: int
    parsed: int


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """One audit.

    Attributes:
        packages: vLLM, and tpu-inference where there is one.
        signature: what the positions of an expert's loader mean.
        findings: the calls a hook cannot read its ids from, and the undecided ones.
        others: all other calls of weight loaders.
        hooks: what tpu-inference's hooks read.
        tally: how many calls have each verdict.
        seconds: wall time.
    """

    packages: tuple[AuditedPackage, ...]
    signature: Signature
    findings: tuple[SourceCall, ...]
    others: tuple[SourceCall, ...]
    hooks: tuple[HookCode, ...]
    tally: dict[str, int]
    seconds: float
    schema: int = SCHEMA

    @property
    def exit_code(self) -> int:
        """1 where an id is passed by position, else 0; an undecided call is no finding."""
        return int(CallVerdict.POSITIONAL.value in self.tally)

    def without_others(self) -> AuditReport:
        """The report without the calls that are in order."""
        return msgspec.structs.replace(self, others=())

    def to_json(self) -> bytes:
        """The report as indented JSON."""
        return indented(self)
