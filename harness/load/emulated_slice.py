"""An emulated slice of several hosts: each a process, the mesh over the CPU devices of all of them.

It has the shape of a TPU slice as tpu-inference's workers find it. There libtpu makes one slice of
the hosts' chips, while JAX's backend ``cpu`` is each host's own. So here: what JAX calls the TPU
is a CPU client that ``jax.distributed`` joins over the hosts, with gloo for its collectives, and
``cpu`` is a client of one device that knows no other host.
"""

from __future__ import annotations

from harness.load.target import Target

_SECONDS_TO_MEET = 120


def join(target: Target) -> None:
    """Make this process host ``target.host`` of the slice; no device may have been touched.

    Raises:
        RuntimeError: a backend of JAX is alive already, or the hosts do not meet in time.
    """
    import jax
    from jax._src.xla_bridge import make_cpu_client  # the factory JAX registers for "cpu"
    from jax.extend import backend
    from jaxlib import xla_client

    jax.config.update("jax_platforms", "tpu,cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", target.devices // target.hosts)
    jax.distributed.initialize(
        target.coordinator,
        target.hosts,
        target.host,
        cluster_detection_method="deactivate",
        initialization_timeout=_SECONDS_TO_MEET,
    )
    backend.register_backend_factory("tpu", make_cpu_client, priority=300, fail_quietly=False)
    backend.register_backend_factory("cpu", lambda: xla_client.make_cpu_client(num_devices=1))


def leave() -> None:
    """Wait for the other hosts and disconnect: who goes without ends the others.

    A host whose load failed goes without, so that none waits for it in vain.
    """
    import jax

    jax.distributed.shutdown()
