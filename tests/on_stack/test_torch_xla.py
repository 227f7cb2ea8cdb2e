"""The torch-xla target: the same checkpoint, the same comparison, another way to the devices."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from harness.base.errors import TargetUnavailable
from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.process import LoadProcesses
from harness.load.target import Parallelism, Target
from harness.load.targets.known_targets import target_named
from harness.report.message import failure_text
from harness.report.report import Report, Status
from harness.verification.job import VerifyRequest
from harness.verification.verify import verify
from tests.support.differences import elements
from tests.support.flips import FLIPS, with_one_byte_flipped
from tests.support.hooks import Hook, job_of


def available(*mesh: int | Parallelism) -> Target:
    try:
        return target_named("torch-xla", *mesh)  # type: ignore[arg-type]
    except TargetUnavailable as error:
        pytest.skip(str(error))


def load(path: Path, target: Target, processes: LoadProcesses, **options: object) -> Report:
    return verify(path, target, processes=processes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("parallelism", [Parallelism.TENSOR, Parallelism.EXPERT])
@pytest.mark.parametrize("recipe", sorted(FLIPS))
def test_one_byte_of_one_expert(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    recipe: str,
    load_processes: LoadProcesses,
    parallelism: Parallelism,
) -> None:
    tensor, element, key, index = FLIPS[recipe]
    checkpoint = tiny_checkpoints[recipe]
    spoiled = with_one_byte_flipped(checkpoint, tmp_path / "spoiled", tensor, element)
    report = load(checkpoint, available(4, parallelism), load_processes, reference=spoiled)
    (difference,) = report.differences
    assert (difference.key, elements(difference).index, elements(difference).count) == (
        key,
        index,
        1,
    )
    assert [diagnosis.cause for diagnosis in report.diagnoses] == [Cause.BIT_FLIP]
    assert difference.device_name.startswith("xla:")
    repeated = failure_text(report).rpartition("repeat")[2]
    assert "--target torch-xla" in repeated
    assert ("--parallelism expert" in repeated) == (parallelism is Parallelism.EXPERT)


@pytest.mark.parametrize("recipe", sorted(FLIPS))
def test_a_single_device(
    tiny_checkpoints: dict[str, Path], load_processes: LoadProcesses, recipe: str
) -> None:
    report = load(tiny_checkpoints[recipe], available(1), load_processes)
    assert (report.status, report.environment.mesh) == (Status.EQUAL, ("xla:0",))


@pytest.mark.parametrize("parallelism", [Parallelism.TENSOR, Parallelism.EXPERT])
def test_planted_faults_are_named(
    tiny_checkpoints: dict[str, Path], load_processes: LoadProcesses, parallelism: Parallelism
) -> None:
    target = available(4, parallelism)
    path = str(tiny_checkpoints["qwen3-vl-moe"])
    request = VerifyRequest(checkpoint=path, reference=path, target=target, parts=(Part.DECODER,))
    answer = load_processes.of(target).run(
        "tests.support.jobs:plant", msgspec.json.encode(request), target, timeout=300
    )
    causes = {fault: causes for fault, (causes, _) in json.loads(answer).items()}
    placed = causes.pop("replicated by torch_xla")
    assert placed[0] == Cause.REPLICATED
    expected = {"none": [], "sign of zero lost": [Cause.SIGN_OF_ZERO]}
    if parallelism is Parallelism.TENSOR:
        expected |= {"experts swapped": [Cause.EXPERTS_EXCHANGED], "zeroed": [Cause.ZEROS]}
    assert causes == expected


def test_both_hooks_load_what_an_installed_vllm_delivers(
    tiny_checkpoints: dict[str, Path], load_processes: LoadProcesses
) -> None:
    """Hooks of ours wrap vLLM's own loaders here too; the installed vLLM names its ids."""
    for hook in Hook:
        ours = load_processes.doing(job_of(hook))
        report = load(tiny_checkpoints["qwen3-vl-moe"], available(4), ours)
        assert report.status is Status.EQUAL


def test_too_few_devices_are_refused(
    tiny_checkpoints: dict[str, Path],
    load_processes: LoadProcesses,
) -> None:
    target = available(4)
    target.environment["CPU_NUM_DEVICES"] = "2"
    with pytest.raises(TargetUnavailable, match="torch_xla has 2 devices"):
        load(tiny_checkpoints["qwen3-vl-moe"], target, load_processes)
