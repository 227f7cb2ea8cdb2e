"""One call of a weight loader: what it passes, and what that means to a loader hook."""

from __future__ import annotations

import ast
from copy import deepcopy
from enum import StrEnum

import msgspec

from harness.audit.origin import Origin, OriginKind
from harness.audit.signature import IDS, Signature

_BEFORE_HOOK = ("param", "loaded_weight")


class CallVerdict(StrEnum):
    """What the audit says of a call.

    - ``positional``: the finding. A parameter's loader gets shard_id or expert_id by position; a
      hook that reads keywords does not see them.
    - ``undecided``: ids by position, but whose loader it is cannot be told.
    - ``keyword``: a parameter's loader gets its ids by keyword, as it must.
    - ``null``: by keyword, but an id is None itself. No hook learns which expert it is.
    - ``linear``: the contract of linear layers, the shard as the one extra argument by position.
    - ``plain``: parameter and weight, nothing else.
    - ``other``: extra arguments that make no call of the expert loader: another class's contract.
    - ``forwarded``: ``*args``, ``**kwargs`` or what ``partial`` bound; judged where it is made.
    - ``wrapped``: the original loader, the parent's, or a layer's own method; no hook is on it.
    """

    POSITIONAL = "positional"
    UNDECIDED = "undecided"
    KEYWORD = "keyword"
    NULL = "null"
    LINEAR = "linear"
    PLAIN = "plain"
    OTHER = "other"
    FORWARDED = "forwarded"
    WRAPPED = "wrapped"


class SourceCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call, where it stands, and its verdict.

    Attributes:
        file: path inside the audited package's parent.
        line: where the call begins, with ``column``, both from 1.
        end_line: where it ends; ``end_column`` is that of the character after it.
        function: class and functions it stands in.
        call: the call as source.
        hook_args: what a hook gets as ``args`` after parameter and weight, as source.
        hook_kwargs: what it gets as ``kwargs``.
        positional_ids: the ids passed by position.
        corrected: the call with its ids by keyword; empty where nothing is to be corrected.
        classes: classes that run this code, of this and other modules; only for findings.
        architectures: those of them the registry names, as ``config.json`` does.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    function: str
    verdict: CallVerdict
    call: str
    hook_args: tuple[str, ...] = ()
    hook_kwargs: dict[str, str] = {}
    positional_ids: tuple[str, ...] = ()
    corrected: str = ""
    classes: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """``file:line:column``."""
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def seen_by_hook(self) -> str:
        """What the hook gets, as its own two names say it."""
        kwargs = ", ".join(f"{name}: {value}" for name, value in self.hook_kwargs.items())
        comma = "," if len(self.hook_args) == 1 else ""
        return f"args=({', '.join(self.hook_args)}{comma}), kwargs={{{kwargs}}}"


