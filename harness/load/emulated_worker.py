"""The worker of the emulated target, by its name in vLLM's ``worker_cls``; only vLLM imports this.

It is tpu-inference's, and does what that does. CPU devices lack two things that a TPU's have, and
this gets it past both: statistics of their memory, which it logs, and coordinates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tpu_inference.worker.tpu_worker import TPUWorker

from harness.load import inside
from harness.load.targets.emulated import TARGET, with_memory_logged


class EmulatedWorker(TPUWorker):  # type: ignore[misc]
    """A ``TPUWorker`` on emulated devices."""

    def init_device(self, *args: Any, **kwargs: Any) -> None:
        """With the devices of all hosts, where there are several."""
        session = inside.current
        if session is not None and session.devices is not None:
            self.devices = list(session.devices)
            # In this order; else the mesh is made by coordinates (``runner/tpu_runner.py``).
            indexes = [device.id for device in session.devices]
            self.vllm_config.sharding_config.device_indexes = indexes
        with inside.alone():
            with_memory_logged(partial(super().init_device, *args, **kwargs))
        if session is not None:
            session.mesh = [(d.platform, d.id) for d in self.model_runner.mesh.devices.flat]
            TARGET.require_mesh(session)  # before anything is loaded onto another

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As upstream does."""
        with_memory_logged(partial(super().load_model, *args, **kwargs))
