"""Every call of a weight loader in one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from harness.audit.call import Arguments, CallVerdict, SourceCall, loader_call
from harness.audit.origin import Origin, OriginKind, Origins, last_name, loader_owner
from harness.audit.scope import Names, Scope
from harness.audit.signature import Signature
from harness.audit.source import SourceModule


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
