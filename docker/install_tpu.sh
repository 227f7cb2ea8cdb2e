#!/usr/bin/env bash
# The part of Dockerfile.tpu that differs from the emulated image: vLLM and tpu-inference of given
# commits over the stack's releases, where some are given, then libtpu.
# VLLM_COMMIT, VLLM_REPO, TPU_INFERENCE_COMMIT, TPU_INFERENCE_REPO, TORCH: docker/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(python3 ci/setup.py --uv)
options=(--quiet)
if [[ $TORCH == cpu ]]; then options+=(--torch-backend cpu); fi

# The fetched commit has no tags, so its version is told: the stack's, and the commit.
pretended() { # version, commit
  echo "${1:-0.0.0}+g${2:0:12}"
}

fetch() { # repository, commit, directory
  git init --quiet "$3"
  git -C "$3" fetch --quiet --depth 1 "$1" "$2"
  git -C "$3" checkout --quiet FETCH_HEAD
}

if [[ -n ${VLLM_COMMIT:-} ]]; then
  fetch "$VLLM_REPO" "$VLLM_COMMIT" /workspace/vllm
  "$uv" pip install "${options[@]}" --requirement /workspace/vllm/requirements/tpu.txt
  VLLM_TARGET_DEVICE=tpu \
    SETUPTOOLS_SCM_PRETEND_VERSION=$(pretended "${VLLM_VERSION:-}" "$VLLM_COMMIT") \
    "$uv" pip install "${options[@]}" --no-deps --editable /workspace/vllm
fi
if [[ -n ${TPU_INFERENCE_COMMIT:-} ]]; then
  fetch "$TPU_INFERENCE_REPO" "$TPU_INFERENCE_COMMIT" /workspace/tpu_inference
  "$uv" pip install "${options[@]}" --requirement /workspace/tpu_inference/requirements.txt
  SETUPTOOLS_SCM_PRETEND_VERSION=$(pretended "${TPU_INFERENCE_VERSION:-}" "$TPU_INFERENCE_COMMIT") \
    "$uv" pip install "${options[@]}" --no-deps --editable /workspace/tpu_inference
fi
"$uv" pip install "${options[@]}" --no-deps "$(python3 docker/libtpu_pin.py)"
