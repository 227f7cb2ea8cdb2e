"""A verification on a Ray cluster: tpu-inference's own executor loads, its workers compare.

This process drives: it makes the executor, as an engine does, and calls the workers' extension.
Each worker is a host. It begins its session by vLLM's plugin (:mod:`harness.load.inside`), which
records its load, and then compares what its devices hold; reports travel, and are merged as those
of hosts that the harness starts itself (:func:`harness.report.merge.merged`).
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from harness.base.errors import BadInput, HarnessError, InternalError, SentError, TargetUnavailable
from harness.base.progress import COMPARE, STREAM, Meter
from harness.families.family import Part
from harness.families.known_families import bring
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load import engine, inside
from harness.load.inside import BEGIN, MULTIHOST, LoadSession
from harness.load.loaded import Ledgers
from harness.load.ray_cluster import Attendants, Node, connected, met
from harness.load.stack import installed_versions
from harness.load.target import Target
from harness.load.targets.emulated import free_address
from harness.load.targets.known_targets import driver_of
from harness.load.targets.tpu_inference import (
    CHOICES,
    TpuInference,
    choose,
    choose_alike,
    executor_of,
    worker_drafts_mtp,
)
from harness.report.merge import merged
from harness.report.report import Failure, Frame, Report
from harness.verification.engine_side import WorkerAnswer
from harness.verification.job import Verification, VerifyRequest
from harness.verification.outcomes import host_part

#: Has a worker's request; it is small, whatever the model.
REQUEST = "HARNESS_REQUEST"
#: What begins a worker's session, as ``module:function``.
BEGIN_HERE = "harness.verification.over_ray:begin"
#: Until Ray has seen that a node is gone: its health checks fail after some 15 seconds.
_SECONDS_TO_SEE = 60.0

#: Whatever begins so is of a store or of the streamer, and a worker's as well.
_COPIED_PREFIXES = ("RUNAI_STREAMER_", "AWS_", "GOOGLE_", "STORAGE_", "HF_")
_FRAME = re.compile(
    r'  File "[^"\n]*site-packages/((?:vllm|tpu_inference|jax|torchax|torch)/[^"\n]*)", '
    r"line (\d+), in (\S+)\n    (.*)"
)


def run(
    request: VerifyRequest, unfinished: Report, meter: Meter, begin: str = BEGIN_HERE
) -> Report:
    """Have the cluster load and compare; one report of all hosts.

    Args:
        request: what to verify.
        unfinished: names the checkpoint, the target and what there is to compare.
        meter: is told of the phases; figures stay with the workers.
        begin: what begins a worker's session.

    Raises:
        BadInput: a node has not the same checkpoint.
        TargetUnavailable: there is no such cluster, or a node has other versions.
        HarnessError: as of one host.
    """
    started = time.perf_counter()
    # Of an executor whose worker died, zmq's context waits for ever where it is collected (vLLM
    # 0.26, ``RayExecutorV2.shutdown`` drops its queues). This process ends without collecting.
    gc.disable()
    with (
        connected(request.target, _environment(request, begin)) as nodes,
        ExitStack() as closing,  # the executor before Ray: its monitor asks Ray until then
    ):
        attendants = Attendants(nodes, free_address(nodes[0].address))
        require_alike(nodes, attendants.tell("node", msgspec.json.encode(request).decode()))
        meter.begin(STREAM, 0)
        try:
            texts = _driven(request, unfinished, meter, closing)
        except HarnessError:
            raise
        except Exception as error:  # the stack's, or Ray's
            failure = _failure(error, attendants, len(nodes))
            return msgspec.structs.replace(unfinished, failure=failure)
    answers = [msgspec.json.decode(text, type=WorkerAnswer) for text in texts]
    if refused := next((answer.error for answer in answers if answer.error), None):
        raise refused.error()
    reports = [answer.report for answer in answers if answer.report]
    for report in reports:
        seconds = time.perf_counter() - started
        (part,) = report.hosts
        report.hosts = [msgspec.structs.replace(part, seconds=seconds)]
    return merged(reports)


def _environment(request: VerifyRequest, begin: str) -> dict[str, str]:
    """Of the cluster's processes: the target's, and what a worker needs to begin its session."""
    return (
        {
            name: value
            for name, value in os.environ.items()
            if name == "PYTHONPATH" or name.startswith(_COPIED_PREFIXES)
        }
        | dict(request.target.environment)
        | dict(request.stream_options)
        | {BEGIN: begin, REQUEST: msgspec.json.encode(request).decode(), MULTIHOST: "ray"}
    )


#: Names the variables that vLLM's Ray executors copy to their workers (vLLM ``ray/ray_env.py``).
_COPIED = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def _driven(
    request: VerifyRequest, unfinished: Report, meter: Meter, closing: ExitStack
) -> list[str]:
    """Load, and have every worker compare."""
    driver = driver_of(request.target)
    if not isinstance(driver, TpuInference):
        raise TargetUnavailable(
            f"{request.target.name} on Ray", where="--on ray",
            expected="a target that goes through tpu-inference", hint="--target emulated",
        )  # fmt: skip
    family = ModelCheckpoint(
        request.reference, request.storage, experts_only=request.experts_only
    ).family
    os.environ[MULTIHOST] = "ray"
    os.environ[_COPIED] = ",".join(CHOICES)  # so that each worker chooses as this process does
    choose(request.target.impl)
    config = partial(
        driver.config, request.checkpoint, request.target, None,
        family.config_overrides(request.num_layers),
    )  # fmt: skip
    drafts = Part.MTP in request.parts
    by_worker = drafts and worker_drafts_mtp()
    whole = config(draft=by_worker)
    if by_worker:
        choose_alike(whole)
    kind, executor = executor_of(driver.configured(whole, request.target))
    closing.callback(executor.shutdown)
    if drafts and not by_worker:
        executor.collective_rpc("harness_load_draft", args=(config(draft=True),))
    meter.begin(COMPARE, 0)
    argument = msgspec.json.encode((kind, unfinished)).decode()
    texts: list[str] = executor.collective_rpc("harness_run", args=("compare loaded", argument))
    return texts


def require_alike(nodes: Sequence[Node], told: Sequence[str]) -> None:
    """All nodes have the checkpoint, and the same versions as the first.

    Raises:
        BadInput: one has no such checkpoint, or another one.
        TargetUnavailable: one has other versions.
    """
    facts = [msgspec.json.decode(text, type=NodeFacts) for text in told]
    for node, fact in zip(nodes, facts, strict=True):
        if fact.error:
            raise BadInput(
                f"{node}: {fact.error.what}", where=fact.error.where,
                expected="the checkpoint under the same name on every node",
                hint="a path that all nodes share, or s3://… or gs://…",
            )  # fmt: skip
        if fact.nbytes != facts[0].nbytes:
            raise BadInput(
                f"{node} has another checkpoint: {fact.nbytes} bytes of tensors, "
                f"{nodes[0]} has {facts[0].nbytes}",
                where="the Ray cluster", expected="the same files on every node",
                hint="a path that all nodes share, or s3://… or gs://…",
            )  # fmt: skip
        if fact.versions != facts[0].versions:
            raise TargetUnavailable(
                f"{node} has other versions than {nodes[0]}: "
                + ", ".join(_others(fact.versions, facts[0].versions)),
                where="the Ray cluster", expected="the same stack and harness on every node",
                hint="install the same requirements on all of them",
            )  # fmt: skip


def _others(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [f"{name} {there.get(name, 'none')}, not {here.get(name, 'none')}" for name in names]


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A node: its versions, the size of the checkpoint's tensors there, or why it has none."""

    versions: dict[str, str] = {}
    nbytes: int = 0
    error: SentError | None = None


