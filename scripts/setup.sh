#!/usr/bin/env bash
# Sets up everything that the other scripts need: a virtual environment, fjx and its dependencies in
# it, the weights of the default model. What is already done is not done again.
#
#   bash scripts/setup.sh [--venv DIR] [--no-model] [EXTRA]
#
# EXTRA is one of pyproject.toml's extras (test, dev, cuda). FJX_PYTHON names the Python to use.
set -euo pipefail

VERSIONS=(3.11 3.12 3.13)
MODEL=smollm2-135m

# Python and pip find the home folder by themselves where HOME is unset, but not where it is empty.
[ -n "${HOME:-}" ] || unset HOME
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/find_python.sh

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() {
  printf 'set-up failed: %s\n' "$*" >&2
  exit 2
}

venv=.venv
with_model=yes
extra=base
while [ $# -gt 0 ]; do
  case $1 in
    --venv) venv=${2:?--venv needs a folder}; shift 2 ;;
    --no-model) with_model=no; shift ;;
    -*) fail "unknown option $1; usage: setup.sh [--venv DIR] [--no-model] [EXTRA]" ;;
    test | dev | cuda) extra=$1; shift ;;
    *) fail "there is no extra '$1'; expected test, dev or cuda" ;;
  esac
done
python=$venv/bin/python

version_of() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

choose_python() {
  local chosen version
  if [ -n "${FJX_PYTHON:-}" ]; then
    for version in "${VERSIONS[@]}"; do
      if python_works "$FJX_PYTHON" "$version"; then
        printf '%s\n' "$FJX_PYTHON"
        return
      fi
    done
    fail "FJX_PYTHON must be a Python 3.11 to 3.13 with the modules venv and ensurepip;" \
      "$(describe_python "$FJX_PYTHON")"
  fi
  if ! chosen=$(find_python "${VERSIONS[@]}"); then
    describe_pythons "${VERSIONS[@]}" >&2
    fail "found no Python 3.11 to 3.13 with the modules venv and ensurepip. Install one (Debian or Ubuntu:" \
      "apt install python3 python3-venv; macOS: brew install python@3.12), or set FJX_PYTHON to it."
  fi
  printf '%s\n' "$chosen"
}

make_environment() {
  local chosen
  if [ -z "${FJX_PYTHON:-}" ] && version_of "$python" >/dev/null; then return; fi
  chosen=$(choose_python)
  if [ "$(version_of "$python")" = "$(version_of "$chosen")" ]; then return; fi
  say "making $venv with $("$chosen" -V) ($chosen)"
  "$chosen" -m venv --clear "$venv" || fail "could not make $venv with $chosen"
}

# What an installation depends on; the folder too, because an editable installation holds its path.
installation_key() {
  { version_of "$python" && printf '%s\n' "$root" && cat pyproject.toml constraints.txt; } | cksum
}

is_installed() {
  local stamp="$venv/fjx-installed-$extra"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(installation_key)" ]
}

install() {
  local requirement=. installed=(base)
  if [ "$extra" != base ]; then requirement=".[$extra]" installed+=("$extra"); fi
  if [ "$extra" = dev ]; then installed+=(test); fi
  say "installing fjx and its dependencies into $venv (pip install -e '$requirement')"
  local bar=off
  if [ -t 2 ]; then bar=on; fi
  "$python" -m pip install --disable-pip-version-check --no-input --progress-bar "$bar" \
    -c constraints.txt -e "$requirement" >&2 ||
    fail "pip could not install '$requirement'; its messages are above"
  local name
  for name in "${installed[@]}"; do installation_key >"$venv/fjx-installed-$name"; done
}

# The stamp holds the cache folder that it speaks of and the model's file there.
has_model() {
  [ -f "$venv/fjx-model" ] || return 1
  local cache file
  { IFS= read -r cache && IFS= read -r file; } <"$venv/fjx-model"
  [ "$cache" = "${FJX_CACHE:-default of ${HOME:-}}" ] && [ -f "$file" ]
}

fetch_model() {
  say "fetching the model $MODEL"
  "$python" - "$MODEL" "$venv/fjx-model" "${FJX_CACHE:-default of ${HOME:-}}" <<'PYTHON' ||
import sys
from pathlib import Path

from fjx.errors import UserError
from fjx.models.loading.source import resolve

model, stamp, cache = sys.argv[1:]
try:
    Path(stamp).write_text(f"{cache}\n{resolve(model).path}\n")
except UserError as error:
    sys.exit(str(error))
PYTHON
    fail "the model $MODEL is not there; see above"
}

done_before=yes
if [ -n "${FJX_PYTHON:-}" ] || ! is_installed 2>/dev/null; then make_environment; fi
if ! is_installed; then install; done_before=no; fi
if [ $with_model = yes ] && ! has_model; then fetch_model; done_before=no; fi
if [ $done_before = yes ]; then say "$venv is up to date"; else say "$venv is ready"; fi
