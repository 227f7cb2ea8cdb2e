"""vLLM's platform plugin: names the platform of a load process.

vLLM looks for a TPU by importing libtpu; without one it finds no platform. An out-of-tree plugin
(entry point group ``vllm.platform_plugins``, read by ``vllm.platforms``,
``resolve_current_platform_cls_qualname``) is the public way to name one, and it wins over the
built-in ones. It answers only in processes that a target of the harness started: everywhere else
vLLM decides as if this package were not there.
"""

from __future__ import annotations

import os

#: Set, to the class of vLLM's platform, in the processes of targets that name one.
PLATFORM = "HARNESS_PLATFORM"


def platform() -> str | None:
    """The platform class vLLM is to use, or None where no target of the harness named one."""
    return os.environ.get(PLATFORM) or None
