"""Verifies the weights of an engine that runs: where they lie, without another load.

The engine is asked through ``collective_rpc``, which runs a method of every worker between two
steps of its own: it is not stopped, and serves on when the answer is there. Reports alone travel.
"""

from __future__ import annotations

import inspect
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec

from harness.base.bits import Nan
from harness.base.errors import BadInput, HarnessError, InternalError, TargetUnavailable
from harness.compare.digest_comparison import Method
from harness.compare.selection import Selection
from harness.families.family import Part
from harness.load.engines import EngineWorker
from harness.load.extension import run_on
from harness.report.merge import merged
from harness.report.report import Report, redacted_report
from harness.verification.engine_side import WorkerAnswer
from harness.verification.outcomes import host_part
from harness.verification.verify import Asked, prepared_for, undisturbed

_METHOD = "harness_run"
_EVERYTHING = Selection()
_HINT = (
    'worker_extension_cls="harness.Extension" where the engine is made, or vllm serve '
    "--worker-extension-cls harness.Extension; for a URL also VLLM_SERVER_DEV_MODE=1"
)
#: Asks every worker: a function's name and its argument in, a text of each out.
_Ask = Callable[[str, str], list[str]]


def verify_engine(
    engine: Any,
    reference: str | os.PathLike[str] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    parts: Collection[Part] = tuple(Part),
    nan: Nan = Nan.PAYLOAD,
    method: Method = Method.AUTO,
    selection: Selection = _EVERYTHING,
    num_layers: int | None = None,
    families: Iterable[str | os.PathLike[str]] = (),
    experts_only: bool = False,
    timeout: float = 3600.0,
) -> Report:
    """Compare what the workers of an engine hold, in place.

    Args:
        engine: anything with ``collective_rpc``: vLLM's ``LLM``, ``LLMEngine``, an ``Executor``; or
            the URL of a server that has that route.
        reference: what the engine must hold: a digest file or a checkpoint; by default the
            checkpoint it was loaded from.
        checkpoint: the checkpoint whose headers list the tensors, if it is not the path the engine
            was given. Workers must find it, and ``reference``, under the same name.
        parts: which of the parts that the engine holds to compare.
        nan: how NaNs in the reference count.
        method: how bits of experts are compared.
        selection: the experts to compare.
        num_layers: the engine was made with only the first layers of the decoder.
        families: Python files that describe families; they are run, in the workers too.
        experts_only: compare only experts.
        timeout: seconds to wait for a server; an engine in this process has no limit.

    Returns:
        The report. It does not know how the weights came: it has no ledger and no load time.

    Raises:
        BadInput: as for :func:`harness.verification.verify.verify`.
        TargetUnavailable: the engine cannot be asked or does not belong to tpu-inference, or its
            workers are of several meshes or have other versions of the stack or the harness.
        InternalError: the comparison itself failed.
    """
    ask = _asking(engine, timeout)
    workers = [msgspec.json.decode(text, type=EngineWorker) for text in ask("describe", "")]
    first = workers[0]
    _require_one_mesh(workers)
    asked = Asked(
        reference=reference, nan=nan, method=method,
        parts=[part for part in parts if part in first.parts], selection=selection,
        num_layers=num_layers, families=families, experts_only=experts_only,
    )  # fmt: skip
    prepared = prepared_for(checkpoint or first.model, first.target, asked, recorded=False)
    argument = msgspec.json.encode((prepared.request, prepared.report)).decode()
    started = time.perf_counter()
    with undisturbed(prepared):
        answers = [
            msgspec.json.decode(text, type=WorkerAnswer) for text in ask("compare", argument)
        ]
    seconds = time.perf_counter() - started
    reports = [_report(answer) for answer in answers]
    if first.target.hosts > 1:
        for worker, report in zip(workers, reports, strict=True):
            report.hosts = [host_part(report, worker.target, seconds)]
    return redacted_report(merged(reports) if len(reports) > 1 else reports[0])


def _report(answer: WorkerAnswer) -> Report:
    if answer.error:
        raise answer.error.error()
    if answer.report is None:
        raise InternalError(
            "an answer without a report", where="a worker of the engine",
            expected="a report or an error", hint="report this",
        )  # fmt: skip
    return answer.report


def _require_one_mesh(workers: Sequence[EngineWorker]) -> None:
    """The workers are the processes of one mesh, one each, with the same versions.

    Raises:
        TargetUnavailable: they are not.
    """
    hosts = {worker.target.host for worker in workers}
    if len(workers) != workers[0].target.hosts or len(hosts) != len(workers):
        raise TargetUnavailable(
            f"{len(workers)} workers, whose meshes are over {workers[0].target.hosts} processes",
            where="the engine",
            expected="one mesh over all workers",
            hint="pipeline stages and data parallel engines have one each: ask them one by one",
        )
    for worker in workers[1:]:
        others = {
            name: (workers[0].versions.get(name), version)
            for name, version in worker.versions.items()
            if workers[0].versions.get(name) != version
        }
        if others:
            raise TargetUnavailable(
                f"worker {worker.target.host} has other versions than worker "
                f"{workers[0].target.host}: {others}",
                where="the engine",
                expected="the same stack and the same harness on every host",
                hint="install the same requirements on all of them",
            )


def _asking(engine: Any, timeout: float) -> _Ask:
    """How the engine's workers are asked.

    Raises:
        BadInput: it is nothing that can be.
    """
    if isinstance(engine, str) and engine.startswith(("http://", "https://")):
        return _over_http(engine.rstrip("/"), timeout)
    rpc = getattr(engine, "collective_rpc", None)
    if not callable(rpc) or inspect.iscoroutinefunction(rpc):
        raise BadInput(
            f"no engine that can be asked: {type(engine).__name__}",
            where="verify_engine",
            expected="an object with collective_rpc that is no coroutine, or http://HOST:PORT",
            hint="LLM(...), or its llm_engine; of an asynchronous engine the URL of its server",
        )
    return _by_method(rpc)


def _by_method(rpc: Callable[..., list[str]]) -> _Ask:
    """By the extension's method; where workers lack that, by the function itself.

    An engine in other processes takes functions only with ``VLLM_ALLOW_INSECURE_SERIALIZATION=1``.
    """

    def ask(function: str, argument: str) -> list[str]:
        try:
            return rpc(_METHOD, args=(function, argument))
        except HarnessError:
            raise
        except Exception as error:
            if _METHOD not in str(error):
                raise
        try:
            return rpc(run_on, args=(function, argument))
        except HarnessError:
            raise
        except Exception as error:
            raise _unasked(str(error), "the engine") from error

    return ask


def _over_http(url: str, timeout: float) -> _Ask:
    """By the route that a server in development mode has (vLLM, ``POST /collective_rpc``)."""

    def ask(function: str, argument: str) -> list[str]:
        body = json.dumps({"method": _METHOD, "args": [function, argument]}).encode()
        request = urllib.request.Request(
            f"{url}/collective_rpc", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                results = json.loads(answer.read())["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unasked(str(error), url) from error
        if not results or not all(isinstance(result, str) for result in results):
            raise _unasked("no answer of its workers", url)
        return list(results)

    return ask


def _unasked(why: str, where: str) -> TargetUnavailable:
    return TargetUnavailable(
        f"the engine's workers cannot be asked: {why}",
        where=where,
        expected="workers with the harness's extension",
        hint=_HINT,
    )
