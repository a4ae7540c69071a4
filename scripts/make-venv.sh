#!/usr/bin/env bash
# Make or refresh a virtual environment: scripts/make-venv.sh FOLDER [PYTHON [REQUIREMENT...]]
# Without PYTHON: takes the newest (3.10 or later) that can really make one; installs python3-venv on a bare Debian.
# FOLDER/other-plugins is a second environment on top of it, with the pytest plugins of others that a gate must work beside.
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

# Print the interpreter to use: the one that is asked for, or the newest there is.
choose_python() {
  if [[ -n "$1" ]]; then
    usable "$1" || {
      printf '%s: not a Python 3.10 or later with venv and ensurepip\n' "$1" >&2
      return 1
    }
    printf '%s\n' "$1"
  elif ! find_python; then
    "${here}/need.sh" python3 python3-venv
    find_python || {
      echo 'no Python 3.10 or later with venv and ensurepip found; install one, then run this again' >&2
      return 1
    }
  fi
}

# Installed in the first environment they would load into every session. In one on top of it they load where they are
# asked for, beside everything that the first holds, in the very same versions.
add_other_plugins() {
  local venv="$1" other="$1/other-plugins" below above
  [[ -x "${other}/bin/python" ]] || "${venv}/bin/python" -m venv --without-pip "${other}"
  below="$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  above="$("${other}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  printf '%s\n' "${below}" >"${above}/below.pth"
  "${venv}/bin/python" -m pip freeze --exclude-editable >"${other}/below.txt"
  "${other}/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "${other}/below.txt" --requirement "${root}/tests/plugin/other_plugins.txt"
}

main() {
  local venv="$1" python
  python="$(choose_python "${2:-}")"
  shift "$(($# < 2 ? $# : 2))"
  # An environment whose interpreter is gone or too old is made anew; any other is kept, pip brings it up to date.
  usable "${venv}/bin/python" || "${python}" -m venv --clear "${venv}"
  "${venv}/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${root}[dev]" "$@"
  add_other_plugins "${venv}"
}

main "$@"
exit
