"""What releases of vLLM take a storage of experts for, where that is another one.

A release that guesses, or that is told by a model's class how fused tensors lie, reads them so
whatever they are: a matrix transposed, refused by an error of sizes that names no tensor, or cut
to fit. What is said here is read from its source, and known before the load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from harness.families.storage import Storage


@dataclass(frozen=True)
class Misread:
    """A storage that some releases do not read as it is.

    Attributes:
        storage: of the checkpoint.
        taken_for: what it is read as.
        releases: of vLLM, as ``>=0.32``.
        upstream: where that is decided: file and what it says.
    """

    storage: Storage
    taken_for: Storage
    releases: str
    upstream: str

    def is_in(self, version: str) -> bool:
        """Whether a version of vLLM is one of the releases; a version that is none is not."""
        try:
            found = Version(version).base_version
        except InvalidVersion:
            return False
        return SpecifierSet(self.releases).contains(found)


_ROUTED = "vllm/model_executor/layers/fused_moe/routed_experts.py"

#: The road of most families: from 0.32 on, [outputs, inputs] unless the model's class says so.
COMMON_ROAD = (
    Misread(
        Storage.FUSED_TRANSPOSED, Storage.FUSED, ">=0.32",
        f"{_ROUTED}, _orient_fused_weight: is_fused_checkpoint_transposed is False unless a "
        "model's class sets it",
    ),
)  # fmt: skip
#: The same where the model's class sets it.
TRANSPOSED_ROAD = (
    Misread(
        Storage.FUSED, Storage.FUSED_TRANSPOSED, ">=0.32",
        f"{_ROUTED}, _orient_fused_weight: the model's class sets is_fused_checkpoint_transposed",
    ),
)  # fmt: skip


def misread_by(
    known: tuple[Misread, ...], storage: Storage, versions: Mapping[str, str]
) -> Misread | None:
    """What a stack takes a storage for; None where it reads it, or nothing is known.

    Args:
        known: of the family.
        storage: of the checkpoint.
        versions: of the stack's packages, by name.
    """
    version = versions.get("vllm", "")
    fitting = (row for row in known if row.storage is storage and row.is_in(version))
    return next(fitting, None)
