#!/usr/bin/env bash
# A small image with nginx, for the tests and the bench: scripts/nginx-image.sh [remove]
#
# Prints its reference on standard output and makes it once, of this machine's own nginx and the libraries that it loads.
# Where there is none, Debian's is unpacked and not installed: that would serve port 80 of this machine. `remove` takes
# the reference away again.
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

# Print the path of nginx: this machine's own, or one that is unpacked below a FOLDER.
# shellcheck disable=SC2310  # questions
find_nginx() {
  type -P nginx && return 0
  type -P dpkg apt-get >/dev/null || die 'nginx is missing: install what provides it here, then run this again'
  cd -- "$1"
  download_nginx || { timeout 300 apt-get -q update >&2 && download_nginx; } ||
    die 'apt-get cannot download nginx: install it, then run this again'
  dpkg -x nginx_*.deb unpacked
  printf '%s\n' "$1/unpacked/usr/sbin/nginx"
}

download_nginx() {
  timeout 300 apt-get -q -o APT::Sandbox::User=root download nginx >&2
}

# Print the libraries that a PROGRAM loads, a line each.
list_libraries() {
  local loaded
  loaded="$(ldd "$1")"
  [[ "${loaded}" != *'not found'* ]] || die "nginx lacks a library here: ${loaded//[[:space:]]/ }; install nginx-light, then run this again"
  grep -oE '/[^ ]+' <<<"${loaded}"
}

make_image() {
  local folder tree program libraries file
  folder="$(mktemp -d)"
  # shellcheck disable=SC2064  # the folder of this call
  trap "rm -rf -- '${folder}'" EXIT
  tree="${folder}/tree"
  program="$(find_nginx "${folder}")"
  libraries="$(list_libraries "${program}")"
  mkdir -p "${tree}"/{etc/nginx,run,tmp,var/log/nginx,var/lib/nginx,var/lock}
  install -D --mode 0755 -- "${program}" "${tree}/usr/sbin/nginx"
  while IFS= read -r file; do
    install -D --mode 0755 -- "${file}" "${tree}${file}"
  done <<<"${libraries}"
  printf '%s:x:%s::/:/bin/false\n' root 0:0 www-data 33:33 nobody 65534:65534 >"${tree}/etc/passwd"
  printf '%s:x:%s:\n' root 0 www-data 33 nogroup 65534 nobody 65533 >"${tree}/etc/group"
  tar --create --numeric-owner --owner=0 --group=0 --directory "${tree}" . |
    docker import --change 'ENV PATH=/usr/sbin' --change 'CMD ["nginx", "-g", "daemon off;"]' \
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