class Arguments:
    """The arguments of a call, those bound by ``partial`` first, literal stars spread out.

    Args:
        call: the call, or the ``partial`` that binds arguments for one.
        origin: the loader called, with what is bound to it already.
        binding: whether ``call`` is such a ``partial``.
    """

    def __init__(self, call: ast.Call, origin: Origin, *, binding: bool = False) -> None:
        self.head = call.args[:1] if binding else []
        self.binding = binding
        self.bound = len(_spread(list(origin.args)))
        self.positional = _spread([*origin.args, *call.args[len(self.head) :]])
        self.keywords = [*origin.keywords, *call.keywords]

    @property
    def plain(self) -> list[ast.expr]:
        """The positional arguments before the first star."""
        stars = (i for i, a in enumerate(self.positional) if isinstance(a, ast.Starred))
        return self.positional[: next(stars, None)]

    @property
    def has_star(self) -> bool:
        """Whether some positional arguments are not known one by one."""
        return len(self.plain) < len(self.positional)

    @property
    def has_double_star(self) -> bool:
        """Whether some keyword arguments are not known one by one."""
        return any(keyword.arg is None for keyword in self.keywords)

    @property
    def names(self) -> list[str]:
        """The names of the keyword arguments."""
        return [keyword.arg for keyword in self.keywords if keyword.arg]

    def positional_ids(self, signature: Signature) -> tuple[str, ...]:
        """The ids this call passes by position; what ``partial`` bound before is not its doing.

        ``weight_loader(param, weight, name, *ids)`` without a keyword for them is such a call.
        """
        before = signature.positional_ids(self.bound)
        ids = tuple(i for i in signature.positional_ids(len(self.plain)) if i not in before)
        if self.has_star and len(self.plain) == 3 and not self.has_double_star:
            ids = tuple(name for name in IDS if name not in self.names)
        return ids

    def verdict(self, kind: OriginKind, signature: Signature) -> CallVerdict:
        """The verdict on these arguments to a loader of this kind."""
        ids = self.positional_ids(signature)
        if kind in (OriginKind.ORIGINAL, OriginKind.LAYER):
            return CallVerdict.WRAPPED
        if ids and (self._open or signature.binds(len(self.positional), self.names)):
            return CallVerdict.POSITIONAL if kind is OriginKind.PARAMETER else CallVerdict.UNDECIDED
        if set(IDS) <= set(self.names):
            return CallVerdict.NULL if self._null_ids() else CallVerdict.KEYWORD
        if self._open or signature.positional_ids(self.bound):
            return CallVerdict.FORWARDED
        extra = len(self.positional) + len(self.names) - 2
        if extra == 1 and len(self.positional) == 3:
            return CallVerdict.LINEAR
        return CallVerdict.OTHER if extra > 0 else CallVerdict.PLAIN

    @property
    def _open(self) -> bool:
        return self.binding or self.has_star or self.has_double_star

    def _null_ids(self) -> bool:
        return any(
            k.arg in IDS and isinstance(k.value, ast.Constant) and k.value.value is None
            for k in self.keywords
        )

    def hook_args(self) -> tuple[str, ...]:
        """What the hook gets by position after parameter and weight."""
        skipped = len(_BEFORE_HOOK) - len(set(_BEFORE_HOOK) & set(self.names))
        return tuple(ast.unparse(a) for a in self.positional[skipped:])

    def hook_kwargs(self) -> dict[str, str]:
        """What the hook gets by keyword."""
        return {
            keyword.arg or f"**{ast.unparse(keyword.value)}": ast.unparse(keyword.value)
            for keyword in self.keywords
            if keyword.arg not in _BEFORE_HOOK
        }

    def corrected(self, call: ast.Call, signature: Signature) -> str:
        """The call as it should be: all from the first id on by keyword.

        Empty where a star hides which value is which id.
        """
        if self.has_star:
            return ""
        first = min(signature.parameters.index(name) for name in IDS)
        names = signature.parameters[first:]
        moved = [
            ast.keyword(arg=n, value=v)
            for n, v in zip(names, self.positional[first:], strict=False)
        ]
        right = deepcopy(call)
        right.args = [*self.head, *self.positional[self.bound : max(first, self.bound)]]
        right.keywords = [*moved, *call.keywords]
        return ast.unparse(right)


def _spread(arguments: list[ast.expr]) -> list[ast.expr]:
    """``*(a, b)`` is ``a, b``."""
    out: list[ast.expr] = []
    for argument in arguments:
        literal = isinstance(argument, ast.Starred) and isinstance(
            argument.value, ast.Tuple | ast.List
        )
        out += argument.value.elts if literal else [argument]  # type: ignore[attr-defined]
    return out


def loader_call(
    place: tuple[str, str],
    call: ast.Call,
    arguments: Arguments,
    kind: OriginKind,
    signature: Signature,
) -> SourceCall:
    """The call, judged; ``place`` is its file and function."""
    verdict = arguments.verdict(kind, signature)
    wrong = verdict in (CallVerdict.POSITIONAL, CallVerdict.UNDECIDED)
    return SourceCall(
        file=place[0],
        line=call.lineno,
        column=call.col_offset + 1,
        end_line=call.end_lineno or call.lineno,
        end_column=(call.end_col_offset or call.col_offset) + 1,
        function=place[1],
        verdict=verdict,
        call=ast.unparse(call),
        hook_args=arguments.hook_args(),
        hook_kwargs=arguments.hook_kwargs(),
        positional_ids=arguments.positional_ids(signature) if wrong else (),
        corrected=arguments.corrected(call, signature) if wrong else "",
    )
