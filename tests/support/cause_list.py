"""The list of all causes as a page has it, of what their files declare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.explain import digest_only, load_failure, metadata, quantised
from harness.explain.causes import Cause
from harness.explain.evidence import Need
from harness.explain.rules import RULES, UNEXPLAINED, unexplained
from tests.support.damages import DAMAGES, Damage

#: Of causes that no rule names: who does.
_OTHERS = {
    metadata: "Presence, shape, place, padding, delivery or a scale is wrong, whatever the bits.",
    digest_only: "It differs from a digest file, so the right bits are not at hand.",
    quantised: "Codes and scales of a quantised matrix, read this way, give what the device holds.",
    load_failure: "The load failed: its ledger, or upstream's error, says where.",
}

QUANTISED = "tests/compare/test_quantised_experts.py"
#: Causes that no damage of bits has: the test that plants what they are of.
ELSEWHERE: dict[Cause, str] = {
    Cause.ARGUMENT_CONTRACT: "tests/explain/test_deliveries.py",
    Cause.BIAS_LOST: "tests/explain/test_lost_bias.py",
    Cause.CODE: QUANTISED,
    Cause.CONFIG_LACKS_KEY: "tests/explain/test_load_failure.py",
    Cause.DELIVERED_LATE: "tests/explain/test_deliveries.py",
    Cause.DELIVERED_TWICE: "tests/explain/test_load_failure.py",
    Cause.DEQUANTISED_TWICE: QUANTISED,
    Cause.DENSE_LAYER: "tests/explain/test_dense_layer.py",
    Cause.DRAFT_LAYER_OFF_BY_ONE: "tests/explain/test_draft_layer.py",
    Cause.FILE_DIFFERS: "tests/compare/test_by_digest_file.py",
    Cause.FUSED_WITHOUT_SHARD: "tests/explain/test_load_failure.py",
    Cause.GROUP_ORDER: QUANTISED,
    Cause.HEADS_REPEATED_WRONGLY: "tests/support/parameter_faults.py",
    Cause.HOOKED_AS_EXPERT: "tests/explain/test_load_failure.py",
    Cause.NIBBLES_EXCHANGED: QUANTISED,
    Cause.NOT_DELIVERED: "tests/explain/test_deliveries.py",
    Cause.NOT_STREAMED: "tests/explain/test_deliveries.py",
    Cause.PARAMETER_UNWRITTEN: "tests/explain/test_deliveries.py",
    Cause.SCALE_LOST: QUANTISED,
    Cause.SCALE_OF_ANOTHER: QUANTISED,
    Cause.STORAGE_MISREAD: "tests/explain/test_load_failure.py",
    Cause.STRUCTURE: "tests/compare/test_parameter_comparison.py",
    Cause.TENSOR_UNREAD: "tests/explain/test_lost_bias.py",
    Cause.UNACCOUNTED: "tests/compare/test_parameter_comparison.py",
    Cause.UNCHECKED: "tests/report/test_merge.py",
    Cause.WRONG_GRID: QUANTISED,
    Cause.ZERO_POINT: QUANTISED,
}


def listed(damages: Sequence[Damage] = DAMAGES) -> str:
    """A row a cause: what is seen, in the words of its rules; what they need; the next step."""
    head = "| cause | what is seen | needs | next step | planted in |\n" + "| --- " * 5 + "|\n"
    rows = (
        f"| `{c}` | {seen(c)} | {needs(c)} | {c.next_step} | {planted(c, damages)} |\n"
        for c in in_order()
    )
    return head + "".join(rows)


def planted(cause: Cause, damages: Sequence[Damage]) -> str:
    """Where a test plants what it is of: the table above, or a file."""
    if any(damage.cause is cause for damage in damages):
        return "the table"
    return f"`{ELSEWHERE[cause]}`"


def in_order() -> list[Cause]:
    """As rules are tried, then all others by name."""
    ruled = [cause for rule in RULES for cause in rule.causes]
    return list(dict.fromkeys([*ruled, *sorted(Cause)]))


def seen(cause: Cause) -> str:
    """The sentences of the rules that name it; else where it comes from."""
    if cause is UNEXPLAINED:
        return opening(unexplained.__doc__)
    told = [opening(rule.look.__doc__) for rule in RULES if cause in rule.causes]
    told += [words for file, words in _OTHERS.items() if has(vars(file).values(), cause)]
    return " ".join(dict.fromkeys(told))


def has(values: Iterable[object], cause: Cause) -> bool:
    return any(value is cause for value in values)


def opening(text: str | None) -> str:
    assert text, "a rule says what it sees"
    return text.split("\n\n")[0].replace("|", "\\|").strip()


def needs(cause: Cause) -> str:
    """What a slice must have, by the reason that stands in the table of damages without."""
    rules = [rule.needs for rule in RULES if cause in rule.causes]
    common = frozenset.intersection(*rules) if rules else frozenset()
    return ", ".join(n.name.lower().replace("_", " ") for n in Need if n in common) or "nothing"
