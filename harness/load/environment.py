"""The environment variables that a load process starts with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import platformdirs


def cache_directory() -> Path:
    """Where the stack's caches are kept between runs; ``HARNESS_CACHE`` overrides the place.

    Workers share it: vLLM writes its entries by renaming (``weight_utils.py``, ``atomic_writer``).
    """
    return Path(os.environ.get("HARNESS_CACHE") or platformdirs.user_cache_path("moe-load-harness"))


def stack_environment() -> dict[str, str]:
    """What every load needs of vLLM, whatever the target."""
    return {
        "VLLM_CACHE_ROOT": str(cache_directory() / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        # Where neither its package nor the home directory can be written, numba finds no place.
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR") or str(cache_directory() / "numba"),
    }


def compilation_cache() -> dict[str, str]:
    """Have JAX keep what it compiled, by machine: a program for one CPU must not run on another.

    All programs, however small and fast to compile: a load is hundreds of them, the same ones
    each time. Where the user names a directory, theirs are the limits too.
    """
    name = "JAX_COMPILATION_CACHE_DIR"
    if name in os.environ:
        return {}
    return {
        name: str(cache_directory() / "jax" / platform.node()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
