#!/usr/bin/env bash
# Makes $VIRTUAL_ENV with the pins of stack $STACK. TORCH=cpu takes torch from PyTorch's CPU index
# and leaves CUDA's libraries out; TORCH=index takes what make takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(python3 ci/setup.py --uv)
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
options=()
if [[ $TORCH == cpu ]]; then options=(--torch-backend cpu); fi
python3 docker/requirements.py "$STACK" --torch="$TORCH" >"$requirements"
"$uv" venv --quiet --clear --python "$(command -v python3)" "$VIRTUAL_ENV"
"$uv" pip sync --quiet --compile-bytecode "${options[@]}" "$requirements"
