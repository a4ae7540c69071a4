#!/usr/bin/env bash
# A small image with nginx, for the tests and the bench: scripts/nginx-image.sh [remove]
#
# Prints its reference on standard output and makes it once, of this machine's own nginx and the libraries that it loads
# (on Debian `scripts/need.sh nginx=nginx-light` installs it). `remove` takes the reference away again.
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C PATH="${PATH}:/usr/local/sbin:/usr/sbin:/sbin"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root
readonly reference=imagefresh-nginx:1

die() {
  printf 'nginx image: %s\n' "$*" >&2
  exit 1
}

exists() {
  docker image inspect -- "${reference}" >/dev/null 2>&1
}

# Print the files that nginx needs, itself first, a line each.
list_files() {
  local program
  program="$(type -P nginx)" || die 'nginx is missing: install nginx-light (or what provides it here), then run this again'
  printf '%s\n' "${program}"
  ldd "${program}" | grep -oE '/[^ ]+'
}

make_image() {
  local tree files file
  files="$(list_files)"
  tree="$(mktemp -d)"
  # shellcheck disable=SC2064  # the folder of this call
  trap "rm -rf -- '${tree}'" EXIT
  mkdir -p "${tree}"/{etc/nginx,run,tmp,var/log/nginx,var/lib/nginx,var/lock}
  while IFS= read -r file; do
    install -D --mode 0755 -- "${file}" "${tree}${file}"
  done <<<"${files}"
  printf '%s:x:%s::/:/bin/false\n' root 0:0 www-data 33:33 nobody 65534:65534 >"${tree}/etc/passwd"
  printf '%s:x:%s:\n' root 0 www-data 33 nogroup 65534 nobody 65533 >"${tree}/etc/group"
  file="${files%%$'\n'*}"
  tar --create --numeric-owner --owner=0 --group=0 --directory "${tree}" . |
    docker import --change "ENV PATH=${file%/*}" --change "CMD [\"${file}\", \"-g\", \"daemon off;\"]" \
      - "${reference}" >/dev/null
}

# shellcheck disable=SC2310  # questions
main() {
  local environment
  exec 9<"${BASH_SOURCE[0]}"
  flock --timeout 300 9 || die 'another call of this script has held the lock for 300 s; end it, then run this again'
  environment="$("${root}/scripts/engine.sh" env)" || [[ "${1:-}" == remove ]]
  eval "${environment}"
  if [[ "${1:-}" == remove ]]; then
    ! exists || docker image rm -- "${reference}" >/dev/null 2>&1 || printf '%s is still in use; it stays\n' "${reference}" >&2
    return 0
  fi
  exists || make_image
  printf '%s\n' "${reference}"
}

main "$@"
exit
