"""What devices are asked about arrays they hold: words of digests, and whether padding is zero.

Questions are collected and asked at once: a device runs one program for all it is asked together,
and gives one array of words back. Nothing is waited for before an answer is looked at, so that
devices work while the host reads the reference. This file knows no library that runs on devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from harness.devices.digest import LANES, Words
from harness.devices.expert_layout import Span


@dataclass(frozen=True)
class Rectangle:
    """A part of a shard [E, rows, columns] that holds whole hidden axes of one projection.

    Attributes:
        rows: rows of the shard.
        columns: columns of the shard.
        hidden_axis: 0 where rows are hidden features, 1 where columns are.
        first: the first intermediate feature it holds.
        width: F, all intermediate features of the matrix.
    """

    rows: Span
    columns: Span
    hidden_axis: int
    first: int
    width: int


@dataclass(frozen=True)
class Shares:
    """What rectangles add to their experts' digests, uint32 [rectangles, E, 4].

    Of an array [E, …, columns], of 1 to 4 bytes an element; axes between the first and the last
    count as one, rows.
    """

    experts: int
    rectangles: tuple[Rectangle, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The answer's."""
        return len(self.rectangles), self.experts, LANES


@dataclass(frozen=True)
class AnySet:
    """Whether any bit of ``(rows, columns)`` of each expert is set, 0 or 1 [rectangles, E]."""

    experts: int
    rectangles: tuple[tuple[Span, Span], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The answer's."""
        return len(self.rectangles), self.experts


@dataclass(frozen=True)
class FeatureSums:
    """The digest's first level, feature by feature, uint32 [4, features].

    Attributes:
        sizes: of the array, seen as a matrix.
        features_axis: which of the two its features run along; along the other they are summed up.
        first: of a feature's words, the first that the array has.
        exchanged: see :class:`Askable`.
    """

    sizes: tuple[int, int]
    features_axis: int
    first: int
    exchanged: tuple[int, ...] = ()

    def matrix(self, array: Any) -> Any:
        """The array as that matrix."""
        if self.exchanged:
            array = array.reshape(self.exchanged).swapaxes(0, 1)
        return array.reshape(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The answer's."""
        return LANES, self.sizes[self.features_axis]


Question = Shares | AnySet | FeatureSums


class Programs(ABC):
    """What answers questions about arrays, where they lie."""

    @abstractmethod
    def start(self, asked: Sequence[tuple[Any, Question]]) -> Callable[[], Words]:
        """Have one device answer.

        Args:
            asked: arrays of that device, and what is to be known of each.

        Returns:
            What waits for it and gives all answers, one after the other, as one array of words.
        """


@dataclass(frozen=True)
class Askable:
    """An array on one device, as what answers questions about it takes it.

    Attributes:
        array: the array; where axes of it count as one, still as it is.
        programs: what answers.
        exchanged: a shape of it, if it is seen with that shape's first two axes exchanged.
    """

    array: Any
    programs: Programs
    exchanged: tuple[int, ...] = ()


class DeviceAnswer:
    """The answer to a question, once it is looked at."""

    def __init__(self, question: Question, words: Callable[[], Words], first: int) -> None:
        self._question = question
        self._words = words
        self._first = first

    @cached_property
    def words(self) -> Words:
        """In the question's shape; waits for the device, the first time."""
        shape = self._question.shape
        flat = self._words()[self._first : self._first + prod(shape)]
        return flat.reshape(shape)


def ask(questions: Iterable[tuple[str, Askable, Question]]) -> list[DeviceAnswer]:
    """Ask devices, each all at once; their answers in the order of the questions.

    Args:
        questions: device, an array it holds, and what is to be known of it.
    """
    of_device: dict[str, list[tuple[int, Askable, Question]]] = {}
    count = 0
    for number, (device, held, question) in enumerate(questions):
        of_device.setdefault(device, []).append((number, held, question))
        count = number + 1
    found: dict[int, DeviceAnswer] = {}
    for asked in of_device.values():
        words = _once(asked[0][1].programs.start([(held.array, q) for _, held, q in asked]))
        first = 0
        for number, _, question in asked:
            found[number] = DeviceAnswer(question, words, first)
            first += prod(question.shape)
    return [found[number] for number in range(count)]


def _once(words: Callable[[], Words]) -> Callable[[], Words]:
    """The same, fetched once."""
    kept: list[Words] = []

    def fetched() -> Words:
        if not kept:
            kept.append(np.asarray(words()))
        return kept[0]

    return fetched
