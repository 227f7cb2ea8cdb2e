"""A copy of the installed vLLM with the fix of #42521, #42671 and #42716 taken back.

The installed package is never edited: its Python is copied, and in the copy the call sites pass
shard_id and expert_id positionally again.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.load.overlay import Overlay


@dataclass(frozen=True)
class CallSite:
    """A file with a fixed call, and the call's arguments by keyword and as they were before."""

    file: str
    fixed: str
    reverted: str


_MODEL_CALL = (
    r"name,(\s+)shard_id=shard_id,(\s+)expert_id=expert_id,",
    r"name,\1shard_id,\2expert_id,",
)
_ROUTED_CALL = (
    r"param=param,(\s+)loaded_weight=loaded_expert,\s+weight_name=weight_name,\s+"
    r"shard_id=shard_id,\s+expert_id=expert_id,",
    r"param,\1loaded_expert,\1weight_name,\1shard_id,\1expert_id,",
)

#: Up to 0.25 each model loads its fused experts, from 0.26 on the layer does.
CALL_SITES: dict[str, tuple[CallSite, ...]] = {
    "load_fused_expert_weights": tuple(
        CallSite(f"model_executor/models/{model}.py", *_MODEL_CALL)
        for model in ("qwen3_vl_moe", "qwen3_5", "qwen3_5_mtp")
    ),
    "routed_experts": (
        CallSite("model_executor/layers/fused_moe/routed_experts.py", *_ROUTED_CALL),
    ),
}


def call_sites(package: Path) -> tuple[CallSite, ...]:
    """The call sites of this vLLM."""
    (routed,) = CALL_SITES["routed_experts"]
    if (package / routed.file).exists():
        return (routed,)
    return CALL_SITES["load_fused_expert_weights"]


def installed_vllm() -> Path:
    """Where the installed package is, found without importing it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def revert_fix(directory: Path) -> Overlay:
    """Copy the installed vLLM into ``directory`` and take the fix back there."""
    package = directory / "vllm"
    compiled = shutil.ignore_patterns("*.so")
    shutil.copytree(installed_vllm(), package, ignore=compiled)
    for site in call_sites(package):
        file = package / site.file
        text, count = re.subn(site.fixed, site.reverted, file.read_text())
        assert count == 1, f"{count} calls in {site.file} look like the fixed one"
        file.write_text(text)
    return Overlay({"vllm": package})
