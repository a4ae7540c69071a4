#!/usr/bin/env bash
# Make sure that commands exist: scripts/need.sh COMMAND=DEBIAN-PACKAGE ... (a PACKAGE alone is installed in any case).
# Installs only what is missing, and only as root on a Debian-like system; elsewhere says in one line what to install.
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C PATH="${PATH}:/usr/local/sbin:/usr/sbin:/sbin"

# Print the packages of the commands that are not there, one per line.
missing_packages() {
  local pair
  for pair in "$@"; do
    [[ "${pair}" == *=* ]] && command -v "${pair%%=*}" >/dev/null && continue
    printf '%s\n' "${pair#*=}"
  done
}

# The package lists of a fresh machine are empty or old, so a refresh comes first; it is the slow part and runs once.
install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  timeout 300 apt-get -q update >&2
  timeout 600 apt-get -qy install --no-install-recommends "$@" >&2
}

check_commands() {
  local pair
  for pair in "$@"; do
    [[ "${pair}" != *=* ]] || command -v "${pair%%=*}" >/dev/null || {
      printf 'package %s is installed, but its command %s is still missing; see the output above\n' "${pair#*=}" "${pair%%=*}" >&2
      return 1
    }
  done
}

main() {
  local listing user
  listing="$(missing_packages "$@" | sort -u)"
  [[ -n "${listing}" ]] || return 0
  local -a packages
  mapfile -t packages <<<"${listing}"
  user="$(id -u)"
  if [[ "${user}" != 0 ]] || ! command -v apt-get >/dev/null; then
    printf 'missing: install %s (or what provides it here), then run this again\n' "${packages[*]}" >&2
    return 1
  fi
  printf 'installing %s\n' "${packages[*]}" >&2
  install_packages "${packages[@]}" </dev/null
  check_commands "$@"
}

main "$@"
exit
