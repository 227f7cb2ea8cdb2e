"""The list of all causes as a page has it, of what their files declare."""

from __future__ import annotations

from collections.abc import Iterable

from harness.explain import load_failure, metadata
from harness.explain.causes import Cause
from harness.explain.evidence import Need
from harness.explain.rules import RULES, UNEXPLAINED, unexplained

#: Of causes that no rule names: who does.
_OTHERS = {
    metadata: "No bits are looked at: presence, shape, place, padding, delivery or scale is wrong.",
    load_failure: "A load failed: its ledger says where.",
}


def listed() -> str:
    """A row a cause: what is seen, in the words of its rules; what they need; the next step."""
    head = "| cause | what is seen | needs | next step |\n| --- | --- | --- | --- |\n"
    rows = (f"| `{c}` | {seen(c)} | {needs(c)} | {c.next_step} |\n" for c in in_order())
    return head + "".join(rows)


def in_order() -> list[Cause]:
    """As rules are tried, then all others by name."""
    ruled = [cause for rule in RULES for cause in rule.causes]
    return list(dict.fromkeys([*ruled, *sorted(Cause)]))


def seen(cause: Cause) -> str:
    """The sentences of the rules that name it; else where it comes from."""
    if cause is UNEXPLAINED:
        return first_sentence(unexplained.__doc__)
    told = [first_sentence(rule.look.__doc__) for rule in RULES if cause in rule.causes]
    told += [words for file, words in _OTHERS.items() if has(vars(file).values(), cause)]
    return " ".join(dict.fromkeys(told))


def has(values: Iterable[object], cause: Cause) -> bool:
    return any(value is cause for value in values)


def first_sentence(text: str | None) -> str:
    assert text, "a rule says what it sees"
    return text.split("\n\n")[0].replace("|", "\\|").strip()


def needs(cause: Cause) -> str:
    """What a slice must have, by the reason that stands in the table of damages without."""
    rules = [rule.needs for rule in RULES if cause in rule.causes]
    common = frozenset.intersection(*rules) if rules else frozenset()
    return ", ".join(n.name.lower().replace("_", " ") for n in Need if n in common) or "nothing"
