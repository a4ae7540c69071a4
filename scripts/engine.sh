#!/usr/bin/env bash
# A Docker engine to develop and test with: scripts/engine.sh up|down|status|env
#
#   up      use a reachable engine (DOCKER_HOST, or the default socket); else start a private one below .engine/
#   down    end exactly what `up` started, and remove .engine/; nothing is done to an engine that was there before
#   status  say in one line which engine answers; exit status 1 where none does
#   env     print the export lines of that engine, for eval
#
# The private engine needs root. ENGINE_FLAGS holds extra flags for its dockerd, separated by blanks; ENGINE_SOCKET is
# where an engine is looked for without DOCKER_HOST (default unix:///var/run/docker.sock); ENGINE_STATE is the folder of
# the private engine (default .engine/).
# shellcheck disable=SC2310  # functions called in a condition are questions; none of them relies on errexit
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C PATH="${PATH}:/usr/local/sbin:/usr/sbin:/sbin"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
state="${ENGINE_STATE:-${root}/.engine}"
readonly root state
readonly default_socket="${ENGINE_SOCKET:-unix:///var/run/docker.sock}"
readonly ready_seconds=60 stop_seconds=60

die() {
  printf 'engine: %s\n' "$*" >&2
  exit 1
}

say() {
  printf 'engine: %s\n' "$*" >&2
}

# --- which engine -------------------------------------------------------------------------------------------------

# The address of the private engine, or nothing where there is none.
private_host() {
  if [[ -r "${state}/host" ]]; then cat "${state}/host"; fi
}

answers() {
  local version
  command -v docker >/dev/null || return 1
  version="$(timeout 10 docker --host "$1" version --format '{{.Server.Version}}' 2>/dev/null)" && [[ -n "${version}" ]]
}

