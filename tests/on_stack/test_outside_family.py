"""A family that a file outside the project describes is loaded and compared like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.explain.causes import Cause
from harness.families import registry
from harness.families.model import ModelCheckpoint
from harness.load.process import LoadProcesses
from harness.load.target import Target
from harness.report.report import Status
from harness.verification.verify import verify
from tests.support.flips import with_one_byte_flipped

#: Qwen3-MoE under another name; vLLM knows its architecture by the alias it is registered under.
FAMILY = """
from dataclasses import replace

from harness.families.family import Recipe
from harness.families.qwen3_moe import FAMILY as OTHER

FAMILY = replace(
    OTHER, name="outside", architecture="{architecture}",
    recipes=(Recipe("outside", "A family from outside"),),
)
"""
