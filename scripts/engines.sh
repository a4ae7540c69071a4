#!/usr/bin/env bash
# Other engines and builders to test with, on Debian 12 as root: scripts/engines.sh list | up NAME | down [NAME] | run NAME COMMAND...
#
#   list  print the names, one per line
#   up    install and start what NAME needs; nothing where it is up already
#   down  end exactly what `up` started for NAME, or for every name; what was downloaded stays in .cache/
#   run   run a command on the network of NAME's engine, with DOCKER_HOST, DOCKER_CONFIG, ENGINE_NAME
#         and the docker client of NAME first on PATH
#
#   classic             the engine of scripts/engine.sh, a client without BuildKit: the classic builder
#   buildkit            the engine of scripts/engine.sh, its own client of version 20.10, which has BuildKit built in
#   buildx              the engine of scripts/engine.sh, a client with buildx
#   docker26            dockerd 26.1 with its classic image store, buildx
#   containerd          dockerd 26.1 with the containerd image store, buildx
#   containerd-classic  the same without buildx: the classic builder
#   podman              podman's Docker-compatible socket, a client with buildx
#
# dockerd 26.1 and podman each have a network namespace of their own: two engines on one network would take each other's
# firewall rules. Their ports are published in there, so what talks to them has to run there, too: `run`.
# shellcheck disable=SC2310  # functions called in a condition are questions; none of them relies on errexit
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C PATH="${PATH}:/usr/local/sbin:/usr/sbin:/sbin"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root
readonly cache="${root}/.cache/engines"
readonly names=(classic buildkit buildx docker26 containerd containerd-classic podman)
# Debian 13 has dockerd and client 26.1; Compose wants a newer buildx, which unstable has. All of them run on Debian 12.
readonly client="${cache}/trixie/usr/bin/docker" old_client=/usr/bin/docker
readonly buildx="${cache}/sid/usr/libexec/docker/cli-plugins/docker-buildx"
readonly ready_seconds=60 stop_seconds=60

die() {
  printf 'engines: %s\n' "$*" >&2
  exit 1
}

say() {
  printf 'engines: %s\n' "$*" >&2
}

# --- packages of other suites ---------------------------------------------------------------------------------------

# Write this machine's own package sources, with another suite in the place of its own: SUITE FOLDER.
write_sources() {
  local own file
  own="$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ ! -e "${file}" ]] || awk -v own="${own}" -v suite="$1" '
      BEGIN { RS = ""; FS = "\n" }
      {
        wanted = 0
        for (i = 1; i <= NF; i++) if ($i ~ "^Suites:(.*[ \t])?" own "([ \t]|$)") { $i = "Suites: " suite; wanted = 1 }
        if (wanted) { for (i = 1; i <= NF; i++) print $i; print "" }
      }' "${file}"
  done >"$2/own.sources"
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ ! -e "${file}" ]] || awk -v own="${own}" -v suite="$1" '
      $1 == "deb" { for (i = 2; i < NF; i++) if ($i == own) { $i = suite; print } }' "${file}"
  done >"$2/own.list"
}

