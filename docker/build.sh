#!/usr/bin/env bash
# Build an image with the labels of its stack: docker/build.sh emulated|gpu|tpu [STACK] [docker options]
# The image is moe-load-harness:<kind>-<stack>. DRY_RUN=1 prints the command instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:-}
stack=${2:-0.32}
if [[ ! -f docker/Dockerfile.$kind || ! -f ci/stacks/$stack.txt ]]; then
  echo "usage: docker/build.sh emulated|gpu|tpu [0.21|0.22|0.26|0.32] [docker options]" >&2
  exit 2
fi
if [[ $kind == gpu && ! -f ci/stacks/cuda/$stack.txt ]]; then
  echo "docker/build.sh: stack $stack has no requirements for a GPU, ci/stacks/cuda/$stack.txt" >&2
  exit 2
fi
shift $(($# < 2 ? $# : 2))

pinned() { sed -n "s/^$1==//p" "ci/stacks/$stack.txt"; }
# libtpu 0.0.43, which tpu-inference 0.26 pins, has wheels from Python 3.12 on only.
python=3.12
[[ $kind == tpu ]] || python=$("${PYTHON:-python3}" ci/setup.py --python "$stack")

command=(docker build --file "docker/Dockerfile.$kind" --tag "moe-load-harness:$kind-$stack"
  --build-arg "BASE_IMAGE=python:$python-slim-bookworm"
  --build-arg "STACK=$stack"
  --build-arg "VLLM_VERSION=$(pinned vllm)"
  --build-arg "TPU_INFERENCE_VERSION=$(pinned tpu-inference)"
  --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
  "$@" .)
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
