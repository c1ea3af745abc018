#!/usr/bin/env bash
# Sets up what is missing, serves the default model on this machine, asks it a first question, and
# goes on serving until Ctrl-C.
#
#   bash scripts/quickstart.sh [--port PORT] [--once]
#
# --once stops after the first answer.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -n "${HOME:-}" ] || unset HOME
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" "$root/scripts/quickstart.py" "$@"