# Unpack packages of another suite into .cache/engines/SUITE: SUITE PACKAGE...
provide_packages() {
  local suite="$1" folder="${cache}/$1" work package
  [[ ! -d "${folder}" ]] || return 0
  mkdir -p "${cache}"
  rm -rf -- "${cache}"/apt.* # of a call that failed
  work="$(mktemp -d "${cache}/apt.XXXXXXXX")"
  mkdir -p "${work}"/{parts,lists/partial,packages,tree}
  write_sources "${suite}" "${work}/parts"
  local -a apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="${work}/parts"
    -o Dir::State::Lists="${work}/lists" -o Dir::Cache="${work}" -o APT::Sandbox::User=)
  say "downloading ${*:2} of ${suite}"
  timeout 300 "${apt[@]}" update >&2
  (cd "${work}/packages" && timeout 300 "${apt[@]}" download "${@:2}" >&2)
  for package in "${work}"/packages/*.deb; do
    dpkg-deb --extract "${package}" "${work}/tree"
  done
  mv "${work}/tree" "${folder}"
  rm -rf -- "${work}"
}

# --- clients ---------------------------------------------------------------------------------------------------------

# Print the folder of DOCKER_CONFIG: NAME. Of the plugins, each name has the ones that it is about.
config_of() {
  case "$1" in
    classic | buildkit | containerd-classic) printf '%s\n' "${cache}/config-plain" ;;
    *) printf '%s\n' "${cache}/config-buildx" ;;
  esac
}

# Print the folder that holds the docker client of NAME, and nothing else of its package's folder.
client_of() {
  if [[ "$1" == buildkit ]]; then printf '%s\n' "${cache}/client-20.10"; else printf '%s\n' "${cache}/client-26.1"; fi
}

provide_clients() {
  local folder compose="${root}/.venv/bin/docker-compose"
  [[ -x "${compose}" ]] || die "${compose} is not there; run 'make venv' first"
  provide_packages trixie docker.io docker-cli containerd
  provide_packages sid docker-buildx
  for folder in config-plain config-buildx; do
    mkdir -p "${cache}/${folder}/cli-plugins"
    ln -sfn "${compose}" "${cache}/${folder}/cli-plugins/docker-compose"
  done
  ln -sfn "${buildx}" "${cache}/config-buildx/cli-plugins/docker-buildx"
  mkdir -p "${cache}/client-20.10" "${cache}/client-26.1"
  ln -sfn "${old_client}" "${cache}/client-20.10/docker"
  ln -sfn "${client}" "${cache}/client-26.1/docker"
}

# --- engines ---------------------------------------------------------------------------------------------------------

# Print what NAME's engine is called: several names share one.
engine_of() {
  case "$1" in
    classic | buildkit | buildx) printf 'own\n' ;;
    containerd-classic) printf 'containerd\n' ;;
    *) printf '%s\n' "$1" ;;
  esac
}

state_of() {
  printf '%s/%s\n' "${cache}" "$1"
}

# The network namespace of an engine: ENGINE. Its name tells checkouts apart.
network_of() {
  local sum
  sum="$(cksum <<<"${root}")"
  printf 'imagefresh-%s-%s\n' "${sum%% *}" "$1"
}

# Run a command on the network of an engine: ENGINE COMMAND... Not `ip netns exec`, which hides the mounts of cgroups.
inside() {
  local network
  network="$(network_of "$1")"
  nsenter --net="/run/netns/${network}" "${@:2}"
}

provide_network() {
  local network
  network="$(network_of "$1")"
  [[ -e "/run/netns/${network}" ]] || ip netns add "${network}"
  ip -n "${network}" link set lo up
}

remove_network() {
  local network
  network="$(network_of "$1")"
  [[ ! -e "/run/netns/${network}" ]] || ip netns delete "${network}"
}

# scripts/engine.sh for a dockerd 26.1 of its own: ENGINE up|down.
dockerd26() {
  local state snapshotter=false
  state="$(state_of "$1")"
  mkdir -p "${state}"
  [[ "$1" != containerd ]] || snapshotter=true
  printf '{"features": {"containerd-snapshotter": %s}}\n' "${snapshotter}" >"${state}/daemon.json"
  inside "$1" env --unset=DOCKER_HOST PATH="${cache}/trixie/usr/sbin:${cache}/trixie/usr/bin:${PATH}" \
    DOCKER_CONFIG="${cache}/config-buildx" ENGINE_STATE="${state}/engine" ENGINE_SOCKET="unix://${state}/none.sock" \
    ENGINE_FLAGS="--config-file ${state}/daemon.json" "${root}/scripts/engine.sh" "$2"
}

# Print the pid of our own podman service: a pid file may be stale, and its number someone else's by now.
podman_pid() {
  local state pid=''
  state="$(state_of podman)"
  [[ -r "${state}/pid" ]] || return 1
  pid="$(<"${state}/pid")"
  [[ "${pid}" =~ ^[0-9]+$ ]] || return 1
  tr '\0' '\n' <"/proc/${pid}/cmdline" 2>/dev/null | grep -Fxq -- "unix://${state}/docker.sock" && printf '%s\n' "${pid}"
}

podman_answers() {
  timeout 10 "${client}" --host "unix://$1/docker.sock" version >/dev/null 2>&1
}

# Leave podman with our own storage on our own network in `own_podman`. nsenter and env become podman and keep the pid.
own_podman=()
find_own_podman() {
  local state network
  state="$(state_of podman)"
  network="$(network_of podman)"
  own_podman=(nsenter "--net=/run/netns/${network}" env "CONTAINERS_CONF=${state}/containers.conf"
    podman --root "${state}/data" --runroot "${state}/run" --tmpdir "${state}/tmp")
}

start_podman() {
  local state deadline=$((SECONDS + ready_seconds))
  state="$(state_of podman)"
  mkdir -p "${state}"
  ! podman_answers "${state}" || return 0
  find_own_podman
  printf '%s\n' '[containers]' 'log_driver = "k8s-file"' '[engine]' 'cgroup_manager = "cgroupfs"' \
    'events_logger = "file"' 'runtime = "runc"' '[network]' "network_config_dir = \"${state}/networks\"" \
    >"${state}/containers.conf"
  setsid nohup "${own_podman[@]}" system service --time=0 "unix://${state}/docker.sock" </dev/null >"${state}/log" 2>&1 9>&- &
  printf '%s\n' "$!" >"${state}/pid"
  until podman_answers "${state}"; do
    ((SECONDS < deadline)) || die "podman did not get ready: $(tail -n 1 "${state}/log" || true)"
    sleep 0.1
  done
}

stop_podman() {
  local pid='' state deadline=$((SECONDS + stop_seconds))
  state="$(state_of podman)"
  find_own_podman
  "${own_podman[@]}" rm --all --force --time 0 >/dev/null || say 'some containers did not end at once'
  if pid="$(podman_pid)"; then
    kill -TERM "${pid}"
    while [[ -d "/proc/${pid}" ]]; do
      ((SECONDS < deadline)) || die "podman (pid ${pid}) did not end within ${stop_seconds} s; its log is ${state}/log"
      sleep 0.1
    done
  fi
}

start_engine() {
  case "$1" in
    own) "${root}/scripts/engine.sh" up 9>&- ;;
    podman)
      provide_network podman
      start_podman
      ;;
    *)
      provide_network "$1"
      dockerd26 "$1" up
      ;;
  esac
}

stop_engine() {
  local state
  state="$(state_of "$1")"
  [[ "$1" != own && -d "${state}" ]] || return 0
  provide_network "$1"
  if [[ "$1" == podman ]]; then stop_podman; else dockerd26 "$1" down; fi
  remove_network "$1"
  unmount_below "${state}"
  rm -rf --one-file-system -- "${state}"
  say "$1 is gone"
}

# Innermost first: a folder that is still mounted must never be removed recursively.
unmount_below() {
  local point
  awk '{print $5}' /proc/self/mountinfo | sort -r | while IFS= read -r point; do
    point="$(printf '%b' "${point}")"
    [[ "${point}" != "$1/"* ]] || umount "${point}" || die "could not unmount ${point}; end what uses it, then run this again"
  done
}

# --- the commands ----------------------------------------------------------------------------------------------------

up() {
  local user engine
  user="$(id -u)"
  [[ "${user}" == 0 ]] || die 'network namespaces and engines of their own need root; run this as root'
  ((${#cache} <= 60)) || die "${root}: expected a path of at most 45 characters, since sockets lie below it, observed more; move it"
  [[ "${cache}" != *[[:space:]]* ]] || die "${root}: expected a path without blanks, observed one; move it"
  engine="$(engine_of "$1")"
  "${root}/scripts/need.sh" dockerd=docker.io iptables=iptables ip=iproute2 nsenter=util-linux 9>&-
  [[ "${engine}" != podman ]] || "${root}/scripts/need.sh" podman=podman runc=runc 9>&-
  provide_clients
  start_engine "${engine}"
}

down() {
  local engine wanted=''
  [[ -z "${1:-}" ]] || wanted="$(engine_of "$1")"
  for engine in docker26 containerd podman; do
    [[ -n "${wanted}" && "${engine}" != "${wanted}" ]] || stop_engine "${engine}"
  done
}

# Print the address of NAME's engine.
host_of() {
  local engine environment
  engine="$(engine_of "$1")"
  case "${engine}" in
    own)
      environment="$("${root}/scripts/engine.sh" env)"
      sed -n 's/^export DOCKER_HOST=//p' <<<"${environment}"
      ;;
    podman) printf 'unix://%s/podman/docker.sock\n' "${cache}" ;;
    *) cat "${cache}/${engine}/engine/host" ;;
  esac
}

# Become the command: NAME COMMAND...
run_with() {
  local engine network host config folder
  engine="$(engine_of "$1")"
  network="$(network_of "${engine}")"
  host="$(host_of "$1")"
  config="$(config_of "$1")"
  folder="$(client_of "$1")"
  local -a enter=(nsenter "--net=/run/netns/${network}")
  [[ "${engine}" != own ]] || enter=()
  exec ${enter[@]+"${enter[@]}"} env ENGINE_NAME="$1" DOCKER_HOST="${host}" DOCKER_CONFIG="${config}" \
    PATH="${folder}:${PATH}" "${@:2}" 9>&-
}

main() {
  (($# < 2)) || [[ "$1" == list || (-n "$2" && " ${names[*]} " == *" $2 "*) ]] ||
    die "no engine is called '$2'; there are: ${names[*]}"
  exec 9<"${BASH_SOURCE[0]}"
  case "${1:-}:$#" in
    list:1) printf '%s\n' "${names[@]}" ;;
    up:2) lock && up "$2" ;;
    down:1 | down:2) lock && down "${@:2}" ;;
    run:[3-9] | run:[1-9][0-9]*) run_with "${@:2}" ;;
    *) die 'usage: scripts/engines.sh list | up NAME | down [NAME] | run NAME COMMAND...' ;;
  esac
}

# The script itself is the lock: a file that is never deleted, and one per checkout.
lock() {
  flock --timeout 900 9 || die 'another call of this script has held the lock for 900 s; end it, then run this again'
}

main "$@"
exit
