"""The loading processes of a session: one for each name of a target, and each host played here."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from harness.load import LoadProcess
from harness.overlay import Overlay
from harness.target import Target


class LoadProcesses:
    """The loading processes of a session, started when asked for.

    One for each name of a target and each host that this machine plays.

    Args:
        overlay: packages to import instead of the installed ones.
    """

    def __init__(self, overlay: Overlay | None = None) -> None:
        self.overlay = overlay or Overlay()
        self._processes: dict[tuple[str, int], LoadProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def of(self, target: Target) -> LoadProcess:
        """The process for ``target`` and its host; of a further host it is forked from the first's.

        The first host's must be idle.
        """
        key, first = (target.name, target.host), self._processes.get((target.name, 0))
        if key not in self._processes:
            self._processes[key] = LoadProcess(target, self.overlay)
        if first and target.host:
            self._processes[key].start_from(first)
        return self._processes[key]

    def close(self) -> None:
        """End all of them."""
        while self._processes:
            self._processes.popitem()[1].close()
