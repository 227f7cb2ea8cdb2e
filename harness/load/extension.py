"""What the harness adds to the engine's worker, by vLLM's own option for that.

``worker_extension_cls`` names a class that vLLM makes a base of the worker's (``v1/worker/
worker_base.py``, ``init_worker``); ``collective_rpc`` then calls its methods on every worker, next
to the weights. Their names begin with ``harness_``: vLLM refuses one that a worker has already.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from harness.base.errors import InternalError
from harness.families.family import Part
from harness.load import inside
from harness.load.engines import held
from harness.load.loaded import Loaded
from harness.load.targets.known_targets import driver_of

#: What a worker can be asked to do, as ``JOBS`` of :mod:`harness.load.child` has it for processes:
#: each function takes the worker and a text, and returns one.
FUNCTIONS = {
    "describe": "harness.verification.engine_side:describe",
    "compare": "harness.verification.engine_side:compare",
    "node": "harness.verification.over_ray:node",
    "compare loaded": "harness.verification.over_ray:compare_loaded",
}


class Extension:
    """Methods of the worker, for :mod:`harness.load.targets.tpu_inference` and the job on Ray."""

    model_runner: Any
    _harness_draft: Mapping[str, Any] | None = None

    def harness_load_draft(self, config: Any) -> None:
        """Load the draft model onto the worker's mesh, as ``Eagle3Proposer.load_model`` does.

        Args:
            config: vLLM's, with that draft model.
        """
        from tpu_inference.models.common.model_loader import get_model
        from vllm.config import set_current_vllm_config

        runner = self.model_runner
        with set_current_vllm_config(config):
            model = get_model(config, runner.rng_key, runner.mesh, is_draft_model=True)
        self._harness_draft = model.state

    def harness_mesh(self) -> list[tuple[str, int]]:
        """The mesh that upstream made: platform and number of each device."""
        return [(d.platform, d.id) for d in self.model_runner.mesh.devices.flat]

    def harness_loaded(self, parts: Collection[Part], entry: str) -> Loaded:
        """What a load of the harness left here; it stays in this process.

        Args:
            parts: that were loaded.
            entry: where the load entered the stack.

        """
        ended, session = time.perf_counter(), inside.current
        if session is None:
            raise InternalError(
                "a worker without a load of the harness", where="harness_loaded",
                expected="a worker that the harness started", hint="report this",
            )  # fmt: skip
        driver = driver_of(session.target)
        began = session.load_began or ended
        with InternalError.instead():  # the stack has done its part
            return held(
                self, driver, parts, entry=entry, draft=self._harness_draft,
                seconds=(began - session.began, ended - began),
            )  # fmt: skip

    def harness_run(self, function: str, argument: str) -> str:
        """Run a function of the harness on this worker; text travels, which any transport takes.

        Args:
            function: a name in :data:`FUNCTIONS`.
            argument: its argument.

        Raises:
            InternalError: there is none of that name: nothing that is sent can name a module.
        """
        return run_on(self, function, argument)


def run_on(worker: Any, function: str, argument: str) -> str:
    """Run a function of :data:`FUNCTIONS` on a worker; see :meth:`Extension.harness_run`."""
    if function not in FUNCTIONS:
        raise InternalError(
            f"no function {function!r}", where="harness_run",
            expected=", ".join(FUNCTIONS), hint="the same release of the harness on both sides",
        )  # fmt: skip
    module, name = FUNCTIONS[function].split(":")
    result: str = getattr(import_module(module), name)(worker, argument)
    return result
