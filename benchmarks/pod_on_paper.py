"""What verification of Qwen3.5-397B-A17B would cost on a slice: a calculation, nothing is run.

    python benchmarks/pod_on_paper.py

Sizes follow from the published shapes. Rates of the host are those measured with the other
benchmarks: of digests on one core, and of the stores' clients; those of TPUs and of the stores
themselves are stated ones. All can be given.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from harness.families.family import Projection
from harness.families.known_families import family_named

_WORD, _DIGEST = 2, 16  # bytes of bf16 and of a digest


@dataclass(frozen=True)
class Slice:
    """A slice: hosts, chips a host, GB of HBM a chip, TB/s of it."""

    name: str
    hosts: int
    chips: int
    hbm: float
    bandwidth: float


#: Cloud TPU's published figures of the two generations.
SLICES = (Slice("v6e-64", 16, 4, 32, 1.64), Slice("v7x, 8 chips", 2, 4, 192, 7.37))


def expert_bytes() -> tuple[int, int]:
    """Bytes of all experts, and how many matrices they are."""
    shape = family_named("qwen3.5-moe").shape_named("published:qwen3.5-397b-a17b")
    matrices = shape.layers * shape.experts * len(Projection)
    return matrices * shape.hidden * shape.intermediate * _WORD, matrices


def line(slice_: Slice, options: argparse.Namespace) -> str:
    """A row of the table: per host, gigabytes and seconds."""
    experts, matrices = expert_bytes()
    total = experts / 1e9
    share = total / slice_.hosts
    chip = share / slice_.chips
    stream = total / options.store
    read = share / min(options.store, options.client)
    hashed = share / (options.hash * options.cores)
    digest = chip / (0.9 * slice_.bandwidth * 1e3)
    names = matrices * _DIGEST / (options.client * 1e9)
    # The reference is read and hashed at once; the slower of the two is what shows.
    without, with_file = max(read, hashed) + digest, names + digest
    return (
        f"| {slice_.name} | {total:.0f} | {stream:.0f} | {share:.0f} "
        f"| {chip:.1f} of {slice_.hbm:.0f} | {read:.0f} | {hashed:.1f} | {digest * 1e3:.0f} "
        f"| {matrices * _DIGEST / 1e6:.1f} "
        f"| {without:.1f} | {with_file:.2f} | {1 + without / stream:.3f} "
        f"| {1 + with_file / stream:.4f} | {share / (options.readback * slice_.chips):.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--store", type=float, default=5.0, help="GB/s a host streams from its store")
    add("--client", type=float, default=1.3, help="GB/s the reference is read with, store_clients")
    add("--hash", type=float, default=11.0, help="GB/s a core digests the reference with")
    add("--cores", type=int, default=8, help="cores that do")
    add("--readback", type=float, default=10.0, help="GB/s a chip is read back with")
    options = parser.parse_args()
    print(
        "| slice | streamed, GB | streaming, s | its experts, GB | a chip's, GB "
        "| reading its reference again, s | hashing it, s | digests on the chip, ms "
        "| digests, MB | verifying adds, s | with a digest file, s | verified / load "
        "| with a digest file | reading all back instead, s |\n" + f"|{'---|' * 14}"
    )
    for slice_ in SLICES:
        print(line(slice_, options))


if __name__ == "__main__":
    main()
