"""The rate of the digest on a device, against a copy of the same array; any JAX backend.

    python benchmarks/device_fingerprint.py --gib 8 --repeats 20

An array of many experts [E, D, F] is digested as tpu-inference keeps w13 (hidden features are
rows) and w2 (hidden features are columns). Rates are bytes read a second; of the copy, bytes read
and written. Some experts' digests are compared with the host's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harness.devices.digest import digest
from harness.devices.digest_xla import XlaPrograms, program, tables_of
from harness.devices.expert_layout import Span
from harness.devices.programs import Rectangle, Shares


def filled(experts: int, rows: int, columns: int) -> Any:
    """Random bits as bf16, made on the device."""
    shape = (experts, rows, columns)
    bits = jax.random.bits(jax.random.key(0), shape, dtype=jnp.uint16)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """The median of single calls, each of ten runs in a row."""
    jax.block_until_ready(step())
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(10):
            result = step()  # one at a time: ten copies need not fit
        jax.block_until_ready(result)
        found.append((time.perf_counter() - started) / 10)
    return median(found)


def started(array: Any, question: Shares) -> Any:
    """The digests' words on the device; not waited for."""
    return program((question,), array.device.platform)(
        [array], [tables_of(question, array.itemsize, array.device)]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, help="of the array (default: 8, on a CPU 0.25)")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    hidden, width = options.hidden, options.intermediate
    device = jax.devices()[0]
    gib = options.gib or (0.25 if device.platform == "cpu" else 8)
    experts = max(1, int(gib * 2**30 / (2 * hidden * width)))
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}")
    copy = jax.jit(lambda a: jax.lax.bitcast_convert_type(a, jnp.uint16) ^ jnp.uint16(1))
    for name, axis in (("hidden in rows (w13)", 0), ("hidden in columns (w2)", 1)):
        shape = (hidden, width) if axis == 0 else (width, hidden)
        array = jax.jit(filled, static_argnums=(0, 1, 2))(experts, *shape)
        whole = Rectangle(Span(0, shape[0]), Span(0, shape[1]), axis, 0, width)
        asked = Shares(experts, (whole,))
        found = XlaPrograms().start([(array, asked)])().reshape(asked.shape)[0]
        for expert in (0, experts // 2, experts - 1):
            matrix = np.asarray(array[expert]).view(np.uint16)
            by_feature = matrix.T if axis == 0 else matrix
            assert (digest(by_feature, 1) == found[expert]).all(), (name, expert)
        copied = 2 * array.nbytes / seconds(partial(copy, array), options.repeats)
        read = array.nbytes / seconds(partial(started, array, asked), options.repeats)
        print(
            f"{name:<24} {array.nbytes / 2**30:5.1f} GiB  equal to the host's  "
            f"digest {read / 1e9:7.1f} GB/s  copy {copied / 1e9:7.1f} GB/s  {read / copied:5.1%}"
        )
        del array


if __name__ == "__main__":
    main()
