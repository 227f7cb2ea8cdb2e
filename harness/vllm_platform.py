"""vLLM's platform plugin for the emulated target.

vLLM looks for a TPU by importing libtpu; without one it finds no platform. An out-of-tree plugin
(entry point group ``vllm.platform_plugins``, read by ``vllm.platforms``,
``resolve_current_platform_cls_qualname``) is the public way to name one, and it wins over the
built-in ones. It answers only in processes that the emulated target started: everywhere else vLLM
decides as if this package were not there.
"""

from __future__ import annotations

import os

#: Set, to the number of devices, in the processes that load onto the emulated target.
EMULATED_DEVICES = "HARNESS_EMULATED_DEVICES"


def emulated_tpu_platform() -> str | None:
    """The platform class vLLM is to use, or None where the emulated target was not asked for."""
    if EMULATED_DEVICES not in os.environ:
        return None
    return "tpu_inference.platforms.tpu_platform.TpuPlatform"
