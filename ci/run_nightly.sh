#!/usr/bin/env bash
# The nightly run. Both CI systems call this, and so can a person: the same options do the same.
# PYTHON names the interpreter, python3 by default. Try: ci/run_nightly.sh --help
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/nightly.py" "$@"