# What `env` printed for a private engine that has ended since.
was_private() {
  [[ "$1" == "unix://${state}/"* ]] || [[ "$1" == unix:///tmp/imagefresh-engine.* && ! -e "${1#unix://}" ]]
}

# Set `engine` to the address that answers. A DOCKER_HOST that is dead is the caller's mistake and never silently replaced.
engine=''
find_engine() {
  local own given="${DOCKER_HOST:-}" host
  own="$(private_host)"
  if [[ -n "${given}" && "${given}" != "${own}" ]] && ! was_private "${given}"; then
    answers "${given}" || die "DOCKER_HOST=${given} does not answer; start that engine or unset DOCKER_HOST"
    engine="${given}"
    return 0
  fi
  for host in ${own:+"${own}"} "${default_socket}"; do
    if answers "${host}"; then
      engine="${host}"
      return 0
    fi
  done
  return 1
}

# --- the private engine's process ---------------------------------------------------------------------------------

# Print the pid of our own dockerd. A pid file may be stale and its number someone else's by now: only a dockerd that was
# started with our own data-root is ours.
private_pid() {
  local pid=''
  [[ -r "${state}/pid" ]] || return 1
  pid="$(<"${state}/pid")"
  [[ "${pid}" =~ ^[0-9]+$ ]] && is_ours "${pid}" && printf '%s\n' "${pid}"
}

is_ours() {
  [[ -r "/proc/$1/cmdline" ]] && tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | grep -Fxq -- "${state}/data"
}

# Print the pid of a dockerd on this machine's network, whoever it belongs to.
other_dockerd() {
  local own_network folder name
  own_network="$(readlink /proc/self/ns/net)"
  for folder in /proc/[0-9]*; do
    name="$(cat "${folder}/comm" 2>/dev/null)" || continue
    [[ "${name}" == dockerd ]] || continue
    name="$(readlink "${folder}/ns/net" 2>/dev/null)" || continue
    [[ "${name}" != "${own_network}" ]] || printf '%s\n' "${folder#/proc/}"
  done
}

# Two engines on one network would take the bridge docker0 and its firewall rules from each other.
refuse_second_engine() {
  local other
  [[ -z "${ENGINE_FLAGS:-}" ]] || return 0
  other="$(other_dockerd)"
  [[ -z "${other}" ]] ||
    die "no engine answers, but a dockerd (pid ${other//$'\n'/ }) runs on this machine; set DOCKER_HOST to its socket, or end it"
}

# A unix socket's path has 107 bytes at most: below a long project path all sockets move to a short folder of their own.
choose_host() {
  local folder="${state}"
  ((${#state} <= 64)) || folder="$(mktemp -d /tmp/imagefresh-engine.XXXXXXXX)"
  printf 'unix://%s/docker.sock\n' "${folder}" >"${state}/host.new"
  mv "${state}/host.new" "${state}/host"
  private_host
}

# Print the folder of the sockets, as `choose_host` chose it; that of the exec-root too.
run_folder() {
  local host
  host="$(private_host)"
  host="${host:-unix://${state}/docker.sock}"
  host="${host#unix://}"
  printf '%s\n' "${host%/docker.sock}"
}

start_dockerd() {
  local host="$1" folder
  local -a flags
  read -ra flags <<<"${ENGINE_FLAGS:-}"
  folder="$(run_folder)"
  # Nothing of the caller stays open in the daemon: neither the lock nor a pipe that someone reads to its end.
  setsid nohup dockerd --data-root "${state}/data" --exec-root "${folder}/exec" --host "${host}" \
    --pidfile "${state}/pid" ${flags[@]+"${flags[@]}"} </dev/null >"${state}/log" 2>&1 9>&- &
  wait_ready "${host}" "$!"
}

wait_ready() {
  local host="$1" pid="$2" deadline=$((SECONDS + ready_seconds)) reason
  until answers "${host}"; do
    # A dockerd that has ended already will not answer any more.
    if ((SECONDS >= deadline)) || ! kill -0 "${pid}" 2>/dev/null; then
      reason="$(grep -E '^Status:|level=(error|fatal)|failed' "${state}/log" | tail -n 1)" || reason="$(tail -n 1 "${state}/log")"
      stop_private
      die "dockerd did not get ready: ${reason:-no output}"
    fi
    sleep 0.1
  done
}

gone() {
  local pid deadline=$((SECONDS + stop_seconds))
  for pid in "$@"; do
    while [[ -d "/proc/${pid}" ]] && is_running "${pid}"; do
      ((SECONDS < deadline)) || return 1
      sleep 0.1
    done
  done
}

# A zombie has ended; whoever started it has merely not looked yet.
is_running() {
  local status
  status="$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)" && [[ -n "${status}" && "${status}" != Z ]]
}

# The processes that belong to our engine besides dockerd: its containerd and the shims, known by our own exec-root.
own_children() {
  local folder name sockets
  sockets="$(run_folder)/exec/"
  for folder in /proc/[0-9]*; do
    name="$(cat "${folder}/comm" 2>/dev/null)" || continue
    [[ "${name}" == containerd* ]] || continue
    tr '\0' '\n' <"${folder}/cmdline" 2>/dev/null | grep -Fq -- "${sockets}" && printf '%s\n' "${folder#/proc/}"
  done
  return 0
}

# Every container ends with its engine, and its networks too: what outlives dockerd has nobody to remove it.
end_containers() {
  local ids
  answers "$1" || return 0
  ids="$(private_docker "$1" ps --all --quiet)" || return 0
  # shellcheck disable=SC2086  # IDs, one per line
  [[ -z "${ids}" ]] || private_docker "$1" rm --force --volumes ${ids} >/dev/null || say 'some containers did not end at once'
  ids="$(private_docker "$1" network ls --quiet --filter type=custom)" || return 0
  # shellcheck disable=SC2086  # IDs, one per line
  [[ -z "${ids}" ]] || private_docker "$1" network rm ${ids} >/dev/null || say 'some networks did not go at once'
}

private_docker() {
  timeout "${stop_seconds}" docker --host "$1" "${@:2}"
}

# Where dockerd was killed, its shims still hold containers: end what they hold first, a shim's death would set it free.
end_children() {
  local children child held
  children="$(own_children)"
  [[ -n "${children}" ]] || return 0
  for child in ${children}; do
    held="$(held_by_shim "${child}")"
    [[ -z "${held}" ]] || xargs kill -KILL <<<"${held}" 2>/dev/null || true
  done
  xargs kill -TERM <<<"${children}" 2>/dev/null || true
  # shellcheck disable=SC2086  # numbers, one per line
  gone ${children} || die "processes of the private engine did not end: ${children//$'\n'/ }"
}

held_by_shim() {
  local name
  name="$(cat "/proc/$1/comm" 2>/dev/null)" || return 0
  [[ "${name}" != containerd-shim* ]] || cat "/proc/$1/task/"*/children 2>/dev/null || true
}

stop_private() {
  local pid='' host
  host="$(private_host)"
  [[ -z "${host}" ]] || end_containers "${host}"
  if pid="$(private_pid)"; then
    kill -TERM "${pid}"
    gone "${pid}" || die "dockerd (pid ${pid}) did not end within ${stop_seconds} s; its log is ${state}/log"
  fi
  end_children
  unmount_leftovers
  remove_network
  remove_state
}

# dockerd leaves its bridge and its firewall rules behind. They are ours only where there were none before.
remove_network() {
  local other
  [[ -e "${state}/made-network" ]] || return 0
  other="$(other_dockerd)"
  [[ -z "${other}" ]] || return 0
  if command -v ip >/dev/null; then ip link delete docker0 2>/dev/null || true; fi
  iptables --policy FORWARD ACCEPT
  local table
  for table in filter nat; do
    remove_rules "${table}"
  done
}

remove_rules() {
  local table="$1" listing verb chain
  local -a rule
  listing="$(iptables --table "${table}" --list-rules)"
  while read -ra rule; do
    iptables --table "${table}" --delete "${rule[@]:1}"
  done < <(grep -E '^-A (FORWARD|PREROUTING|OUTPUT|POSTROUTING) .*(DOCKER|docker0)' <<<"${listing}" || true)
  for verb in --flush --delete-chain; do
    while read -r chain; do
      iptables --table "${table}" "${verb}" "${chain}"
    done < <(sed -n 's/^-N \(DOCKER.*\)/\1/p' <<<"${listing}" || true)
  done
}

# Innermost first: a folder that is still mounted must never be removed recursively.
unmount_leftovers() {
  local point sockets
  sockets="$(run_folder)"
  awk '{print $5}' /proc/self/mountinfo | sort -r | while IFS= read -r point; do
    point="$(printf '%b' "${point}")"
    [[ "${point}" == "${state}/"* || "${point}" == "${sockets}/"* ]] || continue
    umount "${point}" || die "could not unmount ${point}; end what uses it, then run this again"
  done
}

remove_state() {
  local sockets
  sockets="$(run_folder)"
  [[ "${sockets}" != /tmp/imagefresh-engine.* ]] || rm -rf --one-file-system -- "${sockets}"
  rm -rf --one-file-system -- "${state}"
}

# --- compose ------------------------------------------------------------------------------------------------------

# Print the DOCKER_CONFIG folder under which `docker compose` works: the caller's own, else one of ours.
find_config() {
  local own="${state}/config" given="${DOCKER_CONFIG:-${HOME:-/root}/.docker}" config
  for config in "${given}" "${own}"; do
    DOCKER_CONFIG="${config}" timeout 20 docker compose version >/dev/null 2>&1 && printf '%s\n' "${config}" && return 0
  done
  return 1
}

provide_compose() {
  local plugin
  find_config >/dev/null && return 0
  plugin="${root}/.venv/bin/docker-compose"
  [[ -x "${plugin}" ]] || plugin="$(command -v docker-compose)" ||
    die "docker compose is not there; run 'make venv' first, or install the Compose plugin"
  mkdir -p "${state}/config/cli-plugins"
  ln -sfn "${plugin}" "${state}/config/cli-plugins/docker-compose"
  find_config >/dev/null || die "${plugin} does not work as 'docker compose'; install the Compose plugin, version 2 or later"
}

# --- the four commands --------------------------------------------------------------------------------------------

up() {
  if ! find_engine; then
    install_engine
    # A package's own service may have started an engine on the default socket by now.
    if ! find_engine; then
      start_private
      engine="$(private_host)"
    fi
  fi
  provide_compose
  say "${engine} answers"
}

# Whatever a package starts must not hold our lock: 9>&-.
install_engine() {
  "${root}/scripts/need.sh" dockerd=docker.io iptables=iptables 9>&- ||
    die "no engine answers on ${default_socket}; start Docker, or install it as the line above says"
  # Since Debian 13 the command line is a package of its own.
  "${root}/scripts/need.sh" docker=docker-cli 9>&-
}

start_private() {
  local user host
  user="$(id -u)"
  [[ "${user}" == 0 ]] || die "no engine answers on ${default_socket}; start Docker, or run this as root for a private one"
  refuse_second_engine
  # Whatever an earlier engine of ours left behind (a crash, a reboot) is ended and removed before a new one starts.
  stop_private
  mkdir -p "${state}"
  grep -q '^ *docker0:' /proc/net/dev || iptables --list-rules DOCKER >/dev/null 2>&1 || touch "${state}/made-network"
  host="$(choose_host)"
  say "starting a private engine below ${state}"
  start_dockerd "${host}"
}

down() {
  local host
  host="$(private_host)"
  [[ -d "${state}" ]] || return 0
  stop_private
  # Without an engine of our own there was only the folder of the Compose plugin.
  [[ -z "${host}" ]] || say 'the private engine is gone'
}

status() {
  find_engine || die "no engine answers; run 'scripts/engine.sh up'"
  printf '%s answers\n' "${engine}"
}

print_env() {
  local config
  find_engine || die "no engine answers; run 'scripts/engine.sh up'"
  config="$(find_config)" || die "docker compose is not there; run 'scripts/engine.sh up'"
  printf 'export %s=%q\n' DOCKER_HOST "${engine}" DOCKER_CONFIG "${config}" \
    IMAGEFRESH_HOST__DOCKER_HOST "${engine}" IMAGEFRESH_HOST__DOCKER_CONFIG "${config}"
}

main() {
  # The script itself is the lock: a file that is never deleted, and one per checkout.
  exec 9<"${BASH_SOURCE[0]}"
  flock --timeout 300 9 || die 'another call of this script has held the lock for 300 s; end it, then run this again'
  case "${1:-}" in
    up) up ;;
    down) down ;;
    status) status ;;
    env) print_env ;;
    *) die 'usage: scripts/engine.sh up|down|status|env' ;;
  esac
}

main "$@"
exit
