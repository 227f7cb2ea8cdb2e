#!/usr/bin/env bash
# Install the harness and what it needs beside a stack that is there already (a TPU VM, upstream's
# image), without changing any package of it: every installed version is a constraint.
# PYTHON names the interpreter, python3 by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
"$python" -m pip list --format=freeze --exclude moe-load-harness >"$constraints"
"$python" -m pip install --quiet --constraint "$constraints" --requirement ci/stacks/tools.in
"$python" -m pip install --quiet --no-deps --editable .
