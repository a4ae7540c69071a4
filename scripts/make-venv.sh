#!/usr/bin/env bash
# Make or refresh the virtual environment: scripts/make-venv.sh FOLDER
# Takes the newest Python (3.10 or later) that can really make one; installs python3-venv on a bare Debian.
# shellcheck disable=SC2310  # functions called in a condition are questions; none of them relies on errexit
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "${here}")"

# A command on PATH proves little: a version manager's stand-in fails when called, and Debian ships Python without ensurepip.
usable() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# The versions that the project is tested with come first; any later one is better than none.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3.10 python3 /usr/bin/python3; do
    usable "${name}" && printf '%s\n' "${name}" && return 0
  done
  return 1
}

main() {
  local venv="$1" python
  if ! python="$(find_python)"; then
    "${here}/need.sh" python3 python3-venv
    python="$(find_python)" || {
      echo 'no Python 3.10 or later with venv and ensurepip found; install one, then run this again' >&2
      return 1
    }
  fi
  # An environment whose interpreter is gone or too old is made anew; any other is kept, pip brings it up to date.
  usable "${venv}/bin/python" || "${python}" -m venv --clear "${venv}"
  "${venv}/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${root}[dev]"
}

main "$@"
exit
