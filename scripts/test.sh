#!/usr/bin/env bash
# Sets up what is missing and runs the tests.
#
#   bash scripts/test.sh                  all tests; then the unit tests again with the newest JAX
#   bash scripts/test.sh --no-newest      all tests, once
#   bash scripts/test.sh ARGUMENT...      pytest with these arguments
#
# The newest JAX needs Python 3.12 or newer; where there is none, the second run is left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/find_python.sh

say() { printf 'tests: %s\n' "$*" >&2; }

newest=yes
if [ "${1:-}" = --no-newest ]; then
  newest=no
  shift
fi

bash scripts/setup.sh test
if [ $# -gt 0 ]; then exec .venv/bin/python -m pytest "$@"; fi

status=0
.venv/bin/python -m pytest || status=$?

jax_version() { "$1" -c 'import importlib.metadata as m; print("JAX", m.version("jax"))'; }

run_with_newest() {
  local python
  if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
    say "the tests already ran with $(jax_version .venv/bin/python), the newest; no second run"
  elif ! python=$(find_python 3.12 3.13); then
    say "SKIPPED the second run, with the newest JAX: no Python 3.12 or 3.13 with venv was found"
  else
    FJX_PYTHON=$python bash scripts/setup.sh --venv .venv-py312 --no-model test
    say "running the unit tests with $(jax_version .venv-py312/bin/python)"
    .venv-py312/bin/python -m pytest tests/unit
  fi
}

if [ $newest = yes ]; then run_with_newest || status=$?; fi
exit "$status"
