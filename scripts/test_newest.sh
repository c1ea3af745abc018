#!/usr/bin/env bash
# Runs the unit tests that need JAX with the newest JAX, in an environment of its own, .venv-py312.
#
# The newest JAX needs Python 3.12 or newer; where there is none, or .venv has it already, this says so and
# runs nothing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/find_python.sh

export XLA_PYTHON_CLIENT_PREALLOCATE=false
SHARED=(--numprocesses logical --maxprocesses 4 --dist worksteal --durations 20 --durations-min 5)
# What the newest JAX shows nothing new in: unit tests of Python alone, of what wraps an engine that
# others test or decides for it (when it changes its plan, who gets which request, how long drafts are,
# what is done after pages or workers were lost), and random walks through the engine's states.
NOT_WITH_NEWEST=(bench benchmarks cli granularity plots scheduling serving sharding sim
  speculation/policy test_examples.py test_gpu_check.py test_output_files.py test_pictures.py
  test_progress_bar.py test_quickstart.py test_repository.py test_scripts.py
  cluster/test_cluster_drafts.py cluster/test_cluster_plans.py cluster/test_faults.py
  cluster/test_cluster_plan_runtime.py engine/test_detokenizer.py engine/test_lost_pages.py
  regranularization/test_change_states.py speculation/runtime/test_speculation.py
  speculation/runtime/test_speculation_states.py)

say() { printf 'tests: %s\n' "$*" >&2; }

jax_version() { "$1" -c 'import importlib.metadata as m; print("JAX", m.version("jax"))'; }

if [ -x .venv/bin/python ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  say "the tests run with $(jax_version .venv/bin/python), the newest; no second run"
elif ! python=$(find_python 3.12 3.13); then
  say "SKIPPED the run with the newest JAX: no Python 3.12 or 3.13 with venv was found"
else
  FJX_PYTHON=$python bash scripts/setup.sh --venv .venv-py312 --no-model test
  say "running the unit tests that need JAX with $(jax_version .venv-py312/bin/python)"
  exec .venv-py312/bin/python -m pytest "${SHARED[@]}" tests/unit "${NOT_WITH_NEWEST[@]/#/--ignore=tests/unit/}"
fi
