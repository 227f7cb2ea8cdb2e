#!/usr/bin/env bash
# The part of Dockerfile.gpu that differs from the emulated image: JAX's CUDA plugin and CUDA's
# libraries, as pinned for stack $STACK.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(python3 ci/setup.py --uv)
"$uv" pip install --quiet --compile-bytecode --no-deps --requirement "ci/stacks/cuda/$STACK.txt"