def node(_: Any, argument: str) -> str:
    """On a node, before any load: JSON of :class:`NodeFacts` for a request."""
    request = msgspec.json.decode(argument, type=VerifyRequest)
    try:
        bring(request.families)
        opened = ModelCheckpoint(
            request.checkpoint, request.storage, experts_only=request.experts_only
        )
        facts = NodeFacts(versions=installed_versions(), nbytes=opened.nbytes)
    except HarnessError as error:
        facts = NodeFacts(error=SentError.of(error))
    return msgspec.json.encode(facts).decode()


#: In a worker: what it is to verify, and the ledgers of its load.
_begun: tuple[VerifyRequest, Ledgers] | None = None


def begin() -> LoadSession:
    """In a worker: begin the session of the load that is about to start there."""
    global _begun
    request = msgspec.json.decode(os.environ[REQUEST], type=VerifyRequest)
    bring(request.families)
    host, coordinator = met()
    target: Target = replace(request.target, host=host, coordinator=coordinator)
    request = msgspec.structs.replace(request, target=target)
    family = ModelCheckpoint(
        request.reference, request.storage, experts_only=request.experts_only
    ).family
    ledgers: Ledgers = {}
    _begun = (request, ledgers)
    layers = engine.layers_of(family, request.num_layers, ledgers, Meter())
    return LoadSession(target, layers, driver_of(target).ready(target))


def compare_loaded(worker: Any, argument: str) -> str:
    """In a worker: compare what its load left, as JSON of :class:`WorkerAnswer`.

    Args:
        worker: it, with the harness's extension.
        argument: JSON of where the load entered, and of an unfinished report.
    """
    entry, unfinished = msgspec.json.decode(argument, type=tuple[str, Report])
    try:
        answer = WorkerAnswer(report=_compared(worker, entry, unfinished))
    except HarnessError as error:
        answer = WorkerAnswer(error=SentError.of(error))
    except Exception as error:
        answer = WorkerAnswer(error=SentError.of(InternalError.of(error)))
    return msgspec.json.encode(answer).decode()


def _compared(worker: Any, entry: str, unfinished: Report) -> Report:
    if _begun is None or inside.current is None:
        raise InternalError(
            "a worker that began no session", where="the Ray executor",
            expected=f"vLLM's plugin of the harness, called with {BEGIN}",
            hint="reinstall the harness on this node: its entry points are not there",
        )  # fmt: skip
    request, ledgers = _begun
    driver = driver_of(request.target)
    assert isinstance(driver, TpuInference)  # there would be no such worker
    inside.current.mesh = worker.harness_mesh()
    driver.require_mesh(inside.current)
    loaded = worker.harness_loaded(request.parts, entry)
    verification = Verification(request, unfinished, Meter(), ledgers=ledgers)
    report = verification.timed(loaded)
    return msgspec.structs.replace(report, hosts=[host_part(report, request.target, 0.0)])


def _failure(error: Exception, attendants: Attendants, hosts: int) -> Failure:
    """What ended the load: a node that is gone before what others say of it; else what was raised.

    Ray brings a worker's error with its traceback as text.
    """
    text = str(error)
    if gone := attendants.lost(_SECONDS_TO_SEE):
        place, what = gone
        return Failure(
            error=what, message=f"{place}, one of {hosts}", log_tail=text, host=place.host
        )
    cause = getattr(error, "cause", None) or error
    name = f"{type(cause).__module__}.{type(cause).__qualname__}".removeprefix("builtins.")
    frames = tuple(
        Frame(file, int(line), function, source)
        for file, line, function, source in _FRAME.findall(text)
    )
    return Failure(error=name, message=str(cause) if cause is not error else text, frames=frames)
