"""What is compared of one expert, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.base.bits import Bits
from harness.devices.expert_layout import Padding
from harness.families.experts import ExpertKey


class Gap(NamedTuple):
    """Padding of one expert."""

    expert: int
    padding: Padding


class Check(NamedTuple):
    """One thing to compare: arrays side by side, or what is known of it without."""

    what: ExpertKey | Gap
    nbytes: int
    pairs: Sequence[tuple[Bits, Bits]] = ()
    equal: bool = True


class Checked(NamedTuple):
    """What became of it."""

    what: ExpertKey | Gap
    nbytes: int
    equal: bool
