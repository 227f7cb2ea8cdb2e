"""Which models upstream serves by its own JAX models, and faults in real loads of those."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from packaging.version import Version

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.families.known_families import families
from harness.load.process import LoadProcess, LoadProcesses
from harness.load.stack import installed_versions
from harness.load.target import Implementation, Target
from harness.load.targets.known_targets import served_by
from harness.report.report import Report, Status, believed
from harness.synthetic.writer import write_checkpoint
from harness.verification.job import VerifyRequest
from harness.verification.verify import verify
from tests.support.own_faults import OWN_FAULTS, with_layouts_pinned, with_pinned_bytes_misread

RECIPES = [family.recipes[0].name for family in families() if family.own_names is not None]
#: Earlier ones fail on Gemma-4's configuration, see ``heads-of-layers-asked-of-all``.
described = pytest.mark.skipif(
    Version(installed_versions()["vllm"]) < Version("0.32"),
    reason="this release has no JAX model that is described and loads",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family whose JAX model is described."""
    base = tmp_path_factory.mktemp("own")
    return {name: write_checkpoint(name, base / name, tied=True).path for name in RECIPES}


@pytest.fixture
def chosen(target: Target) -> Target:
    """The target with upstream's choice, which is its own model for these."""
    return served_by(target, Implementation.AUTO)


def verified(fault: str, path: Path, process: LoadProcess, target: Target) -> Report:
    """The report of a load with a fault of the table planted."""
    request = VerifyRequest(
        checkpoint=str(path), reference=str(path), target=target, parts=(Part.DECODER,)
    )
    argument = msgspec.json.encode((request, fault))
    answer = process.run(
        "tests.support.own_faults:verify_with_own_fault", argument, target, timeout=300
    )
    return believed(msgspec.json.decode(answer, type=Report), fault)


@described
@pytest.mark.parametrize("fault", OWN_FAULTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_fault(
    recipe: str, fault: str, own: dict[str, Path], load_process: LoadProcess, chosen: Target
) -> None:
    report = verified(fault, own[recipe], load_process, chosen)
    planted = OWN_FAULTS[fault]
    (diagnosis,) = report.diagnoses
    assert diagnosis.cause is planted.cause
    assert diagnosis.summary.startswith(planted.says)
    if planted.cause is Cause.PARAMETER_UNWRITTEN:
        assert report.status is Status.LOAD_FAILED
    else:
        assert report.status is Status.DIFFERENT
        assert report.environment.implementations == {Part.DECODER: Implementation.JAX}


@described
@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_of_one_layout_read_as_those_of_another(
    recipe: str, own: dict[str, Path], tmp_path: Path, chosen: Target
) -> None:
    """What became of all experts on TPUs before tpu-inference #2683 (#2665)."""
    with LoadProcesses(with_pinned_bytes_misread(tmp_path)) as processes:
        report = verify(own[recipe], chosen, processes=processes)
    assert report.status is Status.DIFFERENT
    assert report.environment.implementations == {Part.DECODER: Implementation.JAX}
    assert {diagnosis.cause for diagnosis in report.diagnoses} == {Cause.TRANSPOSED}
    assert [diagnosis.summary for diagnosis in report.diagnoses] == [
        text
        for layer in (0, 1)
        for text in (
            f"gate and up as one tensor are transposed in decoder layer {layer}, experts 0-7",
            f"down_proj of decoder layer {layer} is transposed, experts 0-7",
        )
    ]


@described
@pytest.mark.parametrize("recipe", RECIPES)
def test_pinning_the_layout_that_cpu_devices_have_changes_nothing(
    recipe: str, own: dict[str, Path], tmp_path: Path, chosen: Target
) -> None:
    """The change of #2683, undone to the letter, shows on devices whose default is another."""
    with LoadProcesses(with_layouts_pinned(tmp_path)) as processes:
        report = verify(own[recipe], chosen, processes=processes)
    assert report.environment.overlay
    assert report.status is Status.EQUAL
    assert report.experts_compared == 16


#: Families that keep going through vLLM's implementation where upstream chooses. Of the first it
#: has no model of its own, of the second it prefers vLLM's.
BY_VLLM = ("qwen3-vl-moe", "qwen3.5-moe")


@pytest.mark.parametrize("recipe", BY_VLLM)
def test_upstream_chooses_vllms(
    recipe: str, tiny_checkpoints: dict[str, Path], load_processes: LoadProcesses, chosen: Target
) -> None:
    report = verify(tiny_checkpoints[recipe], chosen, processes=load_processes)
    assert chosen.impl is Implementation.AUTO
    assert report.failure is None
    assert report.experts_compared == 16
    assert report.environment.implementations == {Part.DECODER: Implementation.VLLM}
