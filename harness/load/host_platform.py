"""vLLM's platform of the torch-xla target: model parameters in host memory, nothing ever computed.

vLLM has no torch_xla platform any more, so its own loader fills the parameters on the host and
the harness carries them to the devices. An out-of-tree platform, unlike the built-in CPU one,
asks for none of vLLM's compiled operators, which the CUDA wheel cannot give on a host without a
GPU (vLLM 0.26.0, ``layers/activation.py``, ``SiluAndMul``). Only vLLM imports this file.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum


class HostPlatform(CpuPlatform):  # type: ignore[misc]
    """The CPU platform under its out-of-tree name."""

    _enum = PlatformEnum.OOT
