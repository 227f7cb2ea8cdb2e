"""A target that one file of another package brings: it runs scenarios like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.base.errors import BadInput
from harness.compare.difference import BitsDiffer
from harness.explain.causes import Cause
from harness.load.targets.known_targets import target_named, targets
from harness.report.report import Session, Status
from harness.verification.verify import verify
from tests.support.flips import FLIPS, with_one_byte_flipped
from tests.support.nested import NESTED_PYTEST, nested_environment

ROOT = Path(__file__).parents[2]


def register(site: Path, entry: str) -> None:
    """What an installer leaves of a package with an entry point for a target."""
    installed = site / "toy-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[harness.targets]\ntoy = {entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place packages are imported from, here and in loading processes."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    targets.cache_clear()
    yield path
    targets.cache_clear()


@pytest.fixture
def toy(site: Path) -> None:
    register(site, "tests.support.toy_target:TARGET")


@pytest.mark.usefixtures("toy")
def test_a_target_of_another_package_runs_a_scenario(site: Path, tmp_path: Path) -> None:
    asked = ["scenarios", "-k", "vl-experts-whole", "--target", "toy", "--reports", str(tmp_path)]
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, *NESTED_PYTEST, *asked],
        cwd=ROOT,
        env=nested_environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    (row,) = msgspec.json.decode((tmp_path / "session.json").read_bytes(), type=Session).rows
    assert (row.scenario, row.report.status) == ("vl-experts-whole", Status.EQUAL)
    assert row.report.environment.target == "toy, 2 devices, expert"
    assert row.report.environment.mesh == ("cpu:2", "cpu:1")


@pytest.mark.usefixtures("toy")
def test_a_fault_is_found_on_its_devices(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """The first shard is the last device's."""
    tensor, element, key, index = FLIPS["qwen3-vl-moe"]
    published = tiny_checkpoints["qwen3-vl-moe"]
    spoiled = with_one_byte_flipped(published, tmp_path / "spoiled", tensor, element)
    report = verify(published, target_named("toy", 4), reference=spoiled)
    (difference,) = report.differences
    assert isinstance(difference, BitsDiffer)
    assert (difference.key, difference.index, difference.count) == (key, index, 1)
    assert difference.shard is not None
    assert difference.device_name == f"cpu:{4 - difference.shard}"
    assert [diagnosis.cause for diagnosis in report.diagnoses] == [Cause.BIT_FLIP]
    assert "--target toy --devices 4" in report.repeat


@pytest.mark.usefixtures("toy")
def test_the_command_line_knows_it() -> None:
    assert "target    toy: would run: toy, 2 devices" in CliRunner().invoke(main, ["doctor"]).stdout
    refused = CliRunner().invoke(main, ["verify", "/nowhere", "--target", "nope"])
    assert (refused.exit_code, "toy" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "entry", ["harness.load.targets.emulated:TARGET", "harness.load.targets.emulated:Emulated"],
    ids=["a name that is taken", "a class"],
)  # fmt: skip
def test_what_is_no_target_is_refused(site: Path, entry: str) -> None:
    register(site, entry)
    with pytest.raises(BadInput, match="not a target, or a name that is taken") as raised:
        targets()
    assert raised.value.where == entry
