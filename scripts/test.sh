#!/usr/bin/env bash
# Sets up what is missing and runs the tests.
#
#   bash scripts/test.sh                  all tests but the slow ones
#   bash scripts/test.sh --all            all tests
#   bash scripts/test.sh ARGUMENT...      pytest with these arguments
#
# The first two share the tests among several processes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each process holds a few GB, and XLA keeps more than one core busy by itself. Where there is a GPU,
# none may take most of its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
SHARED=(--numprocesses logical --maxprocesses 4 --dist worksteal --durations 20 --durations-min 5)

bash scripts/setup.sh test
if [ "${1:-}" = --all ]; then exec .venv/bin/python -m pytest "${SHARED[@]}"; fi
if [ $# -gt 0 ]; then exec .venv/bin/python -m pytest "$@"; fi
exec .venv/bin/python -m pytest "${SHARED[@]}" -m "not slow"
