"""Writes digest files: reads a checkpoint once, so that later verifications need not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TextIO

from harness.base import progress
from harness.base.writing import deliver, require_writable
from harness.compare.digest_file import DigestFile
from harness.compare.digesting import digests_of
from harness.families.family import Storage
from harness.families.known_families import bring
from harness.families.model_checkpoint import ModelCheckpoint
from harness.verification.digest_cache import Keeping


class Digested(NamedTuple):
    """What was made: the digests, bytes of their file, and what the cache has to say of it."""

    digests: DigestFile
    size: int
    cache: str


def write_digests(
    checkpoint: str | os.PathLike[str],
    output: Path | None,
    *,
    storage: Storage | None = None,
    families: Iterable[str | os.PathLike[str]] = (),
    cache: bool = False,
    hashed: bool = False,
    terminal: TextIO | None = None,
) -> Digested:
    """Read ``checkpoint`` once and write its digests to ``output``, which is replaced as a whole.

    Args:
        checkpoint: a directory, ``s3://…``, ``gs://…`` or a hub id.
        output: the digest file (:mod:`harness.compare.digest_file`), if one is wanted.
        storage: how experts are stored, where names and shapes allow several readings.
        families: Python files that describe families; they are run.
        cache: keep them for verifications to come (:mod:`harness.verification.digest_cache`).
        hashed: keep them by the files' hashes, which reads those of a directory once more.
        terminal: where to show progress, if that is a terminal.

    Raises:
        BadInput: the checkpoint cannot be used, changed meanwhile, or is an FP8 release; or
            nothing can be written to ``output``.
        NotWritten: it could not be written in the end.
    """
    require_writable(output)
    brought = bring(families)
    opened = ModelCheckpoint(checkpoint, storage)
    keeping = Keeping(opened, brought, hashed=hashed) if cache else None
    with progress.shown(terminal) as watch:
        made = digests_of(opened, progress.Meter(watch=watch))
    content = made.encoded()
    if output is not None:
        deliver(output, content)
    if keeping is not None:
        keeping.keep(made)
    return Digested(made, len(content), keeping.said if keeping else "")
