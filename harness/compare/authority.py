"""Who settles which bits are right: the checkpoint's own weights, or digests made of them once.

Structure (names, shapes, layouts) always comes from a checkpoint's headers. What its matrices and
tensors are to hold is asked of an authority, in digests (:mod:`harness.devices.digest`); where it
has none to give, the bits are read, and it is asked whether they are the right ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from harness.devices.digest import Words
from harness.families.experts import ExpertKey

#: An expert's matrix, or the name of any other tensor.
What = ExpertKey | str


class Authority(ABC):
    """What settles which bits are right.

    Attributes:
        finds: whether :meth:`find` knows of every matrix and tensor.
    """

    finds: bool = False

    @abstractmethod
    def digest(self, what: What, dtype: str) -> Words | None:
        """What ``what`` digests to, uint32 [4], as a parameter of ``dtype`` is to hold it.

        Returns:
            None where its bits have to be read.
        """

    @abstractmethod
    def vouches(self, what: What, dtype: str, made: Callable[[], Words]) -> bool:
        """Whether bits that were read of a checkpoint are the right ones.

        Args:
            what: they are of.
            dtype: they are in.
            made: gives their digest, which may mean reading them.

        Raises:
            BadInput: ``made`` could not read them.
        """

    @abstractmethod
    def find(self, words: Words, dtype: str) -> What | None:
        """What else digests to ``words`` in ``dtype``, where that is known without reading."""

    def had_to_read(self, tensor: str) -> None:
        """Note that a tensor of the checkpoint was read, since digests did not do."""
        return


class Weights(Authority):
    """The checkpoint's own weights: they are read, and right by definition."""

    def digest(self, what: What, dtype: str) -> Words | None:
        """None: there are bits to compare with."""
        return None

    def vouches(self, what: What, dtype: str, made: Callable[[], Words]) -> bool:
        """Always, and nothing is read for it."""
        return True

    def find(self, words: Words, dtype: str) -> What | None:
        """None: that takes reading."""
        return None


WEIGHTS = Weights()


class DigestedWeights(Weights):
    """The checkpoint's own weights, some or all of which were read and digested already.

    Args:
        known: digests by matrix or tensor, and by the type of the parameter.
    """

    def __init__(self, known: Mapping[tuple[What, str], Words]) -> None:
        self._known = known

    def digest(self, what: What, dtype: str) -> Words | None:
        """See :meth:`Authority.digest`; None of what was not read yet."""
        return self._known.get((what, dtype))

    def by_type(self) -> dict[What, dict[str, Words]]:
        """All digests, by matrix or tensor, then by type."""
        found: dict[What, dict[str, Words]] = {}
        for (what, dtype), words in self._known.items():
            found.setdefault(what, {})[dtype] = words
        return found


def as_text(words: Words) -> str:
    """A digest as reports have it: 32 hexadecimal digits, lane by lane."""
    return "".join(f"{int(word):08x}" for word in words)
