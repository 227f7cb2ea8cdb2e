"""Writes digest files: reads a checkpoint once, so that later verifications need not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from harness.base import progress
from harness.base.writing import deliver, require_writable
from harness.compare.digest_file import DigestFile
from harness.compare.digesting import digests_of
from harness.families.family import Storage
from harness.families.known_families import bring
from harness.families.model_checkpoint import ModelCheckpoint


def write_digests(
    checkpoint: str | os.PathLike[str],
    output: Path,
    *,
    storage: Storage | None = None,
    families: Iterable[str | os.PathLike[str]] = (),
    terminal: TextIO | None = None,
) -> tuple[DigestFile, int]:
    """Read ``checkpoint`` once and write its digests to ``output``, which is replaced as a whole.

    Args:
        checkpoint: a directory, ``s3://…``, ``gs://…`` or a hub id.
        output: the digest file (:mod:`harness.compare.digest_file`).
        storage: how experts are stored, where names and shapes allow several readings.
        families: Python files that describe families; they are run.
        terminal: where to show progress: one line on a terminal, and lines now and then in a log.

    Returns:
        What was written, and how many bytes that is.

    Raises:
        BadInput: the checkpoint cannot be used, changed meanwhile, or is an FP8 release; or
            nothing can be written to ``output``.
        NotWritten: it could not be written in the end.
    """
    require_writable(output)
    bring(families)
    opened = ModelCheckpoint(checkpoint, storage)
    with progress.shown(terminal) as watch:
        made = digests_of(opened, progress.Meter(watch=watch))
    content = made.encoded()
    deliver(output, content)
    return made, len(content)
