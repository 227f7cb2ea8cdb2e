"""What is required of upstream's worker; the meshes here are ordered as upstream orders them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.base.bits import Nan
from harness.base.errors import TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.load.target import Implementation, Parallelism, Target
from harness.load.targets import emulated, tpu_inference
from harness.load.targets.known_targets import driver_named, served_by, target_named

TPU = Target(
    name="tpu", devices=4, platform="tpu", parallelism=Parallelism.TENSOR, backend=Backend.GMM_TP,
    nan=Nan.CANONICAL,
)  # fmt: skip


def mesh(*ids: int, platform: str = "tpu") -> list[tuple[str, int]]:
    return [(platform, number) for number in ids]


@pytest.mark.parametrize(
    "ids",
    [(0, 1, 2, 3), (0, 1, 3, 2), (0, 1, 2, 3, 7, 6, 5, 4)],
    ids=["as numbered", "v6e-4", "v6e-8"],
)
def test_a_tpu_mesh_may_have_the_order_of_its_wires(ids: tuple[int, ...]) -> None:
    tpu_inference.require_mesh(mesh(*ids), replace(TPU, devices=len(ids)), ())


@pytest.mark.parametrize(
    ("ids", "platform"), [((0, 1, 2), "tpu"), ((0, 1, 1, 2), "tpu"), ((0, 1, 2, 3), "cpu")]
)
def test_another_mesh_than_the_targets_is_named(ids: tuple[int, ...], platform: str) -> None:
    with pytest.raises(TargetUnavailable, match="the worker's mesh is") as raised:
        tpu_inference.require_mesh(mesh(*ids, platform=platform), TPU, ())
    assert raised.value.expected == "4 different tpu devices"


def test_an_axis_that_upstream_dropped_is_the_stacks_failure() -> None:
    with pytest.raises(RuntimeError, match=r"the worker's mesh is .*, not expert=4"):
        tpu_inference.require_mesh(mesh(0), replace(TPU, mesh="expert=4"), ())


def test_an_order_that_was_asked_for_is_required() -> None:
    target = target_named("emulated", 3)
    tpu_inference.require_mesh(mesh(1, 2, 3, platform="cpu"), target, target.device_indexes)
    for ids in ((1, 3, 2), (0, 1, 2)):
        with pytest.raises(TargetUnavailable, match="the worker's mesh is") as raised:
            tpu_inference.require_mesh(mesh(*ids, platform="cpu"), target, target.device_indexes)
        assert raised.value.expected == "[('cpu', 1), ('cpu', 2), ('cpu', 3)]"


def hbm_usage_gb() -> None:
    raise TypeError("'NoneType' object is not subscriptable")


def another_step() -> None:
    raise TypeError("as planted")


@pytest.mark.parametrize(("step", "raised"), [(hbm_usage_gb, False), (another_step, True)])
def test_the_log_of_memory_alone_may_fail_on_emulated_devices(
    step: Callable[[], None], raised: bool
) -> None:
    with pytest.raises(TypeError) if raised else nullcontext():
        emulated.with_memory_logged(step)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_upstreams_worker_is_taken_as_it_is(name: str) -> None:
    driver = driver_named(name)
    assert isinstance(driver, tpu_inference.TpuInference)
    assert (driver.worker, emulated.TARGET.worker) == (
        "",
        "harness.load.emulated_worker.EmulatedWorker",
    )


@pytest.mark.parametrize(
    ("release", "drafts"),
    [("0.21.0", False), ("0.22.0rc1", True), ("0.22.1.dev3+g0", True), ("1.0", True)],
)
def test_releases_whose_worker_drafts(
    monkeypatch: pytest.MonkeyPatch, release: str, drafts: bool
) -> None:
    monkeypatch.setattr(tpu_inference, "version", lambda package: release)
    assert tpu_inference.worker_drafts_mtp() is drafts


@pytest.mark.parametrize(
    ("impl", "given", "decoder", "draft"),
    [
        (Implementation.VLLM, None, "vllm", "vllm"),
        (Implementation.VLLM, "auto", "vllm", "vllm"),
        (Implementation.JAX, None, "flax_nnx", "flax_nnx"),
        (Implementation.AUTO, None, "auto", "chosen"),
        (Implementation.AUTO, "auto", "auto", "auto"),
    ],
)
def test_a_draft_is_served_as_its_decoder_unless_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
    impl: Implementation,
    given: str | None,
    decoder: str,
    draft: str,
) -> None:
    for name, value in (("MODEL_IMPL_TYPE", None), ("DRAFT_MODEL_IMPL_TYPE", given)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    upstream = SimpleNamespace(resolve_model_architecture=lambda config, is_draft: "chosen")
    monkeypatch.setitem(sys.modules, "tpu_inference.models.common.model_loader", upstream)
    tpu_inference.choose(impl)
    tpu_inference.choose_alike(object())
    assert os.environ["MODEL_IMPL_TYPE"] == decoder
    assert os.environ["DRAFT_MODEL_IMPL_TYPE"] == draft


def test_a_target_without_own_models_serves_vllms() -> None:
    xla = replace(TPU, name="torch-xla")
    assert served_by(xla, Implementation.AUTO).impl is Implementation.VLLM
    with pytest.raises(TargetUnavailable, match="tpu-inference's own models on torch-xla"):
        served_by(xla, Implementation.JAX)
    for impl in Implementation:
        assert served_by(replace(TPU, name="emulated"), impl).impl is impl
