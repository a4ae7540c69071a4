#!/usr/bin/env bash
# A small base image with Python: scripts/base-image.sh [remove]
#
# Prints its reference on standard output and makes it once: pulled where a registry answers, else built from the
# packages of this Debian machine's own sources (kept in .cache/, so that the next engine gets it in a moment).
# `remove` takes the reference away again.
# shellcheck disable=SC2310  # functions called in a condition are questions, or one download with a second try
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${root}/.cache"
readonly root cache
readonly reference=imagefresh-base:1 public_base=python:3.12-slim
readonly rootfs="${cache}/base-image-1.tar"
readonly raw_name="imagefresh-base-raw-$$"
readonly pull_seconds=300

die() {
  printf 'base image: %s\n' "$*" >&2
  exit 1
}

say() {
  printf 'base image: %s\n' "$*" >&2
}

exists() {
  docker image inspect -- "${reference}" >/dev/null 2>&1
}

# The engine itself gives up within seconds where no registry answers; the bound is for one that answers and stalls.
pull() {
  say "pulling ${public_base}"
  timeout "${pull_seconds}" docker pull --quiet "${public_base}" >/dev/null 2>&1 </dev/null || return 1
  docker tag "${public_base}" "${reference}"
}

# Let apt resolve the packages as for an empty machine, and take them as they are: no package's script is run, so neither
# root nor a chroot is needed.
download_packages() {
  local folder="$1"
  mkdir -p "${folder}/partial"
  timeout 300 apt-get -qqy -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::State::status=/dev/null \
    -o Dir::Cache::archives="${folder}" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    --no-install-recommends --download-only install python3-minimal libpython3-stdlib busybox-static >&2
}

unpack_packages() {
  local packages="$1" tree="$2" package name
  # The merged layout of today's Debian, which packages of either layout unpack into.
  mkdir -p "${tree}"/{usr/{bin,sbin,lib,lib64},etc,tmp,proc,sys,dev,root,var/tmp,run}
  for name in bin sbin lib lib64; do ln -s "usr/${name}" "${tree}/${name}"; done
  for package in "${packages}"/*.deb; do
    # Package tools have no use in an image without a package database.
    [[ "${package##*/}" != @(dpkg|tar)_* ]] || continue
    # Not `dpkg-deb --extract`: it replaces the links of the merged layout by folders.
    dpkg-deb --fsys-tarfile "${package}" | tar --extract --no-same-owner --keep-directory-symlink --directory "${tree}"
  done
  chmod 1777 "${tree}/tmp" "${tree}/var/tmp"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"${tree}/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"${tree}/etc/group"
  rm -rf "${tree}"/usr/share/{doc,man,lintian,info,bash-completion} "${tree}"/usr/lib/python3*/{lib2to3,pydoc_data,test}
}

add_commands() {
  local tree="$1" applets applet
  applets="$("${tree}/usr/bin/busybox" --list)"
  for applet in ${applets}; do
    [[ -e "${tree}/usr/bin/${applet}" || -L "${tree}/usr/bin/${applet}" ]] || ln -s busybox "${tree}/usr/bin/${applet}"
  done
}

import() {
  docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin' --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' \
    "$1" "$2" >/dev/null
}

# Package scripts were not run, so Python's standard library is not compiled yet; without this every start takes 0.1 s more.
compile_library() {
  local raw="$1" container
  container="$(docker create --name "${raw_name}" --network none "${raw}" sh -c 'python3 -m compileall -q /usr/lib/python3*')"
  docker start --attach "${container}" >&2 || die "Python does not work in the image made of this machine's packages; see above"
  docker export --output "${rootfs}.new" "${container}"
  mv "${rootfs}.new" "${rootfs}"
}

build() {
  local work="$1" raw="${raw_name}:1"
  command -v apt-get dpkg-deb >/dev/null ||
    die "no registry gave ${public_base} and there is no apt here; give the engine access to a registry, or tag any image with python3 as ${reference}"
  say 'building it from Debian packages'
  refresh_lists "${work}/packages"
  unpack_packages "${work}/packages" "${work}/tree"
  add_commands "${work}/tree"
  tar --create --numeric-owner --owner=0 --group=0 --directory "${work}/tree" --file "${work}/raw.tar" .
  import "${work}/raw.tar" "${raw}"
  compile_library "${raw}"
}

# What was needed on the way goes, however far it got.
# shellcheck disable=SC2329  # the trap calls it
clean_up() {
  docker container rm --force --volumes "${raw_name}" >/dev/null 2>&1 || true
  docker image rm --force "${raw_name}:1" >/dev/null 2>&1 || true
  rm -rf -- "$1"
}

# A fresh machine has no package lists yet.
refresh_lists() {
  local user
  download_packages "$1" 2>/dev/null && return 0
  user="$(id -u)"
  [[ "${user}" != 0 ]] || timeout 300 apt-get -q update >&2
  download_packages "$1" || die "could not download the packages of the base image; try 'apt-get update' as root"
}

make_image() {
  local work
  mkdir -p "${cache}"
  if [[ ! -s "${rootfs}" ]]; then
    pull && return 0
    work="$(mktemp -d "${cache}/base-image.XXXXXXXX")"
    # shellcheck disable=SC2064  # the folder of this call
    trap "clean_up '${work}'" EXIT
    build "${work}"
  fi
  import "${rootfs}" "${reference}"
}

main() {
  local environment
  exec 9<"${BASH_SOURCE[0]}"
  flock --timeout 900 9 || die 'another call of this script has held the lock for 900 s; end it, then run this again'
  if [[ "${1:-}" == remove ]]; then
    remove
    return 0
  fi
  environment="$("${root}/scripts/engine.sh" env)"
  eval "${environment}"
  exists || make_image
  printf '%s\n' "${reference}"
}

remove() {
  local environment
  environment="$("${root}/scripts/engine.sh" env 2>/dev/null)" || return 0
  eval "${environment}"
  ! exists || docker image rm -- "${reference}" >/dev/null 2>&1 || say "${reference} is still in use; it stays"
}

main "$@"
exit
