# Sourced by the other scripts: finds a Python that can make a virtual environment.

# find_python VERSION... : prints the first working Python of these versions, in this order.
find_python() {
  local version candidate
  for version in "$@"; do
    while IFS= read -r candidate; do
      if python_works "$candidate" "$version"; then
        printf '%s\n' "$candidate"
        return 0
      fi
    done < <(python_candidates "$version")
  done
  return 1
}

# python_works COMMAND VERSION : a pyenv shim exists for versions that it then refuses to run, and
# Debian ships Pythons without venv, so only running it tells.
python_works() {
  "$1" -c '
import ensurepip, sys, venv
sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$2" >/dev/null 2>&1
}

# python_candidates VERSION : every command on the PATH that could be it, then what pyenv has installed.
python_candidates() {
  type -aP "python$1" python3 python || true
  local installed
  for installed in "${PYENV_ROOT:-${HOME:-~}/.pyenv}/versions/$1".*/bin/python; do
    if [ -x "$installed" ]; then printf '%s\n' "$installed"; fi
  done
}

# describe_pythons VERSION... : every candidate and what it is, for a person to see why none does.
describe_pythons() {
  local version candidate
  for version in "$@"; do python_candidates "$version"; done | sort -u |
    while IFS= read -r candidate; do printf 'tried %s\n' "$(describe_python "$candidate")"; done
}

describe_python() {
  local version
  if ! version=$("$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); then
    printf '%s: does not run' "$1"
  elif ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    printf '%s: Python %s without the modules venv and ensurepip' "$1" "$version"
  else
    printf '%s: Python %s' "$1" "$version"
  fi
}
