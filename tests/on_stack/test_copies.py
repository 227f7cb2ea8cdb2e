"""A model that copies experts past every loader: what it loses, or cuts wrongly, is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.explain.causes import Cause
from harness.families.family import Part
from harness.load.process import LoadProcess
from harness.load.target import Target
from harness.report.report import Report, Status, believed
from harness.verification.job import VerifyRequest
from tests.support.copy_faults import PLANTED

CAUSES: dict[str, set[Cause]] = {
    "a bias is lost": {Cause.BIAS_LOST},
    "all biases are lost": {Cause.BIAS_LOST},
    "sinks are lost": {Cause.PARAMETER_UNWRITTEN, Cause.TENSOR_UNREAD},
    "experts are lost": {Cause.NOT_DELIVERED},
    "a bias is cut elsewhere": {Cause.ROLLED},
    "columns in turn become halves": {Cause.INTERLEAVED},
    "one expert is copied to all": {Cause.EXPERTS_PERMUTED},
    "another shape": {Cause.UNEXPLAINED},
}


def verified(fault: str, path: Path, process: LoadProcess, target: Target) -> Report:
    parts = (Part.DECODER,)
    request = VerifyRequest(checkpoint=str(path), reference=str(path), target=target, parts=parts)
    argument = msgspec.json.encode((request, fault))
    answer = process.run(
        "tests.support.copy_faults:verify_with_fault", argument, target, timeout=300
    )
    return believed(msgspec.json.decode(answer, type=Report), fault)


@pytest.mark.parametrize("fault", PLANTED)
def test_what_a_copying_model_is_given_wrongly_is_named(
    fault: str, tiny_checkpoints: dict[str, Path], load_process: LoadProcess, target: Target
) -> None:
    report = verified(fault, tiny_checkpoints["gpt-oss"], load_process, target)
    assert {diagnosis.cause for diagnosis in report.diagnoses} == CAUSES[fault], report.diagnoses
    if fault == "another shape":
        assert report.status is Status.LOAD_FAILED
        assert (
            "called param.copy_(loaded_weight) of a RoutedExperts" in report.diagnoses[0].evidence
        )
    else:
        assert report.status is Status.DIFFERENT
