#!/bin/bash -p
# shellcheck disable=SC2154 # the variables of the contract come from the caller's environment
#
# Build, try and promote one image on one Docker host, or refuse and say why.
# Modes, variables, exit statuses: --help here, and docs/deploy-hook.md in full.

# Constants of the installed file. Whoever installs the hook may edit them; no caller can.
readonly SAFE_PATH='/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
readonly ENGINE='unix:///var/run/docker.sock'
readonly DOCKER_CONFIG_DIR=''
readonly TEMP_DIR='/var/tmp'
readonly POLICY_DIR='/etc/imagefresh'

set -Eeuo pipefail
shopt -s inherit_errexit
# bash 5.2 reads a & in ${x//a/b} as "what matched"; older ones do not know the option.
shopt -u patsub_replacement 2>/dev/null || :

readonly CONTRACT=1
readonly LABEL='org.opencontainers.image.revision'
# The revision of the scratch images of --self-test.
readonly TEST_REVISION='5e1f7e575e1f7e575e1f7e575e1f7e575e1f7e57'
# Seconds: a question to the engine; compose recreating one service, its stop grace period included; waiting for a lock,
# in slices after which the caller is heeded again; how long a lease outlives the last word of its caller.
readonly QUICK=30 RECREATE=300 BUILD_WAIT=600 PROMOTE_WAIT=120 SLICE=5 SILENCE=20
readonly OUTPUT_LIMIT=1048576
# Seconds that whoever a policy wants to be told of an outcome may take.
readonly NOTIFY_LIMIT=10
# Images that production ran before and that nothing prunes, unless the policy says otherwise.
readonly DEFAULT_KEEP=3
# Seconds that a container may still work after the proxy has left it, unless the caller says otherwise.
readonly DEFAULT_DRAIN=10
# Bytes that a caller may send as a pack.
readonly PACK_LIMIT=4294967296
# Characters of VERDICT; seconds by which the clock of whoever signed it may be ahead; seconds that it is good for, unless
# the policy says otherwise.
readonly VERDICT_LIMIT=6000 CLOCK_SKEW=60 DEFAULT_MAX_AGE=86400
readonly NAMESPACE='imagefresh'

readonly COMMON_VARIABLES='REPO RUN_ID LEASE COMPOSE_DIR HEALTH_PATH HEALTH_TIMEOUT SETTLE'
readonly STAGING_VARIABLES='GIT_SHA BUILD_CONTEXT BUILD_SUBDIR BUILD_DOCKERFILE BUILD_TARGET BUILD_ARGS TARGET_IMAGE
  TARGET_SERVICE TARGET_PORT COMPOSE_PROFILE STAGING_CONTAINER STAGING_CHECK_COMMAND STAGING_CHECK_PATH
  STAGING_CHECK_MODE BUILD_TIMEOUT CHECK_TIMEOUT'
readonly PROMOTION_VARIABLES='SOURCE_IMAGE EXPECTED_REVISION EXPECTED_IMAGE_ID VERDICT PROD_IMAGE PROD_SERVICE PROD_PORT
  PROD_PROFILE PROD_PIN PRECHECK PROD_PROXY PROD_PROXY_PORT PROD_DRAIN'
readonly OPERATION_VARIABLES='REASON HISTORY_LIMIT'

readonly OBSERVATION_VARIABLES='OBSERVE OBSERVE_IMAGE OBSERVE_PATHS'
readonly OBSERVE_WORD='(engine|image|container|production|owners|changes|places|archive|answer|silence|log)'
# Of --observe: seconds for an archive out of an image, and lines of a log.
readonly CONTENT=300 LOG_LINES=500
# Of the pause proof: fresh connections to each address, addresses for a wildcard at most, seconds for an answer before it,
# milliseconds of silence at least and of everything at most; then a paused container runs again, whatever has become of
# this process.
readonly CONNECTIONS=5 MOST_ADDRESSES=32 PATIENCE=1 LEAST_SILENCE=300 DEADMAN=3000

# What a key that is bound to one target may ask for (--ssh): a mode that is in no list is out of its reach.
readonly GATE_MODES='--build-staging --observe --verify --lease --self-test --status --history --contract'
readonly PROMOTE_MODES='--verify --promote --rollback --recover --lease --status --history --contract'
# Bytes of its whole request, and what they may be: nothing of this means anything to a shell that is not even asked.
readonly REQUEST_LIMIT=8192
readonly REQUEST_PATTERN='^[A-Za-z0-9 ._/:@%+=,~?&-]+$'

# What is looked at of a container, a line each.
# shellcheck disable=SC2016 # the engine's template variables, not ours
readonly CONTAINER_FORMAT='{{.Id}}
{{.Name}}
{{.Image}}
{{.State.Status}}
{{.State.ExitCode}}
{{.State.StartedAt}}
{{.RestartCount}}
{{.HostConfig.NetworkMode}}
{{with index .State "Health"}}{{.Status}}{{end}}
{{range $port, $hosts := .NetworkSettings.Ports}}{{range $hosts}}{{$port}}|{{.HostIp}}|{{.HostPort}} {{end}}{{end}}.'

# What a container has of its image unless the compose file says otherwise, a line each, and behind that where something is
# mounted; the same of an image.
# shellcheck disable=SC2016 # the engine's template variables, not ours
readonly STARTS_FORMAT='{{with .Config}}{{json .Entrypoint}}
{{json .Cmd}}
{{json .User}}
{{end}}' MOUNTS_FORMAT='{{range .Mounts}}{{println .Destination}}{{end}}' \
  VOLUMES_FORMAT='{{with .Config}}{{range $path, $_ := .Volumes}}{{println $path}}{{end}}{{end}}'

# The same of production for a caller who may not reach the engine: without its environment, where secrets are.
# shellcheck disable=SC2016 # the engine's template variables, not ours
readonly PRODUCTION_FORMAT='{"Id":{{json .Id}},"Name":{{json .Name}},"Image":{{json .Image}},"Path":{{json .Path}},
"Args":{{json .Args}},"RestartCount":{{json .RestartCount}},"State":{"Status":{{json .State.Status}},
"StartedAt":{{json .State.StartedAt}},"Health":{{with index .State "Health"}}{"Status":{{json .Status}}}{{else}}null{{end}}},
"Config":{"Labels":{{json (index .Config "Labels")}},"User":{{json (index .Config "User")}},
"WorkingDir":{{json (index .Config "WorkingDir")}}},
"HostConfig":{{json .HostConfig}},"Mounts":{{json .Mounts}},"NetworkSettings":{"Ports":{{json .NetworkSettings.Ports}},
"Networks":{{json .NetworkSettings.Networks}}}},'

# Asks a port once: ADDRESS PORT PATH SECONDS. Prints the address and after how many milliseconds a byte came, any byte.
# shellcheck disable=SC2016 # expanded by the inner shell
readonly KNOCK='
now() {
  REPLY=${EPOCHREALTIME-}
  [[ -n "${REPLY}" ]] || REPLY=$(date +%s%6N)
  REPLY=${REPLY/[.,]/}
}
now
start=${REPLY}
exec 3<>"/dev/tcp/$1/$2" || exit 0
printf "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" "$3" >&3
IFS= read -r -d "" -n 1 -t "$4" -u 3 _ || exit 0
now
echo "$1 $(((REPLY - start) / 1000))"'

# Ends a pause after SECONDS, or at once when it is told to end; USR1 disarms it: SOCKET CONTAINER SECONDS.
# shellcheck disable=SC2016 # expanded by the inner shell
readonly END_PAUSE='cd /
trap '\''kill "$!"; curl -q -s --noproxy "*" --max-time 5 -X POST -o /dev/null --unix-socket "$1" \
  "http://engine/containers/$2/unpause"'\'' EXIT
trap exit HUP TERM
trap '\''trap - EXIT; kill "$!"; exit'\'' USR1
sleep "$3" &
wait'

readonly HEX40='[0-9a-f]{40}' HEX64='[0-9a-f]{64}'
readonly IMAGE_ID_PATTERN='sha256:[0-9a-f]{64}'
readonly REPO_PATTERN='[A-Za-z0-9][A-Za-z0-9._-]{0,99}'
readonly NAME_PATTERN='[A-Za-z0-9][A-Za-z0-9_.-]{0,127}'
readonly SECONDS_PATTERN='[0-9]{1,6}(\.[0-9]{1,6})?'
# Source: the grammar of references in distribution/reference, without digests.
readonly PATH_COMPONENT='[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*'
readonly DOMAIN='[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?' TAG=':[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}'
readonly REFERENCE_PATTERN="(${DOMAIN}/)?${PATH_COMPONENT}(/${PATH_COMPONENT})*(${TAG})?"
# A printable ASCII run or one well-formed UTF-8 sequence (Unicode 15, table 3-7), byte by byte under LC_ALL=C.
readonly UTF8_1=$'[ -~]+|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}'
readonly UTF8_2=$'\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}'
readonly UTF8_3=$'[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}'
# One entry of the history, as `history_entry` writes it.
readonly ENTRY_PATTERN='^\{"time":"[0-9TZ:-]+"(,"[a-z_]+":"([^"\[:cntrl:]]|\\["\])*")+\}$'
readonly UTF8_PATTERN="^(${UTF8_1}|${UTF8_2}|${UTF8_3})"
readonly RUN_ID_PATTERN='[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}'
readonly PRINCIPAL_PATTERN='[A-Za-z0-9][A-Za-z0-9_.@+-]{0,254}'
# One key of an allowed_signers file: no wildcards, no certificates, our namespace and at most a time of validity.
readonly KEY_TIME=',valid-(after|before)="[0-9]{8,14}Z?"'
readonly SIGNER_PATTERN="^${PRINCIPAL_PATTERN}(,${PRINCIPAL_PATTERN})* namespaces=\"${NAMESPACE}\"(${KEY_TIME}){0,2}\
 [a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [ -~]*)?\$"

usage() {
  cat <<'TEXT'
usage: deploy-hook.sh --build-staging | --observe | --verify | --promote | --rollback | --recover | --lease | --self-test
                      | --status | --history | --freeze | --unfreeze | --break-glass | --contract | --help
       deploy-hook.sh --ssh --target NAME --allow gate|promote [--key FINGERPRINT]

  --build-staging  build GIT_SHA, recreate staging from it, wait for health, run the staging check
  --observe        what this host and its engine say of staging and production, for those who may not ask them
  --verify         every check of --promote; changes nothing
  --promote        verify, recreate production from the image ID, tag last; also without an argument
  --rollback       recreate production from the image that it ran before, or from an older one that is kept
  --recover        finish or undo a change of production that was interrupted; for boot and a timer
  --lease          hold the lock for a whole run, as long as a line arrives on standard input every 5 s
  --self-test      prove with scratch images that --verify refuses what it must refuse, and accepts what is right
  --status         tell what runs in production and staging, whether it was proven, and what is kept, open or frozen
  --history        tell the last decisions in this compose folder
  --freeze         let --verify and --promote refuse from now on, for a reason
  --unfreeze       end that
  --break-glass    promote an image by its ID past every proof, for a reason, where the host's policy allows that
  --ssh            for command= of authorized_keys: one of these modes and its variables, as MODE KEY=value ..., out of
                   SSH_ORIGINAL_COMMAND, bound to the policy NAME of this host
  --contract       print the version of this contract
  --help           print this text

Everything else comes in variables:
  always     REPO RUN_ID COMPOSE_DIR [LEASE]; of these --recover needs COMPOSE_DIR alone
  to run or judge an image  HEALTH_PATH HEALTH_TIMEOUT SETTLE
  staging    GIT_SHA BUILD_CONTEXT [BUILD_SUBDIR BUILD_DOCKERFILE BUILD_TARGET BUILD_ARGS] TARGET_IMAGE TARGET_SERVICE
             TARGET_PORT COMPOSE_PROFILE STAGING_CONTAINER STAGING_CHECK_COMMAND or STAGING_CHECK_PATH
             [STAGING_CHECK_MODE] BUILD_TIMEOUT CHECK_TIMEOUT [PROD_IMAGE PROD_SERVICE PROD_PORT PROD_PROXY]
  promotion  SOURCE_IMAGE [EXPECTED_REVISION EXPECTED_IMAGE_ID VERDICT] PROD_IMAGE PROD_SERVICE PROD_PORT
             [PROD_PROFILE PROD_PIN PRECHECK] [PROD_PROXY PROD_PROXY_PORT PROD_DRAIN: nginx before production]
  rollback   [SOURCE_IMAGE: the ID of an image that is kept] PROD_IMAGE PROD_SERVICE PROD_PORT, and what is optional there
  observe    OBSERVE [OBSERVE_IMAGE OBSERVE_PATHS] TARGET_IMAGE TARGET_SERVICE TARGET_PORT COMPOSE_PROFILE
             STAGING_CONTAINER PROD_IMAGE PROD_SERVICE PROD_PORT
  self-test  as promotion, without SOURCE_IMAGE, EXPECTED_REVISION, EXPECTED_IMAGE_ID and VERDICT
  status     PROD_IMAGE PROD_SERVICE PROD_PORT [PROD_PROFILE PROD_PIN PROD_PROXY PROD_PROXY_PORT]
             [TARGET_IMAGE TARGET_SERVICE]
  history    [HISTORY_LIMIT]
  freeze     REASON: base64 of a text, a NUL byte after it
  break-glass  as promotion, with REASON, SOURCE_IMAGE being an image ID, without EXPECTED_REVISION and EXPECTED_IMAGE_ID
With BUILD_CONTEXT=- standard input brings the commit as one pack of git.

exit 0 done, 1 refused, 2 wrong usage, 3 rolled back, 4 production needs a person, 11 could not find out
TEXT
}

# --- What the run knows so far ---------------------------------------------------------------------------------------

reset_state() {
  # For the JSON line.
  MODE='' IMAGE_ID='' TREE='' REVISION='' CONTAINER_ID='' ENGINE_ID='' CHECK_STATUS='' CHECK_FILE='' STEP_TIMES=''
  PREVIOUS_ID='' COMPOSE_SHA256='' VERDICT_STATE=''
  # "before" production changed, "swapping" it, or "rolling-back": decides what a refusal means. "asking": that of a subshell.
  PHASE='before'
  CONCLUDED='' STEP='' STEP_START=0 FAILURE=''
  # What tidy_up has to undo. BEGUN: the processes of commands that work beside others, by name.
  declare -gA BEGUN=()
  WORK='' CHILD='' READERS=() RUN_TAG='' CHECKING='' HOLDER='' PIN_DRAFT='' WATCHER='' NOTE=''
  # Of --lease: its token, and since when it is held and the caller was last heard, in milliseconds.
  TOKEN='' LEASED=0 HEARD=0
  # Of --observe: what was observed, files of $WORK; a container that is only read, a pause that must end and who ends it.
  OBSERVED=() BOX='' PAUSED='' DEADMAN_PID='' ADDRESSES=() LISTENERS='' OWN_ADDRESSES='' STAGED=''
  # Of --self-test: its scratch images, its cases as PID, name and cause, and what they ended with.
  SCRATCH=() LABELLED='' UNLABELLED='' CASES=() CASE_RESULTS='' SIGNED_AT=''
  # Answers of the functions below: bash cannot hand back a value and keep errexit.
  REPLY='' STATUS=0 NOW=0 ANSWER='' STARTED_AT=''
  PREVIOUS_TAG_ID='' PIN_FILE='' PIN_TEXT='' PIN_LINE='' COMMITTED='' TAGGING=''
  # Of the journal: 1 while this run has one open, and what it says; the images that are kept.
  JOURNAL_FILE='' JOURNALED='' PRESERVED=()
  declare -gA JOURNAL=()
  SEEN_ID='' SEEN_REVISION='' CHECK_COMMAND=() BUILD_ITEMS=() LFS_PATHS=() CHILD_ENV=()
  # What is decided on; see DECISION. SIGNERS_UID must own the file of those who may sign.
  declare -gA POLICY=() POLICIES=() FACT=() SIGNED=()
  POLICED='' POLICY_NAMES=() CLAIMS=() SIGNERS_UID=0 LEDGER=''
  COMPOSE_READER=(docker compose)
  IMAGE_STORE='' LISTS=0 WHOLE_TREE='' INDEX='' METADATA='' MOVED='' AGAIN='' PRECHECKING=''
  # Of a proxy: its container while it runs, where it answers, its workers; the image that was started beside production, the
  # containers that were there before that, and the one that was started.
  PROXY_ID='' PROXY_ADDRESS='' PROXY_STARTED='' WORKERS='' BESIDE='' STANDING='' RAISED=''
  # Of the audit: who asks (the fingerprint of a key, where there is one), what could not be written, and 1 in a case of
  # --self-test, which decides nothing.
  WHO='' UNRECORDED='' REHEARSAL='' STATE=''
  # The decision as the history has it, and who else gets it.
  ENTRY='' NOTIFIERS=()
  # Of --history and --status: what goes into the JSON line; who froze production and why; the last promotion.
  ENTRIES='' SITUATION='' FROZEN_FILE='' FROZEN='' REASON_TEXT='' LAST_PROMOTION=''
}

# --- Speaking --------------------------------------------------------------------------------------------------------

# Say one line to people. A caller who no longer listens ends the run, as long as production is untouched.
say() {
  local line="imagefresh: $*"
  printf '%s\n' "${line//[[:cntrl:]]/ }" 2>/dev/null >&4 ||
    [[ "${PHASE}" != before || -n "${CONCLUDED}" ]] ||
    interrupted PIPE
}

# Announce a step as it starts; its name is a key of "seconds" in the JSON line.
step() {
  end_step
  heed_lease
  STEP="${AGAIN}$1"
  [[ "${PHASE}" != rolling-back ]] || STEP="rollback-${STEP}"
  STEP_START=${NOW}
  say "step: $2"
}

end_step() {
  now
  [[ -n "${STEP}" ]] || return 0
  local taken=$((NOW - STEP_START)) pair
  printf -v pair '"%s":%d.%03d' "${STEP}" $((taken / 1000)) $((taken % 1000))
  STEP_TIMES+=${STEP_TIMES:+,}${pair}
  STEP=''
}

# Leave the time in NOW, in milliseconds.
now() {
  local moment=${EPOCHREALTIME-}
  if [[ -n "${moment}" ]]; then
    NOW=$((${moment/[.,]/} / 1000))
  else
    NOW=$(date +%s%3N) # bash 4.4 has no EPOCHREALTIME
  fi
}

# Leave in REPLY what is left of a text when control characters and bytes that are no UTF-8 are dropped.
keep_utf8() {
  local rest=${1//[[:cntrl:]]/}
  REPLY=''
  while [[ -n "${rest}" ]]; do
    if [[ "${rest}" =~ ${UTF8_PATTERN} ]]; then
      REPLY+=${BASH_REMATCH[0]}
      rest=${rest:${#BASH_REMATCH[0]}}
    else
      rest=${rest:1}
    fi
  done
}

# Leave "KEY":"TEXT" in REPLY.
json_pair() {
  local backslash=\\ quote=\"
  keep_utf8 "${2:0:4000}"
  REPLY=${REPLY//"${backslash}"/"${backslash}${backslash}"}
  REPLY="${quote}$1${quote}:${quote}${REPLY//"${quote}"/"${backslash}${quote}"}${quote}"
}

# Print the one line of standard output: KIND CAUSE REASON.
print_result() {
  local line ok=false pair output=''
  [[ "$1" != 'done' ]] || ok=true
  json_pair mode "${MODE}"
  line="{${REPLY},\"ok\":${ok}"
  for pair in "kind=$1" "cause=$2" "reason=$3" "revision=${REVISION}" "tree=${TREE}" "image_id=${IMAGE_ID}" \
    "container_id=${CONTAINER_ID}" "engine_id=${ENGINE_ID}" "prod_runs=${PREVIOUS_ID}" \
    "compose_sha256=${COMPOSE_SHA256}" "verdict=${VERDICT_STATE}"; do
    json_pair "${pair%%=*}" "${pair#*=}"
    line+=",${REPLY}"
  done
  [[ ! -f "${CHECK_FILE}" ]] || output=$(head -c "${OUTPUT_LIMIT}" <"${CHECK_FILE}" | base64 -w 0)
  line+=",\"seconds\":{${STEP_TIMES}},\"check_status\":${CHECK_STATUS:-null},\"check_output\":\"${output}\""
  line+=",\"history\":[${ENTRIES}],\"status\":{${SITUATION}}"
  line+=",\"cases\":{${CASE_RESULTS}},\"observed\":{"
  [[ "${ok}" == true ]] || OBSERVED=()
  {
    printf '%s' "${line}"
    print_observed
    printf '}}\n'
  } >&3 2>/dev/null
}

# Each observation as base64 of its file: one may be larger than what a variable should hold.
print_observed() {
  local name comma=''
  for name in "${OBSERVED[@]}"; do
    printf '%s"%s":"' "${comma}" "${name}"
    base64 -w 0 <"${WORK}/observed.${name}"
    printf '"'
    comma=,
  done
}

# --- Ending ----------------------------------------------------------------------------------------------------------

# We know, and it is no: CAUSE OBSERVED ADVICE. Once production is changing, a no means: back to the previous image.
refuse() {
  stop refused "$1" "$2; $3"
}

# We could not find out: CAUSE OBSERVED ADVICE.
cannot_tell() {
  stop unknown "$1" "$2; $3"
}

# The caller asked wrongly, and nothing was tried: CAUSE OBSERVED ADVICE.
misuse() {
  conclude usage "$1" "$2; $3"
}

# KIND CAUSE REASON
stop() {
  case "${PHASE}" in
    before)
      [[ -z "${PRECHECKING}" || "$1" != refused ]] || set -- "$1" "precheck-$2" "$3"
      conclude "$@"
      ;;
    swapping) roll_back "$2" "$3" ;;
    asking)
      say "warning: nobody is notified: $3"
      exit
      ;;
    *)
      tell_by_hand
      conclude broken "${FAILURE%%:*}" "${FAILURE#*:}; the rollback failed too: $3; ${REPLY}"
      ;;
  esac
}

# The one way out: KIND CAUSE REASON.
conclude() {
  trap - ERR
  trap '' HUP INT TERM PIPE USR1
  set +e
  exec >&4 2>&4 # a trap may find them redirected, to a pipe whose reader would never end
  CONCLUDED=1
  local status
  status=$(exit_status "$1")
  [[ "${status}" == 0 ]] || say "$1: $3"
  end_step
  tidy_up_engine
  audit "$@"
  close_journal "$1"
  notify
  print_result "$1" "$2" "$3${UNRECORDED}"
  tidy_up_files
  exit "${status}"
}

exit_status() {
  case "$1" in
    done) printf 0 ;;
    refused) printf 1 ;;
    usage) printf 2 ;;
    rolled-back) printf 3 ;;
    unknown) printf 11 ;;
    *) printf 4 ;;
  esac
}

# End what still runs, and take back what only this run needed.
tidy_up_engine() {
  local child
  [[ -z "${WATCHER}" ]] || kill -TERM "${WATCHER}" 2>/dev/null
  for child in ${CHILD} "${BEGUN[@]}"; do
    kill -TERM "${child}" 2>/dev/null
    wait "${child}" 2>/dev/null
  done
  await_readers 2>/dev/null
  if [[ -n "${CHECKING}" ]]; then # ends the hung process inside the container too
    run_child "${QUICK}" docker container restart -t 2 "${CONTAINER_ID}" >/dev/null 2>&1
  fi
  [[ -z "${BESIDE}" ]] || remove_beside
  [[ -z "${PRECHECKING}" ]] || remove_precheck
  tidy_up_self_test
  tidy_up_observation
  [[ -n "${RUN_TAG}" ]] || return 0
  sweep_runs
}

tidy_up_self_test() {
  local pids pid
  [[ "${#SCRATCH[@]}" != 0 ]] || return 0
  pids=$(jobs -p) # not a list of our own: a signal may come before it holds the process that was started last
  for pid in ${pids}; do
    # Again and again: what bash has just forked loses a signal that comes before its traps are its own.
    while kill -TERM "${pid}" 2>/dev/null; do
      pause 0.05
    done
  done
  run_child "${QUICK}" docker image rm --force --no-prune "${SCRATCH[@]}" >"${WORK}/out" 2>"${WORK}/err"
  [[ "${STATUS}" == 0 ]] || grep -q 'No such image' "${WORK}/err" ||
    say "warning: the scratch images ${SCRATCH[*]} could not be removed"
}

tidy_up_observation() {
  [[ -z "${PAUSED}" ]] || run_child "${QUICK}" docker container unpause "${CONTAINER_ID}" >/dev/null 2>&1
  [[ -z "${DEADMAN_PID}" ]] || kill -USR1 "${DEADMAN_PID}" 2>/dev/null
  [[ -n "${BOX}" ]] || return 0
  run_child "${QUICK}" docker container rm --force --volumes "${BOX}" >"${WORK}/out" 2>"${WORK}/err"
  [[ "${STATUS}" == 0 ]] || grep -q 'No such container' "${WORK}/err" ||
    say "warning: the container ${BOX} could not be removed"
}

tidy_up_files() {
  [[ -z "${PIN_DRAFT}" ]] || rm -f -- "${PIN_DRAFT}"
  [[ -z "${HOLDER}" ]] || : >"${HOLDER}"
  [[ -z "${INDEX}" ]] || rm -rf -- "${EXPORT}" "${INDEX}" # a checkout that was not handed on is nobody's
  [[ -z "${WORK}" ]] || rm -rf -- "${WORK}"
}

# Something failed that nobody looked at. LINE COMMAND
on_error() {
  local status=$?
  ((BASH_SUBSHELL == 0)) || exit "${status}"
  refuse internal "line $1 of the hook failed unexpectedly: $2 (status ${status})" "report it with this line"
}

# SIGNAL
interrupted() {
  cannot_tell interrupted "the run was ended by SIG$1, or its caller is gone; production is as it was" "start it again"
}

on_exit() {
  [[ -n "${CONCLUDED}" ]] || conclude unknown internal 'the hook ended without a decision; report it'
}

# --- Running commands ------------------------------------------------------------------------------------------------

# Run one command: SECONDS ARGV. Leaves its status in STATUS; 124 and 137 mean that the time ran out.
# In the background, because only `wait` lets a trap run at once; <&0, because bash gives such a command /dev/null.
run_child() {
  local limit=$1
  shift
  STATUS=0
  env -i "${CHILD_ENV[@]}" timeout -k 5 "${limit}" "$@" <&0 3>&- 4>&- &
  CHILD=$!
  wait "${CHILD}" || STATUS=$?
  CHILD=''
}

# Run a command that changes nothing, without the lock. Leaves STATUS, standard output in REPLY and $WORK/out.
ask() {
  run_child "$@" >"${WORK}/out" 2>"${WORK}/err" 9>&-
  refuse_timeout "$@"
  read_reply
}

# Begin a command that changes nothing, and go on: NAME SECONDS ARGV. `await NAME` waits for its end; what it prints lies in
# $WORK/NAME then, and $WORK/NAME.err.
begin() {
  local name=$1 limit=$2
  shift 2
  env -i "${CHILD_ENV[@]}" timeout -k 5 "${limit}" "$@" \
    >"${WORK}/${name}" 2>"${WORK}/${name}.err" 3>&- 4>&- 9>&- &
  BEGUN[${name}]=$!
}

# NAME. Leaves its status in STATUS; 124 and 137 mean that the time ran out.
await() {
  STATUS=0
  wait "${BEGUN[$1]}" || STATUS=$?
  unset -v "BEGUN[$1]"
}

# Run a command that changes the host: it inherits the lock, which stays taken as long as it works.
change() {
  heed_lease
  run_child "$@" >"${WORK}/out" 2>"${WORK}/err"
  refuse_timeout "$@"
  read_reply
}

# Leave what the last command printed in REPLY, up to a NUL byte, without the newline at its end.
read_reply() {
  IFS= read -r -d '' REPLY <"${WORK}/out" || :
  REPLY=${REPLY%$'\n'}
}

refuse_timeout() {
  local limit=$1
  case "${STATUS}" in
    124 | 137)
      shift
      local shown=()
      while [[ "$#" -gt 0 && "${#shown[@]}" -lt 4 ]]; do
        [[ "$1" == env || "$1" == *=* ]] || shown+=("$1")
        shift
      done
      cannot_tell timeout "${shown[*]}: expected an end within ${limit} s, observed none" \
        "look at the engine and try again"
      ;;
    *) ;;
  esac
}

# Wait until everything that a command wrote has been passed on.
await_readers() {
  local reader
  for reader in "${READERS[@]}"; do
    wait "${reader}" || :
  done
  READERS=()
}

# Leave in REPLY what a person may see of a text from outside: one line, no escape sequences, no secrets, 400 bytes.
one_line() {
  local secret='((password|passwd|secret|token|api[_-]?key)[A-Za-z0-9_]*"?[=:] ?)[^ ]+'
  local login='(://[^/@: ]*):[^/@ ]+@' colour='\x1b\[[0-9;]*[A-Za-z]'
  REPLY=$(sed -E -e "s/${colour}//g" -e "s#${login}#\\1:***@#g" -e "s/${secret}/\\1***/Ig" <<<"$1" |
    tr -s '[:cntrl:] ' ' ')
  REPLY=${REPLY# }
  REPLY=${REPLY% }
  REPLY=${REPLY:0:400}
}

# Leave the last line that a command wrote to standard error in REPLY: FILE of $WORK, that of the last one by default.
error_line() {
  REPLY=$(sed '/^[[:space:]]*$/d' "${WORK}/${1-err}" | tail -n 1)
  one_line "${REPLY:-no message}"
}

# Leave the number of milliseconds of a number of seconds in REPLY.
milliseconds() {
  local whole=${1%%.*} part=000
  [[ "$1" != *.* ]] || part=${1#*.}000
  REPLY=$((10#${whole} * 1000 + 10#${part:0:3}))
}

pause() {
  sleep "$1" || :
}

# --- Audit -----------------------------------------------------------------------------------------------------------

# Every decision leaves a line in the system log, and in the history of its compose folder where it is about a change of
# something. Usage errors decide nothing, and their COMPOSE_DIR is not to be believed: they only reach the log.
# Below a folder that never was a state folder nothing is made: a caller must not choose where files appear.

# Leave the traces of a decision: KIND CAUSE REASON. Never ends the run.
audit() {
  local priority=notice
  [[ -z "${REHEARSAL}" ]] || return 0
  case "${MODE}:$2" in
    *:nothing-open | --recover:locked) return 0 ;; # a timer asks every few minutes: nothing was interrupted
    *) ;;
  esac
  case "${MODE}" in
    --build-staging | --promote | --rollback | --recover | --freeze | --unfreeze | --break-glass) ;;
    --verify | --self-test) priority=info ;;
    '') ;; # somebody tries what there is
    *) return 0 ;;
  esac
  [[ "$1" == 'done' ]] || priority=warning
  identify
  [[ "${MODE}" != --break-glass ]] || priority=alert
  REPLY=$3
  [[ -z "${REASON_TEXT}" || "$3" == *"${REASON_TEXT}"* ]] || REPLY="${REASON_TEXT}: $3"
  one_line "${REPLY}"
  write_log "user.${priority}" "$1" "$2" "${REPLY}"
  case "${MODE}:$1" in
    --verify:* | --self-test:* | *:usage) ;;
    *)
      history_entry "$1" "$2" "${REPLY}"
      ENTRY=${REPLY}
      write_history
      ;;
  esac
}

# Leave in WHO who asks. Nothing of it comes from the environment.
identify() {
  local uid name
  [[ -z "${WHO}" ]] || return 0
  uid=$(id -u 2>/dev/null) || uid='unknown' # not EUID: a caller who exports one makes bash forget its own
  name=$(id -un 2>/dev/null) || name=''
  WHO="uid:${uid}${name:+"(${name})"}"
}

# Leave the name of the service that this mode is about in REPLY.
name_service() {
  REPLY=${PROD_SERVICE-}
  [[ "${MODE}" != --build-staging ]] || REPLY=${TARGET_SERVICE-}
}

# PRIORITY KIND CAUSE REASON. Without logger, and without anybody who takes its lines, there is just none. Keeps REPLY.
write_log() {
  local reason=$4 line
  type -P logger >/dev/null || return 0
  name_service
  line="${MODE} $2 $3 who=${WHO} run=${RUN_ID-} repo=${REPO-} service=${REPLY} revision=${REVISION} image=${IMAGE_ID}"
  line+=" previous=${PREVIOUS_ID}: ${reason}"
  run_child 5 env "PATH=${SAFE_PATH}" logger -t imagefresh -p "$1" -- "${line//[[:cntrl:]]/ }" >/dev/null 2>&1 9>&-
  REPLY=${reason}
}

# Append ENTRY. What cannot be written is told loudly, and changes nothing of what was decided.
write_history() {
  local line=${ENTRY} last
  [[ -n "${STATE}" && -d "${STATE}" ]] || return 0
  touch_history
  if [[ -n "${REPLY}" ]]; then
    last=$(tail -c 1 -- "${REPLY}" 2>/dev/null && printf .) || last='.'
    [[ "${last}" == . || "${last}" == *$'\n'. ]] || line=$'\n'"${line}" # after one that a full disk cut off
    # One write of less than PIPE_BUF bytes to a file opened for appending: entries of two runs never mix.
    { printf '%s\n' "${line}" >>"${REPLY}"; } 2>/dev/null || REPLY=''
    keep_history
  fi
  [[ -z "${REPLY}" ]] || return 0
  UNRECORDED="; AND THIS IS NOT IN THE HISTORY: ${STATE}/history could not be written"
  say "WARNING: ${STATE}/history could not be written: this decision is missing in it"
}

# Leave one entry in REPLY: KIND CAUSE REASON. The order of the keys is fixed: --status finds promotions by it.
history_entry() {
  local line='' pair time
  TZ=UTC0 printf -v time '%(%Y-%m-%dT%H:%M:%SZ)T' -1
  name_service
  for pair in "time=${time}" "mode=${MODE}" "kind=$1" "cause=$2" "run_id=${RUN_ID-}" "repo=${REPO-}" "who=${WHO}" \
    "service=${REPLY}" "revision=${REVISION}" "image_id=${IMAGE_ID}" "previous=${PREVIOUS_ID}" "reason=$3"; do
    json_pair "${pair%%=*}" "${pair#*=}"
    line+=",${REPLY}"
  done
  REPLY="{${line#,}}"
}

# Make the history where there is none. Leaves its path in REPLY, "" unless it is a file of this user's own alone.
touch_history() {
  REPLY="${STATE}/history"
  if [[ -L "${REPLY}" || ! -O "${STATE}" ]] || [[ -e "${REPLY}" && ! (-f "${REPLY}" && -O "${REPLY}") ]]; then
    REPLY=''
  else
    umask 077 # no chmod: root may have made it append-only
    { : >>"${REPLY}"; } 2>/dev/null || REPLY=''
    umask 022
  fi
}

# What production became must survive a host that loses power. Keeps REPLY, "" where it does not.
keep_history() {
  [[ -n "${REPLY}" && "${MODE}" != --build-staging ]] || return 0
  run_child 10 env "PATH=${SAFE_PATH}" sync -- "${REPLY}" >/dev/null 2>&1 9>&-
  [[ "${STATUS}" == 0 ]] || REPLY=''
}

# Stop unless the history can take an entry, before production changes.
open_history() {
  touch_history
  [[ -n "${REPLY}" ]] ||
    refuse state-unsafe "${STATE}/history: expected a file of this user that the hook can append to, observed none" \
      'correct or remove it'
}

# --- Notifying -------------------------------------------------------------------------------------------------------
# A policy may name a command that gets ENTRY on standard input. It comes last, once, and changes nothing of what was
# decided: whoever must not miss an outcome reads the history.

notify() {
  local notifier
  [[ -n "${ENTRY}" ]] || return 0
  case "${MODE}" in
    --promote | --rollback | --break-glass) ;; # their policy is known, where they came that far
    --recover | --freeze | --unfreeze) seek_notifiers ;;
    *) return 0 ;;
  esac
  for notifier in "${NOTIFIERS[@]}"; do
    tell_notifier "${notifier}"
  done
}

# PATH
tell_notifier() {
  STATUS=1 # of a line that could not be passed on
  run_child "${NOTIFY_LIMIT}" env -i "PATH=${SAFE_PATH}" "$1" <<<"${ENTRY}" >/dev/null 2>&1 9>&-
  [[ "${STATUS}" == 0 ]] ||
    say "warning: $1: expected status 0 within ${NOTIFY_LIMIT} s, observed ${STATUS}; this outcome may be told to nobody"
}

# For modes that no policy may hold up: one that is not as it must be costs the notification alone.
seek_notifiers() {
  REPLY=$(print_notifiers)
  REPLY=$(sort -u <<<"${REPLY}")
  NOTIFIERS=()
  [[ -z "${REPLY}" ]] || mapfile -t NOTIFIERS <<<"${REPLY}"
}

# In a subshell: print the command of the journal's production, or, where no journal says which it is, those of the folder.
print_notifiers() {
  local name folder
  PHASE='asking'
  if [[ -n "${JOURNALED}" ]]; then
    find_policy
    [[ "${#NOTIFIERS[@]}" == 0 ]] || printf '%s\n' "${NOTIFIERS[@]}"
    return 0
  fi
  read_policies
  folder=$(readlink -m -- "${COMPOSE_DIR}")
  for name in "${POLICY_NAMES[@]}"; do
    ( # one that is not as it must be is no reason to leave out another
      take_policy "${name}"
      [[ "${CLAIMS[1]}" == *" of ${folder}" && -n "${POLICY[NOTIFY]-}" ]] || exit 0
      take_notifier
      printf '%s\n' "${NOTIFIERS[@]}"
    )
  done
}

# Add the command of POLICY to NOTIFIERS, or stop: it runs as this user, so nobody but root may have a say in it.
take_notifier() {
  local command=${POLICY[NOTIFY]-}
  [[ -n "${command}" ]] || return 0
  require_owned notify-unsafe "${command%/*}" directory 0
  require_owned notify-unsafe "${command}" 'regular file' 0
  [[ -x "${command}" ]] ||
    refuse notify-unsafe "${command}: expected a command that this user can execute, observed none" "correct its mode"
  NOTIFIERS+=("${command}")
}

# --- The caller's variables ------------------------------------------------------------------------------------------

# Keep the variables of the contract, as plain shell variables, and nothing else of the environment: MODE.
# Under --ssh not even those: sshd may let a caller set variables, and only the request counts.
clean_environment() {
  local name names kept=" ${COMMON_VARIABLES} ${STAGING_VARIABLES//$'\n'/ } ${PROMOTION_VARIABLES//$'\n'/ } "
  kept+="${OPERATION_VARIABLES} ${OBSERVATION_VARIABLES} "
  [[ "$1" != --ssh ]] || kept=' SSH_ORIGINAL_COMMAND '
  names=$(compgen -e)
  for name in ${names}; do
    case "${kept}" in
      *" ${name} "*) export -n "${name?}" ;;
      *) unset -v "${name}" 2>/dev/null || export -n "${name?}" ;; # read-only ones cannot be unset
    esac
  done
  unset -v HOME
  HOME=~ # without HOME bash asks the user database
  export PATH=${SAFE_PATH} LC_ALL=C HOME
  # A caller who exports an EUID makes bash take that for its own; it is gone by now.
  [[ -n "${EUID+set}" ]] || EUID=$(id -u)
}

# Stop unless a variable is set and matches: NAME PATTERN EXPECTED. The name is always one of our own.
need() {
  local name=$1
  [[ -n "${!name+set}" ]] || misuse variable-missing "$1: expected $3, observed nothing" "set it"
  require_match "$@"
}

# The same for a variable that may be absent or empty.
may_have() {
  local name=$1
  if [[ -n "${!name-}" ]]; then
    require_match "$@"
  else
    printf -v "${name}" '%s' ''
  fi
}

require_match() {
  local name=$1 pattern="^($2)\$"
  local value=${!name}
  [[ "${#value}" -le 4096 && "${value}" =~ ${pattern} ]] || malformed "$1" "$3"
}

# NAME EXPECTED
malformed() {
  local name=$1
  local value=${!name}
  value=${value:0:200}
  misuse variable-malformed "$1: expected $2, observed ${value@Q}" "correct it"
}

need_port() {
  local name=$1
  need "$1" '[1-9][0-9]{0,4}' 'a port number from 1 to 65535'
  [[ "${!name}" -le 65535 ]] || malformed "$1" 'a port number from 1 to 65535'
}

# A number of seconds above zero.
need_timeout() {
  local name=$1
  need "$1" "${SECONDS_PATTERN}" 'a number of seconds above 0, such as 60 or 2.5'
  milliseconds "${!name}"
  [[ "${REPLY}" -gt 0 ]] || malformed "$1" 'a number of seconds above 0'
}

need_reference() {
  local name=$1
  need "$1" "${REFERENCE_PATTERN}" 'an image reference such as name or registry/name:tag, without a digest'
  case "${!name}" in
    sha256:* | imagefresh-run | imagefresh-run:* | *:imagefresh-previous)
      malformed "$1" 'a reference that the hook does not reserve for itself'
      ;;
    *) [[ ! "${!name}" =~ ^[0-9a-f]{64}$ ]] || malformed "$1" 'an image reference, not an ID' ;;
  esac
}

need_service() {
  need "$1" "${NAME_PATTERN}" 'the name of a compose service'
}

# A path inside the tree: never absolute, never upwards, nothing unprintable.
need_relative_path() {
  local name=$1
  need "$1" '[^/[:cntrl:]][^[:cntrl:]]*' 'a relative path inside the tree of the commit'
  [[ "/${!name}/" != */../* ]] || malformed "$1" "a relative path without '..'"
}

# Leave in ITEMS what a variable holds as base64 of NUL-terminated items: NAME EXPECTED.
# Encoding the items again must give the very same text, so nothing is dropped, cut off or read loosely.
decode_items() {
  local name=$1 again
  mapfile -d '' -t ITEMS < <(printf '%s' "${!name}" | base64 -d 2>/dev/null || :)
  again=$(printf '%s\0' "${ITEMS[@]}" | base64 -w 0)
  [[ "${#ITEMS[@]}" -gt 0 && "${again}" == "${!name}" ]] || malformed "$1" "$2"
}

read_common_variables() {
  if [[ "${MODE}" == --recover ]]; then # a timer names neither
    : "${REPO=recover}"
    [[ -n "${RUN_ID+set}" ]] || make_run_id
  fi
  need REPO "${REPO_PATTERN}" 'the name of a repo: letters, digits, . _ -'
  [[ "${REPO}" != *..* && "${REPO}" != *.git ]] || malformed REPO "a name without '..' and without '.git' at the end"
  need RUN_ID "${RUN_ID_PATTERN}" 'YYYYMMDDThhmmssZ-xxxxxxxx'
  need COMPOSE_DIR '/[^[:cntrl:]]*' "the absolute path of the compose file's folder"
  [[ -d "${COMPOSE_DIR}" ]] || malformed COMPOSE_DIR 'a folder that exists on this host'
  STATE="${COMPOSE_DIR}/.imagefresh"
  LEDGER="${STATE}/verdicts"
  FROZEN_FILE="${STATE}/frozen"
  JOURNAL_FILE="${STATE}/journal"
  # Set but empty is a lost value, never "no lease": the caller would wait for himself.
  [[ -z "${LEASE+set}" ]] || need LEASE "${HEX64}" 'the token that --lease printed'
}

make_run_id() {
  local random
  random=$(head -c 16 /dev/urandom | sha256sum)
  printf -v RUN_ID '%(%Y%m%dT%H%M%SZ)T-%s' -1 "${random:0:8}"
}

read_health_variables() {
  need HEALTH_PATH '/[A-Za-z0-9._~/%?&=+:@,;-]*' 'a URL path that starts with /'
  need_timeout HEALTH_TIMEOUT
  need SETTLE "${SECONDS_PATTERN}" 'a number of seconds, such as 5 or 0.5'
}

read_staging_variables() {
  read_health_variables
  need GIT_SHA "${HEX40}" 'a full commit ID, 40 lowercase hex characters'
  need BUILD_CONTEXT '-|/[^[:cntrl:]]*' 'the absolute path of a clone, or - where standard input brings a pack'
  read_build_variables
  need_reference TARGET_IMAGE
  need_service TARGET_SERVICE
  need_port TARGET_PORT
  need COMPOSE_PROFILE "${NAME_PATTERN}" 'a compose profile (without one, compose would start production services too)'
  need STAGING_CONTAINER "${NAME_PATTERN}" 'the name of a container'
  read_check_variables
  need_timeout BUILD_TIMEOUT
  need_timeout CHECK_TIMEOUT
  : "${PROD_IMAGE=}" "${PROD_PORT=}"
  [[ -z "${PROD_IMAGE}" ]] || need_reference PROD_IMAGE
  [[ -z "${PROD_PORT}" ]] || need_port PROD_PORT
  may_have PROD_SERVICE "${NAME_PATTERN}" 'the name of a compose service'
  may_have PROD_PROXY "${NAME_PATTERN}" 'the name of a compose service, or nothing'
}

read_build_variables() {
  local item
  local -A seen=()
  : "${BUILD_SUBDIR=.}" "${BUILD_DOCKERFILE=Dockerfile}"
  need_relative_path BUILD_SUBDIR
  need_relative_path BUILD_DOCKERFILE
  may_have BUILD_TARGET '[A-Za-z0-9][A-Za-z0-9_.-]{0,127}' 'the name of a build stage'
  [[ -n "${BUILD_ARGS-}" ]] || return 0
  decode_items BUILD_ARGS 'base64 of NAME=value items, a NUL byte after each'
  for item in "${ITEMS[@]}"; do
    [[ "${item}" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      misuse variable-malformed "BUILD_ARGS: expected NAME=value items, observed ${item@Q}" "correct it"
    refuse_reserved_argument "${item%%=*}"
    [[ -z "${seen[${item%%=*}]-}" ]] ||
      misuse variable-malformed "BUILD_ARGS: expected each name once, observed ${item%%=*} twice" "drop one"
    seen[${item%%=*}]=1
  done
  BUILD_ITEMS=("${ITEMS[@]}")
}

# Some build arguments have a meaning for the builder itself, or for the proof.
refuse_reserved_argument() {
  case "${1^^}" in
    GIT_SHA)
      misuse variable-malformed "BUILD_ARGS: expected no $1, since the hook passes GIT_SHA itself, observed one" \
        "drop it"
      ;;
    *_PROXY | BUILDKIT_SYNTAX)
      misuse variable-malformed "BUILD_ARGS: expected no $1, which redirects the builder, observed one" \
        "set proxies in the Docker configuration of this host"
      ;;
    *) ;;
  esac
}

read_check_variables() {
  if [[ -n "${STAGING_CHECK_COMMAND+set}" ]]; then
    decode_items STAGING_CHECK_COMMAND 'base64 of the words of a command, a NUL byte after each'
    CHECK_COMMAND=("${ITEMS[@]}")
    [[ -n "${CHECK_COMMAND[0]}" ]] || malformed STAGING_CHECK_COMMAND 'a command whose first word is not empty'
  else
    : "${STAGING_CHECK_MODE=stub}"
    need STAGING_CHECK_PATH '[^[:cntrl:]-][^[:cntrl:]]*' 'the path of the staging check in the image'
    need STAGING_CHECK_MODE "${NAME_PATTERN}" 'a mode of the staging check'
    CHECK_COMMAND=(python3 "${STAGING_CHECK_PATH}" --mode "${STAGING_CHECK_MODE}")
  fi
}

read_promotion_variables() {
  read_health_variables
  if [[ ! "${SOURCE_IMAGE-}" =~ ^${IMAGE_ID_PATTERN}$ ]]; then
    need_reference SOURCE_IMAGE
    # Without a tag, a hexadecimal name could be read as the start of an ID.
    [[ "${SOURCE_IMAGE##*/}" == *:* ]] || SOURCE_IMAGE+=:latest
  fi
  read_production_variables
}

read_production_variables() {
  need_reference PROD_IMAGE
  need_service PROD_SERVICE
  need_port PROD_PORT
  may_have PROD_PROFILE "${NAME_PATTERN}" 'a compose profile, or nothing'
  may_have PROD_PIN '[A-Za-z_][A-Za-z0-9_]{0,127}' 'the name of a variable, or nothing'
  case "${PROD_PIN^^}" in
    PATH | HOME | LC_* | LD_* | DOCKER_* | COMPOSE_* | BUILDKIT_* | GIT_*)
      malformed PROD_PIN 'a name that means nothing to other programs'
      ;;
    *) ;;
  esac
  may_have PRECHECK 'yes|no' 'yes, no or nothing'
  read_proxy_variables
}

read_proxy_variables() {
  may_have PROD_PROXY "${NAME_PATTERN}" 'the name of a compose service, or nothing'
  if [[ -z "${PROD_PROXY}" ]]; then
    PROD_PROXY_PORT='' PROD_DRAIN='' # a caller who passes defaults asks for nothing by that
    return 0
  fi
  [[ "${PROD_PROXY}" != "${PROD_SERVICE}" ]] || malformed PROD_PROXY "a service other than production's own"
  [[ -n "${PROD_PIN}" ]] ||
    misuse variable-missing "PROD_PIN: expected one, since PROD_PROXY is set, observed nothing" \
      "two images run side by side: only a pin tells any compose call which of them is production"
  need_port PROD_PROXY_PORT
  : "${PROD_DRAIN:=${DEFAULT_DRAIN}}"
  need_timeout PROD_DRAIN
  [[ "${REPLY}" -ge 1000 ]] || malformed PROD_DRAIN 'a number of seconds from 1, in which what is under way may finish'
}

# Leave in REPLY a reference as the engine reads it: `x`, `x:latest` and `docker.io/library/x` are one.
canonical() {
  local reference=${1%%@*}
  reference=${reference#index.docker.io/}
  reference=${reference#docker.io/}
  reference=${reference#library/}
  [[ "${reference##*/}" == *:* ]] || reference+=:latest
  REPLY=${reference}
}

# --- The host's policy -----------------------------------------------------------------------------------------------
# Files POLICY_DIR/NAME.conf, each about one production target. They are found by that target, never by what a caller
# names; where the folder exists, a production that none of them claims is refused.

# Stop unless a path is of a type, belongs to a user, and nobody else may write to it: CAUSE PATH TYPE UID.
require_owned() {
  local kind='' owner='' mode='' what
  what=$(stat -c '%F|%u|%a' -- "$2" 2>/dev/null) || what='nothing'
  IFS='|' read -r kind owner mode <<<"${what}"
  [[ "${kind}" == "$3" && "${owner}" == "$4" && "${mode}" =~ ^[0-7]+$ ]] && (((8#${mode} & 8#022) == 0)) && return 0
  refuse "$1" "$2: expected a $3 of user $4 that nobody else can write to, observed ${what//|/, }" "correct it"
}

# Read every policy into POLICIES, as NAME.KEY. POLICED says whether this host has any.
read_policies() {
  local file name
  POLICED='' POLICY_NAMES=() POLICIES=() NOTIFIERS=()
  [[ -e "${POLICY_DIR}" || -L "${POLICY_DIR}" ]] || return 0
  POLICED=1
  require_owned policy-unsafe "${POLICY_DIR}" directory 0
  for file in "${POLICY_DIR}"/*.conf; do
    [[ -e "${file}" || -L "${file}" ]] || continue # the pattern itself: there is none
    name=${file##*/}
    name=${name%.conf}
    [[ "${name}" =~ ^${NAME_PATTERN}$ ]] || invalid_policy "${file}" "a name like orchestrator.conf" "${name@Q}"
    require_owned policy-unsafe "${file}" 'regular file' 0
    parse_policy "${file}" "${name}"
    refuse_double_claim "${name}"
    POLICY_NAMES+=("${name}")
  done
}

# FILE EXPECTED OBSERVED
invalid_policy() {
  refuse policy-invalid "$1: expected $2, observed $3" "correct the policy of this host"
}

# FILE NAME
parse_policy() {
  local line key value slot text='' number=0
  ! IFS= read -r -d '' text <"$1" || invalid_policy "$1" 'text' 'a NUL byte'
  # shellcheck disable=SC2094 # the file is only named in what is said
  while IFS= read -r line || [[ -n "${line}" ]]; do
    number=$((number + 1))
    [[ -n "${line}" && "${line}" != '#'* ]] || continue
    key=${line%%=*} value=${line#*=}
    slot="$2.${key}"
    fits_policy "${key}" "${value}"
    [[ "${line}" == *=* && -n "${REPLY}" ]] ||
      invalid_policy "$1" "KEY=value of a policy in line ${number}" "${line@Q}"
    [[ -z "${POLICIES[${slot}]-}" ]] || invalid_policy "$1" "${key} once" 'it twice'
    POLICIES[${slot}]=${value}
  done <"$1"
  for key in PROD_IMAGE PROD_SERVICE PROD_PORT COMPOSE_DIR REQUIRE ALLOWED_SIGNERS; do
    slot="$2.${key}"
    [[ -n "${POLICIES[${slot}]-}" ]] || need_policy_key "$1" "$2" "${key}"
  done
}

# FILE NAME KEY: it is not there.
need_policy_key() {
  local slot="$2.REQUIRE"
  [[ "$3" != ALLOWED_SIGNERS || " ${POLICIES[${slot}]} " == *' verdict '* ]] || return 0
  invalid_policy "$1" "a line $3=" 'none'
}

# Leave 1 in REPLY where a policy may have this line, else nothing: KEY VALUE
fits_policy() {
  local pattern word='(revision|image_id|verdict)'
  REPLY=''
  case "$1" in
    PROD_IMAGE) pattern=${REFERENCE_PATTERN} ;;
    PROD_SERVICE | PROD_PROXY) pattern=${NAME_PATTERN} ;;
    REPO) pattern=${REPO_PATTERN} ;;
    PROD_PORT) pattern='[1-9][0-9]{0,4}' ;;
    COMPOSE_DIR | REPOS_DIR | ALLOWED_SIGNERS | REVOKED_KEYS | NOTIFY) pattern='/[ -~]+' ;;
    REQUIRE) pattern="${word}( ${word}){0,2}" ;;
    MAX_AGE) pattern='[1-9][0-9]{0,7}' ;;
    BREAK_GLASS) pattern='yes|no' ;;
    KEEP) pattern='[1-9][0-9]?' ;;
    *) return 0 ;;
  esac
  [[ "${#2}" -gt 4096 || ! "$2" =~ ^(${pattern})$ ]] || REPLY=1
}

# Take the policy NAME as POLICY, and leave in CLAIMS what it claims as production, a line each.
take_policy() {
  local slot folder
  POLICY=([NAME]=$1)
  for slot in "${!POLICIES[@]}"; do
    [[ "${slot%.*}" != "$1" ]] || POLICY[${slot##*.}]=${POLICIES[${slot}]}
  done
  canonical "${POLICY[PROD_IMAGE]}"
  folder=$(readlink -m -- "${POLICY[COMPOSE_DIR]}")
  CLAIMS=("image ${REPLY}" "service ${POLICY[PROD_SERVICE]} of ${folder}" "port ${POLICY[PROD_PORT]}")
}

# NAME of the policy that was read last.
refuse_double_claim() {
  local other claim mine=()
  take_policy "$1"
  mine=("${CLAIMS[@]}")
  for other in "${POLICY_NAMES[@]}"; do
    take_policy "${other}"
    for claim in "${!mine[@]}"; do
      [[ "${mine[claim]}" != "${CLAIMS[claim]}" ]] ||
        refuse policy-conflict "${POLICY_DIR}: expected one policy for ${CLAIMS[claim]}, observed ${other} and $1" \
          "correct one of them"
    done
  done
}

# Leave in POLICY the one policy that claims the caller's production; nothing where this host has no policies.
find_policy() {
  local name claim folder known found='' asked=()
  read_policies
  POLICY=()
  [[ -n "${POLICED}" ]] || return 0
  canonical "${PROD_IMAGE}"
  folder=$(readlink -m -- "${COMPOSE_DIR}")
  asked=("image ${REPLY}" "service ${PROD_SERVICE} of ${folder}" "port ${PROD_PORT}")
  for name in "${POLICY_NAMES[@]}"; do
    take_policy "${name}"
    known=0
    for claim in "${!asked[@]}"; do
      [[ "${CLAIMS[claim]}" != "${asked[claim]}" ]] || known=$((known + 1))
    done
    [[ "${known}" != "${#asked[@]}" ]] || found=${name}
    [[ "${known}" == 0 || -n "${found}" ]] ||
      refuse policy-mismatch "production: expected all of policy ${name} (${CLAIMS[*]}), observed ${asked[*]}" \
        "name one target"
  done
  [[ -n "${found}" ]] ||
    refuse policy-unclaimed "production: expected a policy in ${POLICY_DIR} for ${asked[*]}, observed none" \
      "write one, or name the production that is meant"
  take_policy "${found}"
  [[ "${REPO}" == "${POLICY[REPO]-${REPO}}" ]] ||
    refuse policy-mismatch "REPO: expected ${POLICY[REPO]}, as policy ${found} says, observed ${REPO}" \
      "name the repo of this production"
  [[ "${PROD_PROXY}" == "${POLICY[PROD_PROXY]-}" ]] ||
    refuse policy-mismatch \
      "PROD_PROXY: expected ${POLICY[PROD_PROXY]-none}, as policy ${found} says, observed ${PROD_PROXY:-none}" \
      "name the proxy of this production, or correct the policy"
  take_notifier
}

# Leave in POLICY the policy of one target, by its name: for a key that is bound to it. NAME
find_policy_named() {
  read_policies
  [[ " ${POLICY_NAMES[*]-} " == *" $1 "* ]] ||
    refuse policy-missing "${POLICY_DIR}: expected a policy $1.conf, observed: ${POLICY_NAMES[*]-none}" "write it"
  take_policy "$1"
}

# What any policy claims as production is not staging, and a clone lies where its compose folder's policy says.
refuse_claimed_staging() {
  local name claim folder image
  read_policies
  [[ -n "${POLICED}" ]] || return 0
  canonical "${TARGET_IMAGE}"
  image=${REPLY}
  folder=$(readlink -m -- "${COMPOSE_DIR}")
  for name in "${POLICY_NAMES[@]}"; do
    take_policy "${name}"
    for claim in "${CLAIMS[@]}"; do
      case "${claim}" in
        "image ${image}" | "service ${TARGET_SERVICE} of ${folder}" | "port ${TARGET_PORT}")
          refuse staging-is-claimed \
            "staging: expected nothing that policy ${name} claims as production, observed ${claim}" "name staging's own"
          ;;
        *" of ${folder}")
          [[ "${TARGET_SERVICE}" != "${POLICY[PROD_PROXY]-}" ]] ||
            refuse staging-is-claimed \
              "staging: expected nothing that policy ${name} claims as production, observed its proxy ${TARGET_SERVICE}" \
              "name staging's own"
          require_clone_below "${POLICY[REPOS_DIR]-}"
          ;;
        *) ;;
      esac
    done
  done
}

# FOLDER of the policy, or nothing
require_clone_below() {
  local real top
  [[ -n "$1" && "${BUILD_CONTEXT}" != - ]] || return 0
  top=$(readlink -m -- "$1")
  real=$(readlink -m -- "${BUILD_CONTEXT}")
  [[ "${real}" == "${top}"/* ]] ||
    refuse clone-outside "BUILD_CONTEXT: expected a clone below ${top}, as policy ${POLICY[NAME]} says, observed ${real}" \
      "correct it"
}

# --- A key that is bound to one target -------------------------------------------------------------------------------

# --ssh --target NAME --allow gate|promote [--key FINGERPRINT]: leave the mode in MODE and its variables set, as the policy
# NAME allows; FINGERPRINT is whose name the history gets.
read_request() {
  local modes who=${7-}
  [[ ("$#" == 5 || "$#" == 7) && "$2" == --target && "$3" =~ ^${NAME_PATTERN}$ && "$4" == --allow ]] ||
    misuse arguments "--ssh: expected --target NAME --allow gate or promote, observed ${*@Q}" \
      "correct command= in authorized_keys"
  [[ "$#" == 5 || ("$6" == --key && "${who}" =~ ^SHA256:[A-Za-z0-9+/]{43}$) ]] ||
    misuse arguments "--ssh: expected --key and a fingerprint of ssh-keygen -l, observed ${*@Q}" \
      "correct command= in authorized_keys"
  WHO=${who:-"key:$3/$5"}
  case "$5" in
    gate) modes=${GATE_MODES} ;;
    promote) modes=${PROMOTE_MODES} ;;
    *) misuse arguments "--allow: expected gate or promote, observed ${5@Q}" "correct command= in authorized_keys" ;;
  esac
  split_request "${SSH_ORIGINAL_COMMAND-}"
  [[ " ${modes} " == *" ${MODE} "* ]] ||
    misuse mode-forbidden "this key: expected one of ${modes}, observed ${MODE}" "use the key that is meant for it"
  find_policy_named "$3"
  bind_to_policy
}

# Take MODE KEY=value ... apart. Nothing is expanded, matched as a pattern or evaluated on the way.
split_request() {
  local rest=$1 word named=' '
  [[ -n "${rest}" ]] ||
    misuse request-malformed 'this key: expected a mode and its variables, observed no command' 'it gives no shell'
  [[ "${#rest}" -le "${REQUEST_LIMIT}" ]] ||
    misuse request-malformed "the request: expected at most ${REQUEST_LIMIT} bytes, observed ${#rest}" 'shorten it'
  word=${rest:0:200}
  [[ "${rest}" =~ ${REQUEST_PATTERN} ]] ||
    misuse request-malformed "the request: expected letters, digits and ._/:@%+=,~?&- in one line, observed ${word@Q}" \
      'leave the other characters out'
  [[ " ${rest} " != *'  '* ]] ||
    misuse request-malformed "the request: expected words with one blank between, observed ${word@Q}" 'correct it'
  take_request_mode "${rest%% *}"
  rest="${rest} "
  rest=${rest#* }
  while [[ -n "${rest}" ]]; do
    word=${rest%% *}
    rest=${rest#* }
    [[ "${word}" == *=* ]] || misuse request-malformed "the request: expected KEY=value, observed ${word@Q}" 'correct it'
    [[ "${named}" != *" ${word%%=*} "* ]] ||
      misuse request-malformed "the request: expected ${word%%=*} once, observed it twice" 'leave one'
    named+="${word%%=*} "
    assign "${word%%=*}" "${word#*=}"
  done
}

# WORD
take_request_mode() {
  [[ "$1" == --* && " ${GATE_MODES} ${PROMOTE_MODES} " == *" $1 "* ]] ||
    misuse mode-unknown "mode: expected one that --help names, observed ${1@Q}" "see --help"
  MODE=$1
}

# Set a variable of the contract: NAME VALUE. Each by its own name, so that no name is ever evaluated.
# shellcheck disable=SC2034 # OBSERVE_PATHS is read by its name
assign() {
  case "$1" in
    REPO) REPO=$2 ;;
    RUN_ID) RUN_ID=$2 ;;
    LEASE) LEASE=$2 ;;
    COMPOSE_DIR) COMPOSE_DIR=$2 ;;
    HEALTH_PATH) HEALTH_PATH=$2 ;;
    HEALTH_TIMEOUT) HEALTH_TIMEOUT=$2 ;;
    SETTLE) SETTLE=$2 ;;
    GIT_SHA) GIT_SHA=$2 ;;
    BUILD_CONTEXT) BUILD_CONTEXT=$2 ;;
    BUILD_SUBDIR) BUILD_SUBDIR=$2 ;;
    BUILD_DOCKERFILE) BUILD_DOCKERFILE=$2 ;;
    BUILD_TARGET) BUILD_TARGET=$2 ;;
    BUILD_ARGS) BUILD_ARGS=$2 ;;
    TARGET_IMAGE) TARGET_IMAGE=$2 ;;
    TARGET_SERVICE) TARGET_SERVICE=$2 ;;
    TARGET_PORT) TARGET_PORT=$2 ;;
    COMPOSE_PROFILE) COMPOSE_PROFILE=$2 ;;
    STAGING_CONTAINER) STAGING_CONTAINER=$2 ;;
    STAGING_CHECK_COMMAND) STAGING_CHECK_COMMAND=$2 ;;
    STAGING_CHECK_PATH) STAGING_CHECK_PATH=$2 ;;
    STAGING_CHECK_MODE) STAGING_CHECK_MODE=$2 ;;
    BUILD_TIMEOUT) BUILD_TIMEOUT=$2 ;;
    CHECK_TIMEOUT) CHECK_TIMEOUT=$2 ;;
    SOURCE_IMAGE) SOURCE_IMAGE=$2 ;;
    EXPECTED_REVISION) EXPECTED_REVISION=$2 ;;
    EXPECTED_IMAGE_ID) EXPECTED_IMAGE_ID=$2 ;;
    VERDICT) VERDICT=$2 ;;
    PROD_IMAGE) PROD_IMAGE=$2 ;;
    PROD_SERVICE) PROD_SERVICE=$2 ;;
    PROD_PORT) PROD_PORT=$2 ;;
    PROD_PROFILE) PROD_PROFILE=$2 ;;
    PROD_PIN) PROD_PIN=$2 ;;
    PRECHECK) PRECHECK=$2 ;;
    PROD_PROXY) PROD_PROXY=$2 ;;
    PROD_PROXY_PORT) PROD_PROXY_PORT=$2 ;;
    PROD_DRAIN) PROD_DRAIN=$2 ;;
    HISTORY_LIMIT) HISTORY_LIMIT=$2 ;;
    OBSERVE) OBSERVE=$2 ;;
    OBSERVE_IMAGE) OBSERVE_IMAGE=$2 ;;
    OBSERVE_PATHS) OBSERVE_PATHS=$2 ;;
    *) misuse request-malformed "the request: expected a variable of --help, observed ${1@Q}" 'leave it out' ;;
  esac
}

# The policy says what production and its compose folder are, of which repo, and where clones lie. The caller may only say
# the same.
bind_to_policy() {
  local given top real
  canonical "${POLICY[PROD_IMAGE]}"
  given=${REPLY}
  canonical "${PROD_IMAGE-${POLICY[PROD_IMAGE]}}"
  require_bound PROD_IMAGE "${REPLY}" "${given}"
  require_bound PROD_SERVICE "${PROD_SERVICE-${POLICY[PROD_SERVICE]}}" "${POLICY[PROD_SERVICE]}"
  require_bound PROD_PORT "${PROD_PORT-${POLICY[PROD_PORT]}}" "${POLICY[PROD_PORT]}"
  require_bound COMPOSE_DIR "${COMPOSE_DIR-${POLICY[COMPOSE_DIR]}}" "${POLICY[COMPOSE_DIR]}"
  PROD_IMAGE=${POLICY[PROD_IMAGE]} PROD_SERVICE=${POLICY[PROD_SERVICE]} PROD_PORT=${POLICY[PROD_PORT]}
  COMPOSE_DIR=${POLICY[COMPOSE_DIR]}
  if [[ -n "${POLICY[PROD_PROXY]-}" ]]; then
    require_bound PROD_PROXY "${PROD_PROXY-${POLICY[PROD_PROXY]}}" "${POLICY[PROD_PROXY]}"
    PROD_PROXY=${POLICY[PROD_PROXY]}
  fi
  if [[ -n "${POLICY[REPO]-}" ]]; then
    require_bound REPO "${REPO-${POLICY[REPO]}}" "${POLICY[REPO]}"
    REPO=${POLICY[REPO]}
  fi
  [[ -n "${BUILD_CONTEXT+set}" && "${BUILD_CONTEXT}" != - ]] || return 0
  top=$(readlink -m -- "${POLICY[REPOS_DIR]-}") || top=''
  real=$(readlink -m -- "${BUILD_CONTEXT}") || real=''
  [[ -n "${top}" && "${top}" != / && "${real}" == "${top}"/* ]] ||
    refuse clone-outside \
      "BUILD_CONTEXT: expected - or a clone below ${POLICY[REPOS_DIR]-REPOS_DIR of the policy}, observed ${BUILD_CONTEXT@Q}" \
      'correct it'
}

# NAME OBSERVED EXPECTED
require_bound() {
  [[ "$2" == "$3" ]] ||
    refuse policy-mismatch "$1: expected ${3}, as policy ${POLICY[NAME]} says, observed ${2@Q}" \
      'use the key of that target'
}

# --- The host --------------------------------------------------------------------------------------------------------

# A private folder, the environment of every command, and an engine that answers.
prepare_host() {
  prepare_folder
  require_engine
}

prepare_folder() {
  require_tools
  sweep_folders
  WORK=$(mktemp -d "${TEMP_DIR}/imagefresh.$$.XXXXXXXXXX") ||
    cannot_tell no-temp "${TEMP_DIR}: expected room for a private folder, observed none" "free some space"
  mkdir -- "${WORK}/docker" ||
    cannot_tell no-temp "${TEMP_DIR}: expected room for a private folder, observed none" "free some space"
  CHILD_ENV+=("DOCKER_HOST=${ENGINE}" "DOCKER_CONFIG=${DOCKER_CONFIG_DIR:-${WORK}/docker}")
  cd -- "${COMPOSE_DIR}" ||
    cannot_tell compose-dir "COMPOSE_DIR: expected a folder that the hook may enter, observed ${COMPOSE_DIR}" \
      "correct its mode"
}

# Remove the private folders of this user's killed runs, once nothing of these can work any more: after an hour.
sweep_folders() {
  local folder pid leftovers=("${TEMP_DIR}"/imagefresh.[0-9]*.*)
  [[ -e "${leftovers[0]}" ]] || return 0 # the usual case, and every mode begins here
  while IFS= read -r -d '' folder; do
    pid=${folder##*/imagefresh.}
    [[ -e "/proc/${pid%%.*}" ]] || rm -rf -- "${folder}" 2>/dev/null || :
  done < <(find "${TEMP_DIR}" -maxdepth 1 -type d -user "${EUID}" -name 'imagefresh.[0-9]*.*' -mmin +60 -print0 2>/dev/null || :)
}

require_tools() {
  local tool
  for tool in docker git curl flock timeout base64 readlink sha256sum; do
    type -P "${tool}" >/dev/null ||
      cannot_tell tool-missing \
        "this host: expected docker, git, curl, flock, timeout, base64, readlink and sha256sum, observed not all" \
        "install them in ${SAFE_PATH}"
  done
  # Orphans: COMPOSE_REMOVE_ORPHANS in a .env must not make compose remove what another profile runs.
  CHILD_ENV=("PATH=${SAFE_PATH}" "HOME=${HOME}" LC_ALL=C COMPOSE_REMOVE_ORPHANS=false COMPOSE_IGNORE_ORPHANS=true)
}

# Podman says that it is another engine whenever it is asked. What it is shows in the log drivers, in the same answer, and
# IMAGE_STORE is how the engine keeps its images. On a second line the client says where its compose is.
require_engine() {
  local program
  ask "${QUICK}" docker info --format '{{.ID}} {{.Plugins.Log}} {{.DriverStatus}}
{{range .ClientInfo.Plugins}}{{if eq .Name "compose"}}{{.Path}}{{end}}{{end}}'
  if [[ "${STATUS}" != 0 || ! "${REPLY}" =~ ^([A-Za-z0-9:_-]+)' ['([^][]*)'] '(.*)$ ]]; then
    error_line
    cannot_tell engine-down "the engine at ${ENGINE}: expected an answer, observed: ${REPLY}" "start it and try again"
  fi
  [[ " ${BASH_REMATCH[2]} " != *' k8s-file '* ]] ||
    refuse engine-unsupported "the engine at ${ENGINE}: expected a Docker engine, observed podman, which has no ID of its own" \
      "use dockerd 20.10 or later"
  ENGINE_ID=${BASH_REMATCH[1]}
  IMAGE_STORE=${BASH_REMATCH[3]%$'\n'*}
  program=${REPLY##*$'\n'}
  if [[ "${program}" == /* && -f "${program}" && -x "${program}" ]]; then
    COMPOSE_READER=("${program}")
  fi
}

# A docker command said no: CAUSE OBSERVED ADVICE. Is that an answer, or is the engine gone?
blame() {
  require_engine
  refuse "$@"
}

# --- One run at a time -----------------------------------------------------------------------------------------------
# Three files in the state folder, never deleted: a lock on a deleted file is none.
# * lock: held by the one mode, or the one lease, that owns this compose folder for now; descriptor 9 of its holder.
# * turn: held by a mode that a lease lets through, as its descriptor 9, so that its commands which change the host
#   inherit it. Whoever gets the lock waits for the turn, too: a lease may end while such a command still works.
# * lease: locked by --lease as long as it lives; it holds the run and the SHA-256 of the token. It is written by the
#   holder of both lock and turn, and read by a holder of the turn: never while it changes hands.

# Own this compose folder, or stop: SECONDS to wait.
take_lock() {
  open_state
  if [[ -n "${LEASE+set}" ]]; then
    step lock "taking the turn of run ${RUN_ID} in ${COMPOSE_DIR}"
    own 9 turn "$1"
    sign turn
    watch_lease
  else
    step lock "taking the lock of ${COMPOSE_DIR}"
    own_folder "$1"
    exec 8>&-
  fi
}

# Hold the lock as descriptor 9 and, for the moment, the turn as descriptor 8: SECONDS to wait for each.
own_folder() {
  own 9 lock "$1"
  sign lock
  own 8 turn "$1"
}

# Write into a lock who holds it, for those who wait: NAME. A full disk must not keep --recover from its work.
sign() {
  local since
  TZ=UTC0 printf -v since '%(%Y-%m-%dT%H:%M:%SZ)T' -1
  HOLDER="${STATE}/$1"
  printf '%s %s since %s\n' "${RUN_ID}" "${MODE}" "${since}" 2>/dev/null >"${HOLDER}" ||
    say "warning: ${HOLDER} could not be written: whoever waits will not see who holds it"
}

open_state() {
  mkdir -m 0700 -- "${STATE}" 2>/dev/null || [[ -d "${STATE}" && ! -L "${STATE}" && -O "${STATE}" ]] ||
    refuse state-unsafe "${STATE}: expected a folder that this user owns or can create, observed none" 'correct it'
  chmod 0700 -- "${STATE}" ||
    refuse state-unsafe "${STATE}: expected a folder that only this user can enter, observed another mode" 'correct it'
}

# Open a file of the state folder and lock it: DESCRIPTOR NAME SECONDS.
own() {
  local holder told='' slice deadline=$((SECONDS + $3)) who='another run holds the lock'
  [[ "$2" == lock ]] || who='a mode that was let through still works'
  open_lock "$1" "${STATE}/$2"
  run_child "${QUICK}" flock -n "$1"
  while [[ "${STATUS}" != 0 ]]; do
    holder=''
    IFS= read -r holder <"${STATE}/$2" || :
    slice=${SLICE}
    [[ -n "${holder}" || -z "${told}" ]] || holder='it does not say which one'
    if [[ -z "${holder}" ]]; then
      told='-' slice=1 # whoever has just taken it is about to say so
    elif [[ "${holder}" != "${told}" ]]; then
      step wait "${who}: ${holder}; waiting at most $3 s"
      told=${holder}
    fi
    heed_caller 0.01
    ((SECONDS < deadline)) ||
      cannot_tell locked "${COMPOSE_DIR}: expected its $2 within $3 s, observed that ${who}: ${holder}" \
        "wait for that run and try again"
    run_child "${QUICK}" flock -w $((deadline - SECONDS < slice ? deadline - SECONDS : slice)) "$1"
  done
}

# DESCRIPTOR FILE
open_lock() {
  case "$1" in
    7) exec 7<>"$2" ;;
    8) exec 8<>"$2" ;;
    *) exec 9<>"$2" ;;
  esac 2>/dev/null ||
    refuse state-unsafe "$2: expected a file that the hook can open, observed none" 'correct or remove it'
}

# Stop unless LEASE is the token of a lease that lives.
require_lease() {
  local line='' digest
  digest=$(printf '%s' "${LEASE}" | sha256sum)
  [[ ! -O "${STATE}" || -L "${STATE}" || ! -f "${STATE}/lease" ]] || IFS= read -r line <"${STATE}/lease" || :
  [[ "${line}" == "${RUN_ID} ${digest%% *}" ]] || lose_lease
  run_child "${QUICK}" flock --nonblock --shared --conflict-exit-code 7 "${STATE}/lease" true
  [[ "${STATUS}" == 7 ]] || lose_lease
}

# The same, and have a process wait for its end: it interrupts this one, in the middle of whatever it does.
# shellcheck disable=SC2016 # expanded by the inner shell; its parent is flock, whose parent must still be this process
watch_lease() {
  local interrupt='read -r _ _ _ parent _ </proc/$PPID/stat; [ "$parent" != "$1" ] || kill -s USR1 "$1"'
  require_lease
  trap lose_lease USR1
  env -i "${CHILD_ENV[@]}" flock --shared "${STATE}/lease" sh -c "${interrupt}" sh "$$" \
    </dev/null >/dev/null 2>&1 3>&- 4>&- 9>&- &
  WATCHER=$!
  # It ends in the very moment of its signal, in which bash 5.2 may lose its end: nothing may ever wait for it.
  disown "${WATCHER}"
}

# Stop when the lease that lets this mode through has ended. Once production is changing, nobody listens any more.
heed_lease() {
  [[ -z "${WATCHER}" || "${PHASE}" != before ]] || kill -0 "${WATCHER}" 2>/dev/null || lose_lease
}

lose_lease() {
  cannot_tell lease-lost \
    "${COMPOSE_DIR}: expected run ${RUN_ID} to hold its lease, observed that it does not, or not any more" \
    "start the run again"
}

# Hold the lock until the caller says that it is done, or says nothing.
lease() {
  local digest
  now
  HEARD=${NOW}
  require_tools
  open_state
  own_folder "${BUILD_WAIT}"
  TOKEN=$(head -c 32 /dev/urandom | sha256sum)
  TOKEN=${TOKEN%% *}
  digest=$(printf '%s' "${TOKEN}" | sha256sum)
  own 7 lease "${QUICK}"
  printf '%s %s\n' "${RUN_ID}" "${digest%% *}" >"${STATE}/lease" ||
    refuse state-unsafe "${STATE}/lease: expected to write it, observed no success" "look for free space"
  exec 8>&-
  now
  LEASED=${NOW}
  answer_lease
  while :; do
    heed_caller "${SILENCE}"
  done
}

# Print the line that says for how long this lease has been held.
answer_lease() {
  now
  printf '{"lease":"%s","held":%d.%03d}\n' "${TOKEN}" $(((NOW - LEASED) / 1000)) $(((NOW - LEASED) % 1000)) \
    2>/dev/null >&3 || interrupted PIPE
}

# In --lease: read one line of the caller, for SECONDS at most. Ends when there is no caller any more.
heed_caller() {
  local word='' status=0
  [[ "${MODE}" == --lease ]] || return 0
  IFS= read -r -t "$1" word <&5 || status=$?
  now
  case "${status}:${word}" in
    0:release) [[ -z "${TOKEN}" ]] || conclude 'done' released "run ${RUN_ID} gave back the lock of ${COMPOSE_DIR}" ;;
    0:held) [[ -z "${TOKEN}" ]] || answer_lease ;;
    0:*) ;;
    1:*) cannot_tell lease-lost "the caller of --lease: expected a line or the word release, observed its end" \
      "start the run again" ;;
    *)
      ((NOW - HEARD < SILENCE * 1000)) ||
        cannot_tell lease-lost "the caller of --lease: expected a line every 5 s, observed none for ${SILENCE} s" \
          "start the run again"
      return 0
      ;;
  esac
  HEARD=${NOW}
}

# --- Compose ---------------------------------------------------------------------------------------------------------
# Questions go to compose's own program, where docker tells its path: docker starts a plugin twice in each call, which is
# half of the time. That program is made to be run by itself, too: https://github.com/docker/compose/issues/9150
# What changes something goes through docker.

# Resolve the host's own compose files once, all profiles, into $WORK/compose.json. ARGV: nothing, or env with a pin.
resolve_compose() {
  ask_compose "$@"
  await_compose compose.json 'a valid compose file'
  take_compose
}

# Ask compose for it, and go on.
ask_compose() {
  # Where there is none, compose would take one of a folder above.
  [[ -f compose.yaml || -f compose.yml || -f docker-compose.yaml || -f docker-compose.yml ]] ||
    grep -qs '^COMPOSE_FILE=' .env ||
    refuse compose-missing "${COMPOSE_DIR}: expected a compose file, observed none" \
      "COMPOSE_DIR names the folder of compose.yaml"
  begin compose.json "${QUICK}" "$@" "${COMPOSE_READER[@]}" --profile '*' config --format json
}

# Take what it answered.
take_compose() {
  COMPOSE_SHA256=$(sha256sum <"${WORK}/compose.json")
  COMPOSE_SHA256=${COMPOSE_SHA256%% *}
  parse_compose "${WORK}/compose.json"
}

# NAME EXPECTED
await_compose() {
  await "$1"
  refuse_timeout "${QUICK}" docker compose config
  [[ "${STATUS}" != 0 ]] || return 0
  error_line "$1.err"
  blame compose-invalid "${COMPOSE_DIR}: expected $2, observed: ${REPLY}" "correct it"
}

# Leave PROJECT and the SERVICE_* tables. The JSON is Compose's own, one value per line, indented by two spaces.
parse_compose() {
  local line section='' service='' key='' target=''
  PROJECT=''
  declare -gA SERVICE_IMAGE=() SERVICE_CONTAINER=() SERVICE_BUILD=()
  declare -gA SERVICE_PROFILES=() SERVICE_DEPENDS=() SERVICE_PORTS=() SERVICE_PULL=() SERVICE_SAYS=() SERVICE_MOUNTS=()
  declare -gA SERVICE_TARGET=() SERVICE_NAMED=() SERVICE_SOURCES=()
  while IFS= read -r line; do
    if [[ "${line}" =~ ^' '{2}\"([a-z0-9-]+)\":' '(.*)$ ]]; then
      section=${BASH_REMATCH[1]}
      [[ "${section}" != name ]] || PROJECT=${BASH_REMATCH[2]//[\",]/}
    elif [[ "${section}" != services ]]; then
      continue
    elif [[ "${line}" =~ ^' '{4}\"([^\"]+)\":' {' ]]; then
      service=${BASH_REMATCH[1]}
      SERVICE_IMAGE[${service}]="${PROJECT}-${service}"
      SERVICE_CONTAINER[${service}]="${PROJECT}-${service}-1"
    elif [[ "${line}" =~ ^' '{6}\"([a-z_]+)\":' '(.*)$ ]]; then
      key=${BASH_REMATCH[1]}
      parse_service_key "${service}" "${key}" "${BASH_REMATCH[2]}"
    else
      parse_service_item "${service}" "${key}" "${line}"
    fi
  done <"$1"
}

# SERVICE KEY VALUE
parse_service_key() {
  local value=${3%,}
  value=${value#\"}
  value=${value%\"}
  case "$2" in
    image) SERVICE_IMAGE[$1]=${value} ;;
    container_name) SERVICE_CONTAINER[$1]=${value} SERVICE_NAMED[$1]=1 ;;
    build) SERVICE_BUILD[$1]=1 ;;
    pull_policy) SERVICE_PULL[$1]=${value} ;;
    entrypoint | command | user) [[ "${value}" == null ]] || SERVICE_SAYS[$1]+=" $2 " ;;
    *) ;;
  esac
}

# SERVICE KEY LINE: an entry of a list or table below a key of a service.
parse_service_item() {
  case "$2" in
    profiles) [[ ! "$3" =~ ^' '{8}\"(.*)\" ]] || SERVICE_PROFILES[$1]+=" ${BASH_REMATCH[1]} " ;;
    depends_on) [[ ! "$3" =~ ^' '{8}\"(.*)\":' {' ]] || SERVICE_DEPENDS[$1]+=" ${BASH_REMATCH[1]}" ;;
    ports) parse_port "$1" "$3" ;;
    volumes)
      [[ ! "$3" =~ ^' '{10}\"target\":' '\"(.*)\" ]] || SERVICE_MOUNTS[$1]+="${BASH_REMATCH[1]}"$'\n'
      [[ ! "$3" =~ ^' '{10}\"source\":' '\"(.*)\" ]] || SERVICE_SOURCES[$1]+="${BASH_REMATCH[1]}"$'\n'
      ;;
    configs | secrets)
      [[ ! "$3" =~ ^' '{10}\"(source|target)\":' '\"(.*)\" ]] || SERVICE_MOUNTS[$1]+="${BASH_REMATCH[2]}"$'\n'
      ;;
    *) ;;
  esac
}

# SERVICE LINE, of whose ports the container's comes before the host's. SERVICE:PORT of the host is a key of SERVICE_TARGET.
parse_port() {
  local published
  if [[ "$2" =~ ^' '{10}\"target\":' '([0-9]+) ]]; then
    target=${BASH_REMATCH[1]}
  elif [[ "$2" =~ ^' '{10}\"published\":' '\"(.*)\" ]]; then
    published=${BASH_REMATCH[1]}
    SERVICE_PORTS[$1]+=" ${published} "
    published="$1:${published}"
    SERVICE_TARGET[${published}]=${target}
  fi
}

# Leave in COMPOSE the words that call compose for a service which is to run an image ID: SERVICE PROFILE ID PIN.
compose_with() {
  local argv=(docker compose)
  if [[ -n "$4" ]]; then # the host's own files, so that a later plain `up` finds the same configuration
    argv=(env "$4=$3" docker compose)
  else
    write_override "$1" "$3"
    argv+=(--project-name "${PROJECT}" --project-directory "${COMPOSE_DIR}")
    argv+=(-f "${WORK}/compose.json" -f "${WORK}/override.yaml")
  fi
  [[ -z "$2" ]] || argv+=(--profile "$2")
  COMPOSE=("${argv[@]}")
}

# Recreate one service from an image ID: SERVICE PROFILE ID PIN. Nothing else is started, built or pulled.
recreate() {
  compose_with "$@"
  change "${RECREATE}" "${COMPOSE[@]}" up -d --force-recreate --no-deps --no-build --pull never "$1"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    name_port_owners "$1"
    blame recreate-failed "service $1: expected compose to recreate it, observed: ${REPLY}" "correct that and try again"
  fi
}

# SERVICE ID
write_override() {
  local lines=('services:' "  \"$1\":" "    image: \"$2\"" '    pull_policy: never')
  [[ -z "${SERVICE_BUILD[$1]-}" ]] || lines+=('    build: !reset null')
  printf '%s\n' "${lines[@]}" >"${WORK}/override.yaml"
}

# Leave in FOUND the IDs of all containers of a service of this project, in any state.
find_containers() {
  ask "${QUICK}" docker container ls --all --quiet --no-trunc --filter "label=com.docker.compose.project=${PROJECT}" \
    --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame container-list "the containers of service $1: expected a list, observed: ${REPLY}" "look at the engine"
  fi
  FOUND=()
  [[ -z "${REPLY}" ]] || mapfile -t FOUND <<<"${REPLY}"
}

# --- Images and containers -------------------------------------------------------------------------------------------

# Look at one image once. Leaves SEEN_ID and SEEN_REVISION (the JSON text of its label); both empty where there is none.
read_image() {
  local format="{{.Id}} {{with .Config}}{{with .Labels}}{{json (index . \"${LABEL}\")}}{{end}}{{end}}"
  ask "${QUICK}" docker image inspect --format "${format}" -- "$1"
  SEEN_ID='' SEEN_REVISION=''
  [[ "${STATUS}" == 0 ]] || require_absent "image $1"
  [[ "${STATUS}" == 0 ]] || return 0
  SEEN_ID=${REPLY%% *}
  SEEN_REVISION=${REPLY#* }
  [[ "${SEEN_REVISION}" != null ]] || SEEN_REVISION='' # other labels, but not this one
  [[ "${SEEN_ID}" =~ ^${IMAGE_ID_PATTERN}$ ]] ||
    cannot_tell engine-answer "image $1: expected an image ID, observed ${SEEN_ID:-nothing}" 'look at the engine'
}

# Look at one container once, by its full ID. Leaves the SEEN table, empty where there is none.
read_container() {
  local lines=() names=(id name image status exit started restarts network health ports) index
  ask "${QUICK}" docker container inspect --format "${CONTAINER_FORMAT}" -- "$1"
  declare -gA SEEN=()
  [[ "${STATUS}" == 0 ]] || require_absent "container ${1:0:12}"
  [[ "${STATUS}" == 0 ]] || return 0
  mapfile -t lines <<<"${REPLY}"
  for index in "${!names[@]}"; do
    SEEN[${names[index]}]=${lines[index]-}
  done
}

# An inspect failed: stop unless the engine itself says that there is no such thing: SUBJECT. Keeps STATUS above 0.
require_absent() {
  if ! grep -qi 'no such' "${WORK}/err"; then
    error_line
    cannot_tell engine-answer "$1: expected an answer from the engine, observed: ${REPLY}" 'look at it and try again'
  fi
}

# Take the one container of a service: SERVICE ID PORT. What it runs is compared by image ID.
take_container() {
  find_containers "$1"
  [[ "${#FOUND[@]}" == 1 ]] ||
    refuse container-count "service $1: expected exactly 1 container, observed ${#FOUND[@]}" \
      "the hook handles services without replicas"
  take_only "$@"
  find_address "$3"
}

# Take the one container of FOUND: SERVICE ID.
take_only() {
  CONTAINER_ID=${FOUND[0]}
  read_container "${CONTAINER_ID}"
  STARTED_AT=${SEEN[started]-}
  [[ "${SEEN[image]-}" == "$2" ]] ||
    refuse container-image "service $1: expected its container to run $2, observed ${SEEN[image]-no container}" \
      "look for another compose call at the same time"
  judge_container
}

# Stop unless the container runs without a restart since it was taken.
require_alive() {
  read_container "${CONTAINER_ID}"
  judge_container
}

judge_container() {
  local state
  state=${SEEN[status]-gone}
  case "${SEEN[started]-}/${SEEN[restarts]-}/${state}/${SEEN[health]-}" in
    "${STARTED_AT}/0/running/unhealthy") state='unhealthy by its own health check' ;;
    "${STARTED_AT}/0/running/"*) return 0 ;;
    */running/*) state="restarted (${SEEN[restarts]} times)" ;;
    *) state+=" (exit status ${SEEN[exit]-unknown})" ;;
  esac
  log_tail
  refuse unhealthy "container ${CONTAINER_ID:0:12}: expected it to stay up, observed ${state}; its log ends: ${REPLY}" \
    "correct the service"
}

# Leave the last lines of the container's log in REPLY, as one line.
log_tail() {
  ask "${QUICK}" docker container logs --tail 4 "${CONTAINER_ID}"
  REPLY=$(cat -- "${WORK}/out" "${WORK}/err" | tail -n 6)
  one_line "${REPLY:-nothing}"
}

# Leave in ADDRESS where PORT of the taken container answers.
find_address() {
  local binding host=''
  ADDRESS=''
  [[ "${SEEN[network]-}" != host ]] || ADDRESS="127.0.0.1:$1"
  for binding in ${SEEN[ports]-}; do
    [[ "${binding}" == */tcp\|*\|"$1" ]] || continue
    host=${binding#*|}
    host=${host%|*}
    case "${host}" in
      '' | 0.0.0.0 | ::) ADDRESS="127.0.0.1:$1" ;;
      *:*) ADDRESS="[${host}]:$1" ;;
      *) ADDRESS="${host}:$1" ;;
    esac
    break
  done
  [[ -n "${ADDRESS}" ]] || require_alive # a container that is just dying has no ports any more
  [[ -n "${ADDRESS}" ]] ||
    refuse port-not-published \
      "container ${CONTAINER_ID:0:12}: expected it to publish port $1, observed: ${SEEN[ports]%.}" \
      "correct the ports of the compose file"
}

# Ask which running containers publish a port, and go on: PORT.
ask_publishers() {
  local label='.Label "com.docker.compose'
  begin publishers "${QUICK}" docker container ls --no-trunc --filter "publish=$1" \
    --format "{{.Names}}|{{${label}.project\"}}|{{${label}.service\"}}|{{${label}.oneoff\"}}"
}

# Refuse where one of them is a container that compose will not replace: PORT SERVICE. One of `compose run` bears the
# service's labels, too.
refuse_foreign_port() {
  local line
  await_list publishers "the owner of port $1"
  while IFS= read -r line; do
    [[ -z "${line}" || "${line#*|}" == "${PROJECT}|$2|False" ]] ||
      refuse port-taken "port $1: expected nobody or service $2, observed container ${line%%|*}" \
        "stop that container or choose another port"
  done <"${WORK}/publishers"
}

# Wait for a list that the engine was asked for: NAME SUBJECT.
await_list() {
  await "$1"
  refuse_timeout "${QUICK}" docker container ls
  [[ "${STATUS}" != 0 ]] || return 0
  error_line "$1.err"
  blame container-list "$2: expected a list, observed: ${REPLY}" "look at the engine"
}

# Compose could not start a SERVICE, and REPLY says why: add who owns the ports that it names, for people.
name_port_owners() {
  local said=${REPLY} port
  for port in ${SERVICE_PORTS[$1]-}; do
    [[ "${REPLY}" =~ :${port}([^0-9]|$) ]] || continue
    find_port_owner "${port}"
    said+="; port ${port} is owned by ${REPLY}"
    break
  done
  REPLY=${said}
}

# Leave in REPLY who owns a port of this host, as far as this user and its tools can see: PORT. Never ends the run.
find_port_owner() {
  local owner=''
  run_child "${QUICK}" docker container ls --filter "publish=$1" --format 'container {{.Names}}' \
    >"${WORK}/out" 2>/dev/null 9>&-
  IFS= read -r owner <"${WORK}/out" || :
  [[ -n "${owner}" ]] || owner=$(ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*users:((\([^)]*\)).*/process \1/p') ||
    owner=''
  one_line "${owner:-a process that cannot be seen from here}"
}

# --- Health ----------------------------------------------------------------------------------------------------------

# Wait for HTTP 200 from the port that the taken container publishes.
await_health() {
  local deadline
  step health "waiting for ${HEALTH_PATH} at ${ADDRESS}"
  milliseconds "${HEALTH_TIMEOUT}"
  deadline=$((NOW + REPLY))
  probe
  until [[ "${ANSWER}" == 200 ]]; do
    require_alive
    now
    if ((NOW >= deadline)); then
      log_tail
      refuse unhealthy \
        "http://${ADDRESS}${HEALTH_PATH}: expected 200, observed ${ANSWER} for ${HEALTH_TIMEOUT} s; its log: ${REPLY}" \
        "correct the service or raise the timeout"
    fi
    pause 0.05
    probe
  done
}

# Ask once. Leaves the HTTP status in ANSWER, or why there was none. Redirects are answers of their own.
probe() {
  run_child 10 curl -q --silent --show-error --output /dev/null --write-out '%{http_code}' --noproxy '*' --proto =http \
    --max-time 3 "http://${ADDRESS}${HEALTH_PATH}" >"${WORK}/out" 2>"${WORK}/err" 9>&-
  ANSWER=$(<"${WORK}/out")
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    ANSWER=${REPLY}
  fi
}

# Wait until the container has been up for SETTLE seconds, and prove that it is still the same one: SERVICE.
settle() {
  local end
  step settle "letting it settle for ${SETTLE} s"
  end=$(date -d "${STARTED_AT}" +%s%3N) || end=${NOW}
  milliseconds "${SETTLE}"
  end=$((end + REPLY < NOW + REPLY ? end + REPLY : NOW + REPLY)) # never longer, whatever the engine's clock says
  require_alive
  now
  while ((NOW < end)); do
    pause 0.1
    require_alive
    now
  done
  find_containers "$1"
  [[ "${FOUND[*]}" == "${CONTAINER_ID}" ]] ||
    refuse container-replaced "service $1: expected container ${CONTAINER_ID:0:12} alone, observed ${FOUND[*]:-none}" \
      "another compose call interfered"
}

# --- Staging: never production ---------------------------------------------------------------------------------------

# What the names alone tell.
refuse_production_names() {
  local image
  canonical "${TARGET_IMAGE}"
  image=${REPLY}
  [[ "${TARGET_SERVICE,,}" != "${REPO,,}" ]] ||
    refuse service-is-repo \
      "TARGET_SERVICE: expected a staging service, observed ${TARGET_SERVICE}, the repo's own name" \
      "name the staging service"
  [[ "${image}" != "${REPO,,}-${REPO,,}:latest" ]] ||
    refuse image-is-prod \
      "TARGET_IMAGE: expected a staging image, observed ${TARGET_IMAGE}, the repo's production image" \
      "name the staging image"
  [[ "${TARGET_SERVICE}" != "${PROD_SERVICE}" ]] ||
    refuse service-is-prod "TARGET_SERVICE: expected a service other than production's, observed ${TARGET_SERVICE}" \
      "name the staging service"
  [[ "${TARGET_SERVICE}" != "${PROD_PROXY-}" ]] ||
    refuse service-is-prod "TARGET_SERVICE: expected a service other than production's proxy, observed ${TARGET_SERVICE}" \
      "name the staging service"
  [[ "${TARGET_PORT}" != "${PROD_PORT}" ]] ||
    refuse port-is-prod "TARGET_PORT: expected a port other than production's, observed ${TARGET_PORT}" \
      "name the staging port"
  [[ -n "${PROD_IMAGE}" ]] || return 0
  canonical "${PROD_IMAGE}"
  [[ "${image}" != "${REPLY}" ]] ||
    refuse image-is-prod "TARGET_IMAGE: expected an image other than production's, observed ${TARGET_IMAGE}" \
      "name the staging image"
}

# What this hook once promoted is production, whatever a caller says.
refuse_promoted() {
  local kind value
  canonical "${TARGET_IMAGE}"
  [[ -f "${STATE}/promoted" ]] || return 0
  while read -r kind value; do
    case "${kind} ${value}" in
      "service ${TARGET_SERVICE}" | "port ${TARGET_PORT}" | "image ${REPLY}")
        refuse "${kind}-was-promoted" \
          "staging ${kind} ${value}: expected it never to have been production, observed it in ${STATE}/promoted" \
          "name staging's own, or take the line out if it is wrong"
        ;;
      *) ;;
    esac
  done <"${STATE}/promoted"
}

# What the host's compose files tell.
refuse_production_services() {
  local service profiles=${SERVICE_PROFILES[${TARGET_SERVICE}]-}
  [[ -n "${SERVICE_IMAGE[${TARGET_SERVICE}]-}" ]] ||
    refuse service-missing "TARGET_SERVICE: expected a service of ${COMPOSE_DIR}, observed ${TARGET_SERVICE}" \
      "the compose file has: ${!SERVICE_IMAGE[*]}"
  [[ "${profiles}" == *" ${COMPOSE_PROFILE} "* ]] ||
    refuse service-not-in-profile \
      "service ${TARGET_SERVICE}: expected it in profile ${COMPOSE_PROFILE}, observed profiles:${profiles:- none}" \
      "correct the compose file"
  for service in "${!SERVICE_IMAGE[@]}"; do
    [[ "${service}" == "${TARGET_SERVICE}" ]] || refuse_shared_with "${service}"
  done
}

# Ask compose what a plain `up` starts, and go on.
ask_default_services() {
  begin services "${QUICK}" "${COMPOSE_READER[@]}" config --services
}

refuse_default_service() {
  local services
  await_compose services 'a compose file that is valid without profiles'
  services=$(<"${WORK}/services")
  [[ $'\n'"${services}"$'\n' != *$'\n'"${TARGET_SERVICE}"$'\n'* ]] ||
    refuse service-without-profile \
      "service ${TARGET_SERVICE}: expected it to need a profile, observed that a plain compose up starts it" \
      "give it a profile, and take that out of COMPOSE_PROFILES"
}

# SERVICE: another one of the compose files.
refuse_shared_with() {
  local image
  canonical "${TARGET_IMAGE}"
  image=${REPLY}
  canonical "${SERVICE_IMAGE[$1]}"
  [[ "${REPLY}" != "${image}" ]] ||
    refuse image-of-other-service \
      "TARGET_IMAGE: expected an image that no other service uses, observed ${TARGET_IMAGE}, the image of service $1" \
      "give staging an image of its own"
  [[ "${SERVICE_PROFILES[$1]-}" == *" ${COMPOSE_PROFILE} "* || "${SERVICE_PORTS[$1]-}" != *" ${TARGET_PORT} "* ]] ||
    refuse port-of-other-service \
      "TARGET_PORT: expected a port of profile ${COMPOSE_PROFILE} alone, observed ${TARGET_PORT}, a port of $1" \
      "give staging a port of its own"
}

# Ask who bears staging's name, and go on.
ask_owner() {
  begin owner "${QUICK}" docker container ls --all --no-trunc --filter "name=^/${STAGING_CONTAINER//./\\.}\$" \
    --format '{{.Label "com.docker.compose.project"}}|{{.Label "com.docker.compose.service"}}'
}

# The name must be the one that compose will give, and must not be borne by a stranger now.
refuse_foreign_container() {
  local planned=${SERVICE_CONTAINER[${TARGET_SERVICE}]} owner
  [[ "${planned}" == "${STAGING_CONTAINER}" ]] ||
    refuse container-name \
      "STAGING_CONTAINER: expected ${planned}, the name in the compose file, observed ${STAGING_CONTAINER}" \
      "make them agree"
  await_list owner "container ${STAGING_CONTAINER}"
  owner=$(<"${WORK}/owner")
  owner=${owner:-${PROJECT}|${TARGET_SERVICE}}
  [[ "${owner}" == "${PROJECT}|${TARGET_SERVICE}" ]] ||
    refuse container-foreign \
      "container ${STAGING_CONTAINER}: expected it to belong to ${PROJECT}|${TARGET_SERVICE}, observed ${owner}" \
      "remove or rename it"
}

# --- Staging: the commit's own bytes ---------------------------------------------------------------------------------

# The context lies in a checkout that is kept for the next build of this target, so that a builder finds what it knows:
# git moves it from commit to commit, and every file that it writes gets a fresh time. What is proven is not that record:
# 1. The objects are read through a store of our own: configuration, attributes, hooks, owner of the clone have no say.
# 2. The commit's bytes must give the commit's ID again, and the listing of its files the tree that those bytes name.
# 3. Every byte on disk is hashed again, whatever its time and size: before the build where all files are new, else after
#    it, while staging is tried, and before anything is said or tagged. One difference, and all of it is made anew.
# Only a run that ends well hands its checkout on.

# Leave in REPLY the git folder of a clone: bare, with a .git folder, or a linked worktree with a .git file.
find_git_dir() {
  local line=''
  REPLY=$1
  [[ ! -e "$1/.git" ]] || REPLY="$1/.git"
  if [[ -f "${REPLY}" ]]; then
    IFS= read -r line <"${REPLY}" || :
    line=${line#gitdir: }
    [[ "${line}" == /* ]] || line="$1/${line}"
    REPLY=${line}
  fi
  line=''
  [[ ! -f "${REPLY}/commondir" ]] || IFS= read -r line <"${REPLY}/commondir" || :
  [[ -z "${line}" || "${line}" == /* ]] || line="${REPLY}/${line}"
  REPLY=${line:-${REPLY}}
  [[ -d "${REPLY}/objects" ]] ||
    refuse clone-missing "BUILD_CONTEXT: expected a git clone, observed none at $1" "clone the repo there"
}

# A git folder of this run alone, and the folder of the checkout.
open_store() {
  STORE="${WORK}/git"
  KEPT="${STATE}/.checkout/${REPO}/${TARGET_SERVICE}"
  EXPORT="${KEPT}/tree"
  mkdir -p -- "${STATE}/.checkout" || no_room
  chmod 00700 -- "${STATE}/.checkout" || no_room # five digits: what lies below must not inherit a group
  mkdir -p -- "${STORE}/objects/info" "${STORE}/info" "${STORE}/refs" "${EXPORT}" || no_room
  printf 'ref: refs/heads/none\n' >"${STORE}/HEAD"
  printf '%s\n' '[core]' 'repositoryformatversion = 0' 'bare = false' 'filemode = true' 'symlinks = true' >"${STORE}/config"
}

no_room() {
  cannot_tell no-temp "${TEMP_DIR} and ${KEPT}: expected room for the export, observed none" "free some space"
}

# Run git on the store of this run and the checkout: INDEX ARGV. Standard input is passed on.
git_in() {
  git_words "$@"
  local CHILD_ENV=("${GIT_ENV[@]}") # what run_child gives its command
  ask "${BUILD_TIMEOUT}" "${GIT_WORDS[@]}"
}

# Leave a git command in GIT_WORDS and its environment in GIT_ENV: INDEX ARGV. An index without a folder is one of this
# run's.
git_words() {
  local index=$1
  shift
  [[ "${index}" == /* ]] || index="${STORE}/${index}"
  GIT_ENV=("${CHILD_ENV[@]}" "HOME=${WORK}" "XDG_CONFIG_HOME=${WORK}" GIT_CONFIG_GLOBAL=/dev/null
    GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 GIT_NO_REPLACE_OBJECTS=1 GIT_NO_LAZY_FETCH=1 GIT_OPTIONAL_LOCKS=0
    "GIT_INDEX_FILE=${index}")
  GIT_WORDS=(git -C "${EXPORT}" "--git-dir=${STORE}" "--work-tree=${EXPORT}" "$@")
}

# Stop unless the last git call succeeded: WHAT WAS EXPECTED.
require_git() {
  [[ "${STATUS}" != 0 ]] || return 0
  error_line
  refuse export-failed "$1, observed: ${REPLY}" "run git fsck in the clone, and look for free space in ${KEPT}"
}

# List what a commit holds, and prove the listing: GIT_DIR COMMIT PATH NAME. Leaves the tree in REPLY. GIT_DIR is empty
# where the caller sent everything. PATH is where a submodule lies in the checkout, with a slash at its end, empty for the
# repo itself; submodules are listed likewise.
list_commit() {
  local git_dir=$1 commit=$2 path=$3 name=$4 where list tree
  LISTS=$((LISTS + 1))
  list="list.${LISTS}"
  where=${git_dir:+"the clone ${git_dir}"}
  [[ -z "${git_dir}" ]] || printf '%s\n' "${git_dir}/objects" >>"${STORE}/objects/info/alternates"
  read_commit "${commit}" "${name}" "${where:=the pack that the caller sent}"
  tree=${REPLY}
  prove_listing "${list}" "${tree}" "${name}" "${where}"
  find_lfs_paths "${list}" "${path}"
  add_to_whole "${list}" "${tree}" "${path}"
  list_submodules "${git_dir}" "${commit}" "${path}" "${list}"
  REPLY=${tree}
}

# Leave the tree of a commit in REPLY: COMMIT NAME WHERE.
read_commit() {
  local line kind size
  git_in none cat-file --batch <<<"$1"
  require_git "$2: expected to read commit $1"
  {
    read -r line kind size # `<ID> <kind> <size>`, or `<ID> missing`
    [[ -n "${size}" ]] || refuse commit-missing "$2: $3 does not hold commit $1" "fetch it there"
    [[ "${kind}" == commit ]] ||
      refuse not-a-commit "$2: expected $1 to be a commit, observed a ${kind}" "name the commit itself"
    head -c "${size}"
  } <"${WORK}/out" >"${WORK}/commit"
  git_in none hash-object -t commit --stdin <"${WORK}/commit"
  [[ "${STATUS}" == 0 && "${REPLY}" == "$1" ]] ||
    refuse commit-forged "$2: expected the bytes of commit $1, observed those of ${REPLY:-nothing}" "run git fsck there"
  IFS= read -r line <"${WORK}/commit"
  [[ "${line}" =~ ^tree\ ${HEX40}$ ]] ||
    refuse commit-forged "$2: expected commit $1 to name its tree, observed ${line@Q}" "run git fsck there"
  REPLY=${line#tree }
}

# Add the files that the commit's attributes give to LFS to LFS_PATHS: LIST PATH.
find_lfs_paths() {
  local file value status=0
  grep -qz '\.gitattributes$' "${STORE}/$1.entries" || status=$?
  [[ "${status}" != 1 ]] || return 0
  git_in "$1" grep --quiet --cached -e lfs -- '*.gitattributes'
  [[ "${STATUS}" != 1 ]] || return 0
  require_git 'the commit: expected to search its attributes'
  git_in "$1" ls-files -z
  mv -- "${WORK}/out" "${WORK}/paths"
  git_in "$1" check-attr --cached -z --stdin filter <"${WORK}/paths"
  require_git 'the commit: expected to read its attributes'
  while IFS= read -r -d '' file && IFS= read -r -d '' value && IFS= read -r -d '' value; do
    [[ "${value}" != lfs ]] || LFS_PATHS+=("$2${file}")
  done <"${WORK}/out"
}

# List a tree, and hash the listing again, without the trees that it was read from: LIST TREE NAME WHERE. Keeps it as the
# index LIST, which knows nothing of any file on disk, and in $STORE/LIST.entries.
prove_listing() {
  git_in none ls-tree -r -z --full-tree "$2"
  require_git "$3: expected its tree to be complete in $4"
  mv -- "${WORK}/out" "${STORE}/$1.entries"
  git_in "$1" update-index -z --index-info <"${STORE}/$1.entries"
  require_git "$3: expected to list its files again"
  git_in "$1" write-tree --missing-ok
  require_git "$3: expected to hash its tree again"
  [[ "${REPLY}" == "$2" ]] ||
    refuse tree-mismatch "$3: expected the listed files to be tree $2, observed ${REPLY}" "run git fsck in the clone"
}

# Add a listing to that of the whole checkout, in which a submodule's files stand for its entry: LIST TREE PATH.
# Without submodules the one is the other.
add_to_whole() {
  local paths="${STORE}/$1.submodules" status=0
  grep -z '^160000 ' "${STORE}/$1.entries" >"${paths}" 2>"${WORK}/err" || status=$?
  if ((status > 1)); then
    error_line
    refuse export-failed "tree $2: expected to search its listing for submodules, observed: ${REPLY}" \
      "look for free space in ${TEMP_DIR}"
  fi
  if [[ -z "$3" && ! -s "${paths}" ]]; then
    WHOLE_TREE=$2
    mv -- "${STORE}/$1" "${STORE}/whole"
    return 0
  fi
  if [[ -z "$3" ]]; then
    git_in whole read-tree -i --reset "$2"
  else
    git_in whole read-tree -i "--prefix=$3" "$2"
  fi
  require_git "tree $2: expected to list it as part of the checkout"
  sed -z 's/^[^\t]*\t//' <"${paths}" >"${WORK}/paths"
  mapfile -d '' -t ITEMS <"${WORK}/paths"
  [[ "${#ITEMS[@]}" -gt 0 ]] || return 0
  printf '%s\0' "${ITEMS[@]/#/"$3"}" >"${WORK}/paths"
  git_in whole update-index -z --force-remove --stdin <"${WORK}/paths"
  require_git "tree $2: expected to take its submodules out of the list"
}

# Leave the tree of a checkout with submodules as that of a single repo.
finish_whole() {
  git_in whole write-tree --missing-ok
  require_git "${REPO}: expected a tree of all files"
  WHOLE_TREE=${REPLY}
}

# GIT_DIR COMMIT PATH LIST
list_submodules() {
  local entry place name
  while IFS= read -r -d '' entry; do
    place=${entry#*$'\t'}
    submodule_name "$2" "${place}"
    name=${REPLY}
    [[ -n "${name}" && "/${name}/" != */../* ]] ||
      refuse submodule-unnamed "submodule ${place}: expected a name for it in .gitmodules of $2, observed none" \
        "commit .gitmodules"
    [[ -z "$1" || -d "$1/modules/${name}/objects" ]] ||
      refuse submodule-missing \
        "submodule ${place} at ${entry:14:40}: expected it in $1/modules/${name}, observed nothing" \
        "run git submodule update --init --recursive in the clone"
    list_commit "${1:+"$1/modules/${name}"}" "${entry:14:40}" "$3${place}/" "submodule ${place}"
  done <"${STORE}/$4.submodules"
}

# Leave in REPLY the name that .gitmodules of a commit gives to a path: COMMIT PATH.
submodule_name() {
  local entry name=''
  git_in none config --blob "$1:.gitmodules" --null --get-regexp '^submodule\..*\.path$'
  while IFS= read -r -d '' entry; do
    [[ "${entry#*$'\n'}" != "$2" ]] || name=${entry%%$'\n'*}
  done <"${WORK}/out"
  name=${name#submodule.}
  REPLY=${name%.path}
}

# Read one pack of git from standard input into the store of this run. Git hashes every object in it again and takes its
# name from that, so that a pack can only bring objects, whatever it claims; the rest is proven as with a clone.
receive_pack() {
  git_in none index-pack --stdin "--max-input-size=${PACK_LIMIT}" <&6
  exec 6<&-
  [[ "${STATUS}" != 0 ]] || return 0
  error_line
  refuse pack-broken "standard input: expected one whole pack of git, observed: ${REPLY}" \
    "send it again, and look for free space in ${TEMP_DIR}"
}

# Know every file of the commit, its mode and its hash, before one is written.
list_clone() {
  open_store
  if [[ "${BUILD_CONTEXT}" == - ]]; then
    step receive "receiving commit ${GIT_SHA}"
    receive_pack
    REPLY=''
  else
    find_git_dir "${BUILD_CONTEXT}"
  fi
  step list "listing commit ${GIT_SHA} of ${REPLY:-what the caller sent}"
  list_commit "${REPLY}" "${GIT_SHA}" '' "${REPO}"
  LISTED_TREE=${REPLY}
  [[ -n "${WHOLE_TREE}" ]] || finish_whole
  # From here on no attribute of the commit changes a byte.
  printf '%s\n' '* -text -eol !crlf -ident -filter !working-tree-encoding -export-subst' >"${STORE}/info/attributes"
}

# Move the kept checkout, if the last run left one. Sets MOVED where it looks right; its files are still to be hashed.
move_checkout() {
  INDEX="${KEPT}/index.taken"
  [[ ! -e "${INDEX}" && ! -e "${INDEX}.lock" ]] || rm -f -- "${INDEX}" "${INDEX}.lock"
  mv -f -- "${KEPT}/index" "${INDEX}" 2>/dev/null || return 0
  git_in "${INDEX}" clean -ffdxq # before: git would find files through a link in a folder's place
  [[ "${STATUS}" != 0 ]] || write_files
  [[ "${STATUS}" == 0 ]] || return 0
  MOVED=1
  look_for_oddity
}

# Write what differs from the record, remove what is no longer listed.
write_files() {
  git_in "${INDEX}" read-tree --reset -u "${WHOLE_TREE}"
}

# Make the checkout from nothing, and prove it.
make_checkout() {
  rm -rf -- "${EXPORT}" "${INDEX}"
  mkdir -- "${EXPORT}" || no_room
  write_files
  require_git "${REPO}: expected to write its files"
  look_for_oddity
  await_oddity
  [[ -z "${REPLY}" ]] ||
    refuse export-failed "${REPLY}: expected a file or folder of this user with mode 0644 or 0755, observed another" \
      "look at the access control lists of ${KEPT}"
  start_proof
  await_proof
  [[ -z "${REPLY}" ]] ||
    refuse tree-mismatch "${REPO}: expected the export to be tree ${LISTED_TREE}, observed a difference: ${REPLY}" \
      "run git fsck in the clone"
}

# Look for what git does not compare, and go on: a mode or an owner of its own, a second name, neither file, folder nor
# link, or a name that git never looks at.
look_for_oddity() {
  begin oddity "${BUILD_TIMEOUT}" find "${EXPORT}" '(' -name .git -o ! -uid "${EUID}" -o -type f -links +1 \
    -o -type f ! -perm 0644 ! -perm 0755 -o -type d ! -perm 0755 -o ! -type f ! -type d ! -type l ')' -print -quit
}

# Leave in REPLY the first one that was found, "" for none.
await_oddity() {
  await oddity
  refuse_timeout "${BUILD_TIMEOUT}" find
  REPLY=${EXPORT}
  [[ "${STATUS}" != 0 ]] || REPLY=$(<"${WORK}/oddity")
  one_line "${REPLY}"
}

# Start hashing every file on disk. The index is that of the listing: no size and no time of a file stands for its bytes.
# The threshold lets git hash files as they are; larger ones it would also compress along the way.
start_proof() {
  cp -- "${STORE}/whole" "${STORE}/proof" || no_room
  git_words proof -c core.bigFileThreshold=2047m update-index --refresh
  local CHILD_ENV=("${GIT_ENV[@]}") # what begin gives its command
  begin proof "${BUILD_TIMEOUT}" nice "${GIT_WORDS[@]}"
}

# Leave in REPLY the first difference between the checkout and the commit, "" for none: then TREE is proven.
await_proof() {
  await proof
  refuse_timeout "${BUILD_TIMEOUT}" git update-index --refresh
  if [[ "${STATUS}" == 0 ]]; then
    git_in proof ls-files --others --directory
    require_git "${REPO}: expected to look for files that the commit does not hold"
  else
    REPLY=$(cat -- "${WORK}/proof" "${WORK}/proof.err" | head -n 1)
    REPLY=${REPLY:-git ended with ${STATUS}}
  fi
  one_line "${REPLY%%$'\n'*}"
  [[ -n "${REPLY}" ]] || TREE=${LISTED_TREE}
}

refuse_lfs_pointers() {
  local path line
  for path in "${LFS_PATHS[@]}"; do
    line=''
    [[ ! -f "${EXPORT}/${path}" || -L "${EXPORT}/${path}" ]] ||
      IFS= read -r -n 64 line <"${EXPORT}/${path}" 2>/dev/null || :
    [[ "${line}" != 'version https://git-lfs.github.com/spec/v1'* ]] ||
      refuse lfs-pointer "${REPO}: expected the content of ${path}, observed an LFS pointer in the commit" \
        "commit the file itself, or fetch it in the Dockerfile"
  done
}

# What was built and tried must have been the commit. A kept checkout that was not is made anew, and all of it done again.
require_context() {
  [[ -n "${MOVED}" ]] || return 0
  step proof 'hashing the build context again'
  await_proof
  [[ -z "${REPLY}" ]] || build_again
}

# REPLY tells what in the kept checkout was not the commit's.
build_again() {
  say "warning: the kept checkout ${EXPORT} was changed by somebody (${REPLY}); doing it again from nothing"
  AGAIN='again-' MOVED=''
  rm -f -- "${WORK}/iid" "${WORK}/metadata" "${WORK}/lines"
  step export "exporting commit ${GIT_SHA} again"
  ask_client
  build_and_try
}

# Hand the proven checkout on to the next run.
keep_checkout() {
  if mv -f -- "${INDEX}" "${KEPT}/index"; then
    INDEX=''
  else
    say "warning: the checkout in ${KEPT} could not be kept"
  fi
}

# --- Staging: build --------------------------------------------------------------------------------------------------

# Leave in CONTEXT and DOCKERFILE what the builder gets. It follows every symbolic link, those of .dockerignore too.
find_context() {
  CONTEXT="${EXPORT}/${BUILD_SUBDIR}"
  DOCKERFILE="${CONTEXT}/${BUILD_DOCKERFILE}"
  mapfile -d '' -t ITEMS < <(readlink -mz -- "${EXPORT}" "${CONTEXT}" "${DOCKERFILE}" "${CONTEXT}/.dockerignore" \
    "${DOCKERFILE}.dockerignore" || :)
  require_inside "${ITEMS[1]-}" BUILD_SUBDIR
  [[ -d "${CONTEXT}" ]] ||
    refuse context-missing "BUILD_SUBDIR: expected a folder of commit ${GIT_SHA}, observed none at ${BUILD_SUBDIR}" \
      "correct it"
  require_inside "${ITEMS[2]-}" BUILD_DOCKERFILE
  [[ -f "${DOCKERFILE}" ]] ||
    refuse dockerfile-missing \
      "BUILD_DOCKERFILE: expected a file of commit ${GIT_SHA}, observed none at ${BUILD_SUBDIR}/${BUILD_DOCKERFILE}" \
      "correct it"
  require_inside "${ITEMS[3]-}" .dockerignore
  require_inside "${ITEMS[4]-}" "${DOCKERFILE##*/}.dockerignore"
}

# Stop unless what a path leads to, every symbolic link followed, lies in the tree: REAL_PATH NAME.
require_inside() {
  [[ -n "${ITEMS[0]-}" && "$1/" == "${ITEMS[0]}/"* ]] ||
    refuse path-outside "$2: expected a path inside the tree of ${GIT_SHA}, observed one that leads to ${1:-nowhere}" \
      "correct the link"
}

# Ask the docker client what it is, and go on: `choose_builder` waits for the answers.
ask_client() {
  begin client "${QUICK}" docker --version
  begin buildx "${QUICK}" docker buildx version
}

# Leave 1 in REPLY where this host has BuildKit, 0 where only the classic builder is left; METADATA says where buildx
# writes down what it made.
choose_builder() {
  local builder=1 client=''
  METADATA=''
  await client
  IFS= read -r client <"${WORK}/client" || :
  await buildx
  if [[ "${client}" =~ ^'Docker version '(1[0-9]|2[0-2])\. ]]; then
    # This client's own BuildKit tells no manifest digest, which is the image ID of the containerd image store.
    [[ "${IMAGE_STORE}" != *io.containerd.snapshotter* ]] || builder=0
  else
    refuse_timeout "${QUICK}" docker buildx version
    [[ "${STATUS}" == 0 ]] || builder=0
    [[ "${STATUS}" != 0 ]] || METADATA="${WORK}/metadata"
  fi
  REPLY=${builder}
}

# BuildKit finds what it was sent before by this text and the path of the context.
name_builder_session() {
  [[ -z "${DOCKER_CONFIG_DIR}" ]] || return 0
  mkdir -p -- "${WORK}/docker/buildx"
  printf imagefresh >"${WORK}/docker/.buildNodeID"
  printf imagefresh >"${WORK}/docker/buildx/.buildNodeID"
}

build_image() {
  local argv=(docker build --iidfile "${WORK}/iid" --build-arg "GIT_SHA=${GIT_SHA}" --label "${LABEL}=${GIT_SHA}")
  local builder item
  step build "building ${REPO} at ${GIT_SHA}"
  find_context
  choose_builder
  builder=${REPLY}
  name_builder_session
  [[ "${builder}" == 1 ]] || argv+=(--force-rm)
  [[ -z "${METADATA}" ]] || argv+=(--metadata-file "${METADATA}")
  local CHILD_ENV=("${CHILD_ENV[@]}" "DOCKER_BUILDKIT=${builder}" BUILDX_NO_DEFAULT_ATTESTATIONS=1)
  for item in "${BUILD_ITEMS[@]}"; do
    argv+=(--build-arg "${item}")
  done
  [[ -z "${BUILD_TARGET}" ]] || argv+=(--target "${BUILD_TARGET}")
  RUN_TAG="imagefresh-run:${RUN_ID,,}"
  note_run
  run_build "${argv[@]}" --tag "${RUN_TAG}" --file "${DOCKERFILE}" "${CONTEXT}"
  take_built_image
}

# Build with every line shown as it comes: ARGV.
run_build() {
  mkfifo -- "${WORK}/lines"
  tee -- "${WORK}/build.log" <"${WORK}/lines" >&2 3>&- 4>&- 9>&- &
  READERS=("$!")
  run_child "${BUILD_TIMEOUT}" "$@" >"${WORK}/lines" 2>&1
  await_readers
  case "${STATUS}" in
    0) ;;
    124 | 137)
      cannot_tell timeout "the build: expected an end within BUILD_TIMEOUT=${BUILD_TIMEOUT} s, observed none" \
        "raise it or make the build faster"
      ;;
    *)
      build_error
      blame build-failed "the build of ${REPO} at ${GIT_SHA}: expected an image, observed: ${REPLY}" "correct the build"
      ;;
  esac
}

# Leave the line that names the cause of a failed build in REPLY, after the last words of the step that failed.
# BuildKit marks it "#7 ERROR: ..."; the classic builder ends with it.
build_error() {
  local last='' words='' number='' line
  line=$(sed -nE '/^#[0-9]+ ERROR: /p' "${WORK}/build.log" | tail -n 1)
  if [[ -n "${line}" ]]; then
    number=${line%% *}
    last=${line#* ERROR: }
    words=$(sed -nE "s/^${number} [0-9.]+ //p" "${WORK}/build.log" | telling_line)
  else
    last=$(sed '/^[[:space:]]*$/d' "${WORK}/build.log" | tail -n 1)
    words=$(tac -- "${WORK}/build.log" | sed -e '1d' -e '/^ ---> Running in /,$d' | tac | telling_line)
    grep -q '^ ---> Running in ' "${WORK}/build.log" || words=''
  fi
  one_line "${words}"
  words=${REPLY:0:300}
  one_line "${last:-no output}"
  REPLY="${words:+${words}: }${REPLY}"
}

# Of the lines of a failed step, the last one that speaks of an error, else the last one.
telling_line() {
  local line said='' last=''
  while IFS= read -r line; do
    [[ -n "${line//[[:space:]]/}" ]] || continue
    last=${line}
    [[ ! "${line,,}" =~ error|fatal|fail|cannot|"can't"|denied|'not found'|'no such'|'no space' ]] || said=${line}
  done
  printf '%s\n' "${said:-${last}}"
}

# Leave in REPLY the image ID as the builder tells it. The file of image IDs holds the config digest; where images are
# known by their manifest (containerd image store), buildx tells that too, at the start of a line: no text of a build
# can begin one there.
read_built_id() {
  local line built='' pattern='^  "containerimage\.digest": "(sha256:[0-9a-f]{64})",?$'
  [[ ! -f "${WORK}/iid" ]] || built=$(<"${WORK}/iid")
  if [[ -f "${METADATA}" ]]; then
    while IFS= read -r line || [[ -n "${line}" ]]; do
      [[ ! "${line}" =~ ${pattern} ]] || built=${BASH_REMATCH[1]}
    done <"${METADATA}"
  fi
  REPLY=${built}
}

# What the builder says it made, what the run's own tag points to and the label must agree.
take_built_image() {
  local built
  read_built_id
  built=${REPLY}
  read_image "${RUN_TAG}"
  [[ -n "${SEEN_ID}" && "${SEEN_ID}" == "${built}" ]] ||
    refuse image-id-mismatch \
      "the built image: expected ID ${built:-from the builder}, observed ${SEEN_ID:-nothing} at ${RUN_TAG}" \
      "look for another build at the same time"
  [[ "${SEEN_REVISION}" == "\"${GIT_SHA}\"" ]] ||
    refuse revision-mismatch \
      "the built image: expected label ${LABEL} \"${GIT_SHA}\", observed ${SEEN_REVISION:-none}" \
      "look at the builder of this host"
  IMAGE_ID=${SEEN_ID}
  REVISION=${GIT_SHA}
  note_run
}

# --- Staging: what runs leave ----------------------------------------------------------------------------------------
# Staging still runs the image of a run that failed, and one that was killed leaves its tag, too. So each notes in the
# state folder what it makes, before it does: a file named like its tag, with the image IDs. A later run removes them.
# Nothing is ever forced: the engine itself keeps what a container uses, even one that never runs.

# Note that this run builds, or what it has built.
note_run() {
  NOTE="${STATE}/.runs/${RUN_TAG#*:}"
  { { [[ -d "${NOTE%/*}" ]] || mkdir -- "${NOTE%/*}"; } && printf '%s\n' "${IMAGE_ID}" >>"${NOTE}"; } 2>/dev/null ||
    say "warning: ${NOTE} could not be written: no later run will remove what this one leaves"
}

# What this run made bears staging's name now. Where its note tells of other images, they are still to be removed.
settle_run() {
  local noted
  run_child "${QUICK}" docker image rm --no-prune "${RUN_TAG}" >"${WORK}/out" 2>"${WORK}/err"
  [[ "${STATUS}" == 0 ]] || return 0
  noted=$(cat -- "${NOTE}" 2>/dev/null) || noted=''
  [[ "${noted}" != $'\n'"${IMAGE_ID}" ]] || rm -f -- "${NOTE}" 2>/dev/null || :
  NOTE=''
}

# Take the tag of a run away: TAG. Leaves in REPLY the ID that it bore, "" for none. The image stays, whoever needs it: the
# tag moves to an empty one, and goes with that.
untag() {
  local id=''
  run_child "${QUICK}" docker image inspect --format '{{.Id}}' -- "$1" >"${WORK}/out" 2>"${WORK}/err"
  if [[ "${STATUS}" == 0 ]]; then
    read_reply
    id=${REPLY}
    give_to_empty_image "$1"
    [[ "${STATUS}" != 0 ]] || run_child "${QUICK}" docker image rm --no-prune "$1" >"${WORK}/out" 2>"${WORK}/err"
  elif grep -q 'No such image' "${WORK}/err"; then
    STATUS=0
  fi
  [[ "${STATUS}" == 0 ]] || say "warning: the tag $1 could not be removed"
  REPLY=${id}
}

# TAG. By `tag`, not by `import`: that one would not keep the former image in a containerd image store.
give_to_empty_image() {
  head -c 10240 /dev/zero >"${WORK}/empty.tar"
  run_child "${QUICK}" docker import - <"${WORK}/empty.tar" >"${WORK}/out" 2>"${WORK}/err"
  read_reply
  [[ "${STATUS}" != 0 ]] || run_child "${QUICK}" docker image tag "${REPLY}" "$1" >"${WORK}/out" 2>"${WORK}/err"
}

# Remove what runs have left that came to no good end, this one first. Never ends the run, and gives up where the engine
# hangs.
sweep_runs() {
  local note
  [[ -z "${NOTE}" ]] || sweep_run "${NOTE}"
  for note in "${STATE}/.runs/"*; do
    [[ "${STATUS}" != 124 && "${STATUS}" != 137 ]] || return 0
    [[ ! -f "${note}" || "${note}" == "${NOTE}" ]] || sweep_run "${note}"
  done
}

# NOTE. It stays as long as there is something that the engine does not let go.
sweep_run() {
  local id ids=() left=''
  untag "imagefresh-run:${1##*/}"
  [[ "${STATUS}" == 0 ]] || return 0
  [[ -z "${REPLY}" ]] || { printf '%s\n' "${REPLY}" >>"$1"; } 2>/dev/null
  [[ ! -f "$1" ]] || mapfile -t ids <"$1"
  for id in "${ids[@]}"; do
    remove_left "${id}"
    [[ "${STATUS}" == 0 ]] || left=1
  done
  [[ -n "${left}" ]] || rm -f -- "$1"
}

# Remove an image that a run has left: IMAGE_ID. Leaves 0 in STATUS where there is nothing more to do: it is gone, somebody
# gave it a name, or it came to a good end in another run, so that a verdict may name it.
remove_left() {
  STATUS=0
  [[ "$1" =~ ^${IMAGE_ID_PATTERN}$ ]] || return 0
  ! grep -qs "\"kind\":\"done\".*\"image_id\":\"$1\"" -- "${STATE}/history" || return 0
  run_child "${QUICK}" docker image inspect --format '{{len .RepoTags}} {{len .RepoDigests}}' -- "$1" \
    >"${WORK}/out" 2>"${WORK}/err"
  read_reply
  if [[ "${STATUS}" != 0 ]]; then
    ! grep -q 'No such image' "${WORK}/err" || STATUS=0
  elif [[ "${REPLY}" == '0 0' ]]; then
    run_child "${QUICK}" docker image rm --no-prune -- "$1" >"${WORK}/out" 2>"${WORK}/err"
  fi
}

# --- Staging: run and check ------------------------------------------------------------------------------------------

warn_idle_dependencies() {
  local service
  for service in ${SERVICE_DEPENDS[${TARGET_SERVICE}]-}; do
    ask "${QUICK}" docker container ls --quiet --filter "label=com.docker.compose.project=${PROJECT}" \
      --filter "label=com.docker.compose.service=${service}"
    [[ -n "${REPLY}" ]] || say "warning: ${TARGET_SERVICE} depends on ${service}, which does not run; it is not started"
  done
}

recreate_staging() {
  step recreate "recreating service ${TARGET_SERVICE} from ${IMAGE_ID}"
  warn_idle_dependencies
  recreate "${TARGET_SERVICE}" "${COMPOSE_PROFILE}" "${IMAGE_ID}" ''
  take_container "${TARGET_SERVICE}" "${IMAGE_ID}" "${TARGET_PORT}"
  [[ "${SEEN[name]}" == "/${STAGING_CONTAINER}" ]] ||
    refuse container-name \
      "service ${TARGET_SERVICE}: expected container ${STAGING_CONTAINER}, observed ${SEEN[name]#/}" \
      "make compose file and STAGING_CONTAINER agree"
}

# Run the staging check once, in the container, by ID; its lines are shown as they come and kept.
run_check() {
  local start limit
  step check 'running the staging check'
  start=${NOW}
  CHECKING=1
  CHECK_FILE="${WORK}/check.out"
  start_check_readers
  run_child "${CHECK_TIMEOUT}" docker container exec "${CONTAINER_ID}" "${CHECK_COMMAND[@]}" >"${WORK}/check" 2>&1
  await_readers
  now
  milliseconds "${CHECK_TIMEOUT}"
  limit=${REPLY}
  if [[ "${STATUS}" == 124 || "${STATUS}" == 137 ]] && ((NOW - start >= limit)); then # a check may end with 124 itself
    blame check-timeout "the staging check: expected an end within CHECK_TIMEOUT=${CHECK_TIMEOUT} s, observed none" \
      "correct the check or raise it"
  fi
  CHECKING=''
  CHECK_STATUS=${STATUS}
  [[ "${STATUS}" == 0 ]] || refuse_check
}

# What the check writes goes to people line by line, and its first mebibyte into a file.
start_check_readers() {
  rm -f -- "${WORK}/check" "${WORK}/shown"
  mkfifo -- "${WORK}/check" "${WORK}/shown"
  sed -u -e 's/[[:cntrl:]]//g' -e 's/^/imagefresh: check: /' <"${WORK}/shown" >&2 3>&- 4>&- 9>&- &
  READERS=("$!")
  tee -- "${WORK}/shown" <"${WORK}/check" 3>&- 4>&- 9>&- | {
    head -c "${OUTPUT_LIMIT}" >"${CHECK_FILE}"
    cat >/dev/null
  } 3>&- 4>&- 9>&- &
  READERS+=("$!")
}

refuse_check() {
  require_alive
  REPLY=$(tail -n 1 -- "${CHECK_FILE}")
  one_line "${REPLY:-no output}"
  refuse check-failed "the staging check: expected exit status 0, observed ${CHECK_STATUS}; it ended with: ${REPLY}" \
    "correct what it found"
}

# Let a reference point to IMAGE_ID, and look whether it does: REFERENCE ID.
tag_image() {
  change "${QUICK}" docker image tag "$2" "$1"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame tag-failed "image $1: expected to point it to $2, observed: ${REPLY}" "look at the engine"
  fi
  read_image "$1"
  [[ "${SEEN_ID}" == "$2" ]] ||
    refuse tag-failed "image $1: expected it to point to $2, observed ${SEEN_ID:-nothing}" \
      "look for another build at the same time"
}

build_staging() {
  read_staging_variables
  refuse_production_names
  refuse_claimed_staging
  prepare_folder
  ask_client
  require_engine
  take_lock "${BUILD_WAIT}"
  refuse_promoted
  ask_compose
  ask_default_services
  list_clone
  ask_owner
  ask_publishers "${TARGET_PORT}"
  step compose 'resolving the compose files'
  await_compose compose.json 'a valid compose file'
  take_compose
  refuse_production_services
  step export "exporting commit ${GIT_SHA}"
  move_checkout
  refuse_foreign_port "${TARGET_PORT}" "${TARGET_SERVICE}"
  refuse_foreign_container
  refuse_default_service
  build_and_try
  require_context
  step tag "tagging ${TARGET_IMAGE}"
  tag_image "${TARGET_IMAGE}" "${IMAGE_ID}"
  keep_checkout
  settle_run
  conclude 'done' built "staging runs ${IMAGE_ID}, built from ${GIT_SHA}"
}

build_and_try() {
  [[ -n "${MOVED}" ]] || make_checkout
  refuse_lfs_pointers
  build_image
  if [[ -n "${MOVED}" ]]; then
    await_oddity
    if [[ -n "${REPLY}" ]]; then
      build_again
      return
    fi
    start_proof # not earlier: it would take processor time from the builder
  fi
  recreate_staging
  await_health
  run_check
  settle "${TARGET_SERVICE}"
}

# --- Promotion: the decision -----------------------------------------------------------------------------------------
# First the facts are collected, then the first line below whose facts all hold decides: CAUSE FACT=STATE|STATE ...
# A fact that is not known yet has no state, so that nothing is ever accepted on it. What no line names is refused.
readonly DECISION=(
  'revision-empty             revision=empty'
  'revision-malformed         revision=malformed'
  'revision-required          revision=missing require_revision=yes'
  'image-id-empty             image_id=empty'
  'image-id-malformed         image_id=malformed'
  'image-id-required          image_id=missing require_image_id=yes'
  'verdict-empty              verdict=empty'
  'verdict-malformed          verdict=malformed'
  'verdict-contract           verdict=contract'
  'verdict-no-policy          verdict=given policy=no'
  'image-missing              image=missing'
  'image-id-mismatch          image_id=wrong'
  'revision-missing           revision=unlabelled'
  'revision-mismatch          revision=wrong'
  'verdict-missing            verdict=missing require_verdict=yes production=right'
  'verdict-other-target       verdict=other-target'
  'verdict-other-image        verdict=other-image'
  'verdict-other-revision     verdict=other-revision'
  'verdict-other-engine       verdict=other-engine'
  'verdict-production-changed verdict=production-changed'
  'verdict-compose-changed    verdict=compose-changed'
  'verdict-signers            verdict=signers'
  'verdict-signature          verdict=signature'
  'verdict-future             verdict=future'
  'verdict-expired            verdict=expired'
  'verdict-ledger             verdict=ledger'
  'verdict-used               verdict=used'
  'verdict-superseded         verdict=superseded'
  'frozen                     frozen=yes'
  'verified  image=right revision=missing|right image_id=missing|right production=right verdict=missing|right frozen=no'
)

# The decision, a function of FACT alone. Leaves the cause in REPLY.
judge() {
  local rule parts part
  for rule in "${DECISION[@]}"; do
    read -ra parts <<<"${rule}"
    for part in "${parts[@]:1}"; do
      [[ "|${part#*=}|" == *"|${FACT[${part%%=*}]:-unknown}|"* ]] || continue 2
    done
    REPLY=${parts[0]}
    return 0
  done
  REPLY=undecided
}

# Refuse as soon as what is known says no.
refuse_by_facts() {
  judge
  case "${REPLY}" in
    verified | undecided) ;;
    *) explain "${REPLY}" ;;
  esac
}

# Refuse for a cause of DECISION, in words.
explain() {
  case "$1" in
    revision-empty)
      refuse "$1" 'EXPECTED_REVISION: expected a full commit ID, observed an empty value' 'pass the validated revision'
      ;;
    revision-malformed)
      refuse "$1" "EXPECTED_REVISION: expected 40 lowercase hex characters, observed ${EXPECTED_REVISION@Q}" \
        "pass the full commit ID"
      ;;
    revision-required)
      refuse "$1" "EXPECTED_REVISION: expected one, since policy ${POLICY[NAME]} requires it, observed none" 'pass it'
      ;;
    revision-missing)
      refuse "$1" "${SOURCE_IMAGE}: expected revision ${EXPECTED_REVISION}, observed no label ${LABEL}" \
        "build it with --build-staging"
      ;;
    revision-mismatch)
      refuse "$1" "${SOURCE_IMAGE}: expected revision ${EXPECTED_REVISION}, observed ${SEEN_REVISION}" \
        "rebuild staging from the validated commit"
      ;;
    frozen)
      frozen_words
      refuse "$1" "production: expected it not to be frozen, observed that it is, ${REPLY}" \
        "ask them, then --unfreeze it"
      ;;
    verdict-*) explain_verdict "$1" ;;
    *) explain_image "$1" ;;
  esac
}

explain_image() {
  case "$1" in
    image-id-empty)
      refuse "$1" 'EXPECTED_IMAGE_ID: expected an image ID, observed an empty value' 'pass the ID of the tested image'
      ;;
    image-id-malformed)
      refuse "$1" \
        "EXPECTED_IMAGE_ID: expected sha256: and 64 lowercase hex characters, observed ${EXPECTED_IMAGE_ID@Q}" \
        "pass the full image ID"
      ;;
    image-id-required)
      refuse "$1" "EXPECTED_IMAGE_ID: expected one, since policy ${POLICY[NAME]} requires it, observed none" 'pass it'
      ;;
    image-missing)
      refuse "$1" "SOURCE_IMAGE: expected an image on this host, observed none at ${SOURCE_IMAGE}" "run the gate again"
      ;;
    image-id-mismatch)
      refuse "$1" "${SOURCE_IMAGE}: expected ${EXPECTED_IMAGE_ID-}, observed ${IMAGE_ID}" \
        "the tag moved after the gate: run the gate again"
      ;;
    *) refuse "$1" "${SOURCE_IMAGE}: expected facts that lead to a decision, observed none" 'report it' ;;
  esac
}

explain_verdict() {
  local advice='run the gate again'
  case "$1" in
    verdict-missing)
      refuse "$1" "VERDICT: expected one, since policy ${POLICY[NAME]} requires it, observed none" \
        'sign verdicts: settings [signing]'
      ;;
    verdict-empty) refuse "$1" 'VERDICT: expected a signed verdict, observed an empty value' 'pass it' ;;
    verdict-no-policy)
      refuse "$1" "VERDICT: expected a policy in ${POLICY_DIR} that says who may sign, observed none" \
        'write one, or pass no verdict'
      ;;
    verdict-signers | verdict-ledger) advice='correct the installation of this host' ;;
    verdict-contract) advice='use a plugin and a hook of one version' ;;
    *) ;;
  esac
  refuse "$1" "VERDICT: ${VERDICT_REASON}" "${advice}"
}

# What the caller expects. Set but empty is never "no expectation": a caller who lost the value must not get an
# unchecked promotion.
read_expectations() {
  local requirement
  FACT=([policy]=no)
  [[ -z "${POLICY[NAME]-}" ]] || FACT[policy]=yes
  for requirement in ${POLICY[REQUIRE]-}; do
    FACT[require_${requirement}]=yes
  done
  form_of EXPECTED_REVISION "${HEX40}"
  FACT[revision]=${REPLY}
  [[ "${REPLY}" != missing ]] ||
    say 'WARNING: EXPECTED_REVISION is not set: the provenance of this image is NOT checked'
  form_of EXPECTED_IMAGE_ID "${IMAGE_ID_PATTERN}"
  FACT[image_id]=${REPLY}
  [[ "${REPLY}" != missing ]] ||
    say 'WARNING: EXPECTED_IMAGE_ID is not set: whether this is the very image that was tested is NOT checked'
  VERDICT_STATE='not required'
  [[ -z "${FACT[require_verdict]-}" ]] || VERDICT_STATE=required
}

# Leave missing, empty, malformed or given in REPLY: NAME PATTERN.
form_of() {
  local name=$1 pattern="^$2\$"
  REPLY=missing
  [[ -n "${!name+set}" ]] || return 0
  REPLY=empty
  [[ -n "${!name}" ]] || return 0
  REPLY=given
  [[ "${!name}" =~ ${pattern} ]] || REPLY=malformed
}

# Look at the candidate once; from here on only its ID counts.
check_candidate() {
  read_image "${SOURCE_IMAGE}"
  FACT[image]=missing
  [[ -n "${SEEN_ID}" ]] || return 0
  FACT[image]=right
  IMAGE_ID=${SEEN_ID}
  [[ ! "${SEEN_REVISION}" =~ ^\"(${HEX40})\"$ ]] || REVISION=${BASH_REMATCH[1]}
  if [[ "${FACT[image_id]}" == given ]]; then
    FACT[image_id]=wrong
    [[ "${IMAGE_ID}" != "${EXPECTED_IMAGE_ID}" ]] || FACT[image_id]=right
  fi
  [[ "${FACT[revision]}" == given ]] || return 0
  FACT[revision]=wrong
  [[ "${SEEN_REVISION}" != "\"${EXPECTED_REVISION}\"" ]] || FACT[revision]=right
  [[ -n "${SEEN_REVISION}" && "${SEEN_REVISION}" != '""' ]] || FACT[revision]=unlabelled
}

# --- Promotion: the verdict -------------------------------------------------------------------------------------------
# Line one of a verdict is its statement, the rest its signature. Nothing in the statement is believed: every field must
# be what this hook observes itself, and what is given to ssh-keygen is not the text that came but the same statement
# printed anew.

# Print the statement: PRINCIPAL TIME RUN_ID
print_statement() {
  printf '%s' '{"_type":"https://in-toto.io/Statement/v1","subject":[' \
    "{\"name\":\"${PROD_IMAGE}\",\"digest\":{\"sha256\":\"${IMAGE_ID#sha256:}\"}}," \
    "{\"name\":\"${REPO}\",\"digest\":{\"gitCommit\":\"${REVISION}\"}}]," \
    '"predicateType":"https://in-toto.io/attestation/svr/v0.2",' \
    "\"predicate\":{\"verifier\":{\"id\":\"urn:imagefresh:gate:${CONTRACT}:$1\",\"policies\":[]}," \
    "\"timeCreated\":\"$2\",\"properties\":[\"IMAGEFRESH_GATE_COMPLETE\"]," \
    "\"imagefresh\":{\"contract\":${CONTRACT},\"run_id\":\"$3\",\"prod_service\":\"${PROD_SERVICE}\"," \
    "\"prod_port\":${PROD_PORT},\"engine_id\":\"${ENGINE_ID}\",\"prod_runs\":\"${PREVIOUS_ID}\"," \
    "\"compose_sha256\":\"${COMPOSE_SHA256}\"}}}"$'\n'
}

# The form of the verdict that the caller passed: FACT[verdict] and the table SIGNED, as far as that goes.
read_verdict() {
  local text again statement
  SIGNED=() VERDICT_REASON=''
  form_of VERDICT '.*'
  FACT[verdict]=${REPLY}
  [[ "${REPLY}" == given ]] || return 0
  malformed_verdict 'expected base64 of a statement and its signature'
  [[ "${#VERDICT}" -le "${VERDICT_LIMIT}" ]] || return 0
  text=$(
    printf '%s' "${VERDICT}" | base64 -d 2>/dev/null | tr -d '\0' || :
    printf .
  )
  text=${text%.}
  again=$(printf '%s' "${text}" | base64 -w 0)
  [[ "${again}" == "${VERDICT}" ]] || return 0
  statement=${text%%$'\n'*}
  SIGNED[signature]=${text#*$'\n'}
  read_statement "${statement}"
}

malformed_verdict() {
  FACT[verdict]=malformed
  VERDICT_REASON="$1, observed another text"
}

# STATEMENT
read_statement() {
  local text='([^"\]*)' number='([0-9]{1,9})' pattern
  pattern="^\\{\"_type\":\"https://in-toto\\.io/Statement/v1\",\"subject\":\\[\\{\"name\":\"${text}\",\"digest\":\\{"
  pattern+="\"sha256\":\"(${HEX64})\"\\}\\},\\{\"name\":\"${text}\",\"digest\":\\{\"gitCommit\":\"(${HEX40})\"\\}\\}\\],"
  pattern+="\"predicateType\":\"https://in-toto\\.io/attestation/svr/v0\\.2\",\"predicate\":\\{\"verifier\":\\{"
  pattern+="\"id\":\"urn:imagefresh:gate:${number}:(${PRINCIPAL_PATTERN})\",\"policies\":\\[\\]\\},"
  pattern+="\"timeCreated\":\"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)\","
  pattern+="\"properties\":\\[\"IMAGEFRESH_GATE_COMPLETE\"\\],\"imagefresh\":\\{\"contract\":${number},"
  pattern+="\"run_id\":\"(${RUN_ID_PATTERN})\",\"prod_service\":\"${text}\",\"prod_port\":${number},"
  pattern+="\"engine_id\":\"${text}\",\"prod_runs\":\"${text}\",\"compose_sha256\":\"(${HEX64})\"\\}\\}\\}\$"
  malformed_verdict 'expected the statement of a complete gate'
  [[ "$1" =~ ${pattern} ]] || return 0
  SIGNED+=([image]=${BASH_REMATCH[1]} [id]="sha256:${BASH_REMATCH[2]}" [repo]=${BASH_REMATCH[3]}
    [revision]=${BASH_REMATCH[4]} [principal]=${BASH_REMATCH[6]} [time]=${BASH_REMATCH[7]} [run]=${BASH_REMATCH[9]}
    [service]=${BASH_REMATCH[10]} [port]=${BASH_REMATCH[11]} [engine]=${BASH_REMATCH[12]}
    [runs]=${BASH_REMATCH[13]} [compose]=${BASH_REMATCH[14]})
  SIGNED[contract]=${BASH_REMATCH[5]}/${BASH_REMATCH[8]}
  SIGNED[second]=$(date -u -d "${SIGNED[time]}" +%s 2>/dev/null) || return 0
  malformed_verdict 'expected one signature of ssh-keygen behind the statement, and nothing behind it'
  read_signature "${SIGNED[signature]}"
  [[ -n "${REPLY}" ]] || return 0
  FACT[verdict]=given
  [[ "${SIGNED[contract]}" == "${CONTRACT}/${CONTRACT}" ]] ||
    doubt_verdict contract "contract version ${CONTRACT}" "${SIGNED[contract]}"
}

# Leave in REPLY the base64 of the one armored signature that a text is, else nothing: ssh-keygen itself stops reading at
# its end, whatever comes behind it.
read_signature() {
  local begin=$'-----BEGIN SSH SIGNATURE-----\n' end=$'-----END SSH SIGNATURE-----\n' body again
  REPLY=''
  [[ "$1" == "${begin}"*"${end}" ]] || return 0
  body=${1#"${begin}"}
  body=${body%"${end}"}
  [[ "${body}" == *$'\n' && "${body}" =~ ^[A-Za-z0-9+/=$'\n']+$ ]] || return 0
  again=$(base64 -d <<<"${body}" 2>/dev/null | base64 -w 70) || again=''
  [[ "${again}"$'\n' != "${body}" ]] || REPLY=${again}
}

# A verdict is not right: STATE EXPECTED OBSERVED.
doubt_verdict() {
  FACT[verdict]=$1
  VERDICT_REASON="expected $2, observed $3"
}

# Whether the verdict holds for what was observed.
check_verdict() {
  local look
  for look in : compare_verdict check_signature check_time check_ledger; do
    "${look}"
    [[ "${FACT[verdict]}" == given ]] || return 0
  done
  FACT[verdict]=right
  VERDICT_STATE=accepted
}

# Compare what the statement says with what was observed; the first difference counts.
compare_verdict() {
  local line state name expected
  for line in "other-target|image|${PROD_IMAGE}" "other-target|service|${PROD_SERVICE}" "other-target|port|${PROD_PORT}" \
    "other-target|repo|${REPO}" "other-image|id|${IMAGE_ID}" "other-revision|revision|${REVISION}" \
    "other-engine|engine|${ENGINE_ID}" "production-changed|runs|${PREVIOUS_ID}" \
    "compose-changed|compose|${COMPOSE_SHA256}"; do
    IFS='|' read -r state name expected <<<"${line}"
    if [[ "${SIGNED[${name}]}" != "${expected}" ]]; then
      doubt_verdict "${state}" "one for ${name} ${expected:-(none)}" "one for ${SIGNED[${name}]:-(none)}"
      return 0
    fi
  done
}

# Whether somebody signed it who may: the statement is printed anew for that.
check_signature() {
  local argv=(ssh-keygen -Y verify -f "${POLICY[ALLOWED_SIGNERS]-}" -I "${SIGNED[principal]}" -n "${NAMESPACE}")
  require_signers
  [[ "${FACT[verdict]}" == given ]] || return 0
  type -P ssh-keygen >/dev/null ||
    cannot_tell tool-missing 'this host: expected ssh-keygen, since a verdict was passed, observed none' 'install it'
  [[ -z "${POLICY[REVOKED_KEYS]-}" ]] || argv+=(-r "${POLICY[REVOKED_KEYS]}")
  print_statement "${SIGNED[principal]}" "${SIGNED[time]}" "${SIGNED[run]}" >"${WORK}/statement"
  printf '%s' "${SIGNED[signature]}" >"${WORK}/signature"
  ask "${QUICK}" "${argv[@]}" -s "${WORK}/signature" <"${WORK}/statement"
  [[ "${STATUS}" != 0 ]] || return 0
  REPLY=$(cat -- "${WORK}/out" "${WORK}/err")
  one_line "${REPLY:-ssh-keygen ended with ${STATUS}}"
  doubt_verdict signature "a signature of ${SIGNED[principal]} as ${POLICY[ALLOWED_SIGNERS]} allows it" "${REPLY}"
}

# The file of those who may sign says who may promote: it must be as hard to change as the policy.
require_signers() {
  local line file=${POLICY[ALLOWED_SIGNERS]-} found=0
  if [[ ! -f "${file}" ]]; then
    doubt_verdict signers 'ALLOWED_SIGNERS of the policy to name a file' "${file:-nothing}"
    return 0
  fi
  require_owned verdict-signers "${file%/*}/" directory "${SIGNERS_UID}"
  require_owned verdict-signers "${file}" 'regular file' "${SIGNERS_UID}"
  [[ -z "${POLICY[REVOKED_KEYS]-}" ]] || require_owned verdict-signers "${POLICY[REVOKED_KEYS]}" 'regular file' 0
  while IFS= read -r line || [[ -n "${line}" ]]; do
    [[ -n "${line}" && "${line}" != '#'* ]] || continue
    found=1
    [[ "${line}" =~ ${SIGNER_PATTERN} ]] ||
      doubt_verdict signers "only lines like NAME namespaces=\"${NAMESPACE}\" KEY in ${file}" "${line:0:60}"
  done <"${file}"
  [[ "${found}" == 1 ]] || doubt_verdict signers "a line in ${file}" none
}

check_time() {
  local age limit=${POLICY[MAX_AGE]-${DEFAULT_MAX_AGE}}
  now
  age=$((NOW / 1000 - SIGNED[second]))
  if ((age < -CLOCK_SKEW)); then
    doubt_verdict future "one from before now, by this host's clock" "${SIGNED[time]}"
  elif ((age > limit)); then
    doubt_verdict expired "one of the last ${limit} s" "one of ${SIGNED[time]}"
  fi
}

# A verdict works once: the ledger holds a file for each that was used, named like the run of its gate, never removed.
# Who loses it must not get used verdicts back, so it is never made here.
check_ledger() {
  local used newest=''
  if [[ ! -d "${LEDGER}" || -L "${LEDGER}" || ! -O "${LEDGER}" ]]; then
    doubt_verdict ledger "the folder ${LEDGER} of this user, in which used verdicts are kept" none
    return 0
  fi
  for used in "${LEDGER}"/*; do # in the order of time
    [[ ! "${used##*/}" =~ ^${RUN_ID_PATTERN}$ ]] || newest=${used##*/}
  done
  if [[ -e "${LEDGER}/${SIGNED[run]}" || -L "${LEDGER}/${SIGNED[run]}" ]]; then
    doubt_verdict used 'one that was never used' "that of run ${SIGNED[run]}, which was"
  elif [[ "${newest}" > "${SIGNED[run]}" ]]; then
    doubt_verdict superseded "one of a run after ${newest}, the last promoted one" "that of run ${SIGNED[run]}"
  fi
}

# Use the verdict up, for good, before anything changes.
burn_verdict() {
  local file="${LEDGER}/${SIGNED[run]-}"
  [[ "${FACT[verdict]-}" == right ]] || return 0 # breaking the glass asks for none
  (
    set -o noclobber
    printf 'used by run %s\n' "${RUN_ID}" >"${file}"
  ) 2>/dev/null ||
    refuse verdict-used "VERDICT: expected to be the first to use it, observed ${file}" 'run the gate again'
  sync -- "${file}" "${LEDGER}" ||
    refuse verdict-ledger "${file}: expected it on the disk, observed no success" 'look for free space'
}

# --- Promotion: what it would change ----------------------------------------------------------------------------------

# What production is, as the host's compose files tell it.
check_production() {
  local profiles
  resolve_production
  [[ -n "${SERVICE_IMAGE[${PROD_SERVICE}]-}" ]] ||
    refuse service-missing "PROD_SERVICE: expected a service of ${COMPOSE_DIR}, observed ${PROD_SERVICE}" \
      "the compose file has: ${!SERVICE_IMAGE[*]}"
  profiles=${SERVICE_PROFILES[${PROD_SERVICE}]-}
  [[ -z "${profiles}" || "${profiles}" == *" ${PROD_PROFILE} "* ]] ||
    refuse service-not-in-profile \
      "service ${PROD_SERVICE}: expected it in profile ${PROD_PROFILE:-(none)}, observed profiles:${profiles}" \
      "correct PROD_PROFILE"
  if [[ -n "${PROD_PIN}" && "${SERVICE_IMAGE[${PROD_SERVICE}]}" != "${IMAGE_ID}" ]]; then
    refuse pin-unused \
      "service ${PROD_SERVICE}: expected ${PROD_PIN} to name its image, observed ${SERVICE_IMAGE[${PROD_SERVICE}]}" \
      "write image: \${${PROD_PIN}:-unpromoted:run-deploy-hook}"
  fi
  [[ -z "${PROD_PROXY}" ]] || check_proxy
  ask_publishers "${PROD_PORT}"
  refuse_foreign_port "${PROD_PORT}" "${PROD_PROXY:-${PROD_SERVICE}}"
  find_production
  printf -v REPLY ' %.12s' "${FOUND[@]}"
  [[ "${#FOUND[@]}" -le 1 ]] ||
    refuse container-count "service ${PROD_SERVICE}: expected at most 1 container, observed${REPLY}" \
      "the hook handles services without replicas: remove all but one of these with docker container rm"
}

# Whoever calls compose later must not put another image in place of what was promoted.
refuse_other_origins() {
  local pull=${SERVICE_PULL[${PROD_SERVICE}]-}
  [[ -z "${SERVICE_BUILD[${PROD_SERVICE}]-}" ]] ||
    refuse production-builds "service ${PROD_SERVICE}: expected no build:, since only staging is built, observed one" \
      "remove build: of ${PROD_SERVICE} from the compose file in ${COMPOSE_DIR}"
  [[ "${pull}" == never ]] ||
    refuse production-pulls \
      "service ${PROD_SERVICE}: expected pull_policy: never, observed ${pull:-none}, by which compose could replace its image" \
      "write pull_policy: never below ${PROD_SERVICE} in the compose file in ${COMPOSE_DIR}"
}

resolve_production() {
  if [[ -n "${PROD_PIN}" ]]; then
    resolve_compose env "${PROD_PIN}=${IMAGE_ID}"
  else
    resolve_compose
  fi
}

# Leave in FOUND the containers of production. Behind a proxy one that was stopped may lie beside the one that runs.
find_production() {
  local id running=()
  find_containers "${PROD_SERVICE}"
  [[ -n "${PROD_PROXY}" ]] || return 0
  for id in "${FOUND[@]}"; do
    read_container "${id}"
    [[ "${SEEN[status]-}" != running ]] || running+=("${id}")
  done
  [[ "${#running[@]}" == 0 ]] || FOUND=("${running[@]}")
}

# Leave the image that production runs now in PREVIOUS_ID; FOUND holds its container.
read_previous() {
  read_image "${PROD_IMAGE}"
  PREVIOUS_TAG_ID=${SEEN_ID}
  PREVIOUS_ID=${SEEN_ID}
  [[ "${#FOUND[@]}" == 1 ]] || return 0
  read_container "${FOUND[0]}"
  case "${SEEN[status]-}" in
    created | exited | dead) [[ -n "${PREVIOUS_TAG_ID}" ]] || return 0 ;; # it never proved itself
    *) ;;
  esac
  PREVIOUS_ID=${SEEN[image]:-${PREVIOUS_ID}}
}

# Everything that --verify and --promote decide, in one place for both.
decide() {
  step verify "verifying ${SOURCE_IMAGE}"
  check_candidate
  refuse_by_facts
  check_production
  refuse_other_origins
  [[ -z "${PROD_PIN}" ]] || read_pin_file "${PROD_PIN}=${IMAGE_ID}"
  read_previous
  FACT[production]=right
  check_verdict
  read_frozen
  FACT[frozen]=no
  [[ -z "${FROZEN}" ]] || FACT[frozen]=yes
  judge
  [[ "${REPLY}" == verified ]] || explain "${REPLY}"
}

# What can be decided before the host is looked at.
read_facts() {
  read_expectations
  read_verdict
  refuse_by_facts
}

verify() {
  read_promotion_variables
  find_policy
  read_facts
  prepare_host
  [[ -z "${LEASE+set}" ]] || require_lease
  refuse_open_journal
  decide
  conclude_verified
}

conclude_verified() {
  conclude 'done' verified "${SOURCE_IMAGE} (${IMAGE_ID}) would be promoted"
}

# --- Promotion: does the decision still refuse? ----------------------------------------------------------------------

# Two images out of nothing, one with a label; each case is a --verify of its own, and must end for the right cause.
self_test() {
  local name="imagefresh-self-test:${RUN_ID,,}"
  SOURCE_IMAGE="${name}"
  read_promotion_variables
  find_policy
  prepare_host
  [[ -z "${LEASE+set}" ]] || require_lease
  name+="-${WORK##*.}"
  step import 'making two scratch images'
  head -c 10240 /dev/zero >"${WORK}/empty.tar"
  import_scratch "${name}-labelled" --change "LABEL ${LABEL}=${TEST_REVISION}"
  LABELLED=${REPLY}
  import_scratch "${name}-unlabelled"
  UNLABELLED=${REPLY}
  [[ " ${POLICY[REQUIRE]-} " != *' verdict '* ]] || prepare_verdicts
  step cases 'asking for decisions that must be refused, and for the one that must not'
  start_cases "${name}"
  [[ -z "${VERDICT-}" ]] || start_verdict_cases
  judge_cases
  conclude 'done' self-tested "${#CASES[@]} decisions are what they must be"
}

# Make an image without any content, leave its ID in REPLY: NAME OPTIONS.
import_scratch() {
  local name=$1
  shift
  SCRATCH+=("${name}")
  change "${QUICK}" docker import "$@" - "${name}" <"${WORK}/empty.tar"
  [[ "${STATUS}" == 0 && "${REPLY}" =~ ^${IMAGE_ID_PATTERN}$ ]] && return 0
  error_line
  blame import-failed "scratch image ${name}: expected the engine to import it, observed: ${REPLY}" "look at the engine"
}

# NAME of the scratch images, without what tells them apart.
start_cases() {
  local revision=${TEST_REVISION}
  start_case right verified "SOURCE_IMAGE=$1-labelled"
  start_case wrong-revision revision-mismatch "EXPECTED_REVISION=${revision//5/6}"
  start_case empty-revision revision-empty EXPECTED_REVISION=
  start_case abbreviated-revision revision-malformed "EXPECTED_REVISION=${revision:0:12}"
  start_case upper-case-revision revision-malformed "EXPECTED_REVISION=${revision^^}"
  start_case wildcard-revision revision-malformed 'EXPECTED_REVISION=*'
  start_case pattern-revision revision-malformed "EXPECTED_REVISION=${revision//?/?}"
  start_case padded-revision revision-malformed "EXPECTED_REVISION= ${revision} "
  start_case broken-line-revision revision-malformed "EXPECTED_REVISION=${revision}"$'\n'
  start_case empty-image-id image-id-empty EXPECTED_IMAGE_ID=
  start_case abbreviated-image-id image-id-malformed "EXPECTED_IMAGE_ID=${LABELLED:0:19}"
  start_case padded-image-id image-id-malformed "EXPECTED_IMAGE_ID=${LABELLED} "
  start_case other-image-id image-id-mismatch "EXPECTED_IMAGE_ID=${UNLABELLED}"
  start_case unlabelled revision-missing "SOURCE_IMAGE=${UNLABELLED}" "EXPECTED_IMAGE_ID=${UNLABELLED}"
  start_case unlabelled-and-empty revision-empty "SOURCE_IMAGE=${UNLABELLED}" EXPECTED_REVISION= \
    "EXPECTED_IMAGE_ID=${UNLABELLED}"
  printf '%s %s %s\n' now self-test 'to be refused' >"${WORK}/frozen.line"
  start_case frozen frozen "FROZEN_FILE=${WORK}/frozen.line"
  start_case missing-image image-missing "SOURCE_IMAGE=$1-missing"
  start_case missing-image-id image-missing "SOURCE_IMAGE=sha256:${revision}${revision:0:24}"
}

# Start one case, all of them side by side: NAME CAUSE VARIABLE=VALUE. The variables are what it changes.
start_case() {
  local name=$1 cause=$2
  shift 2
  try_case "${name}" "$@" &
  CASES+=("$! ${name} ${cause}")
}

# What verdicts are judged by, in this run alone: two keys, one of them allowed to sign, and a ledger. Leaves the right
# verdict in VERDICT.
prepare_verdicts() {
  local key
  VERDICT_STATE=required
  step verdicts 'making scratch keys and a verdict'
  IMAGE_ID=${LABELLED} REVISION=${TEST_REVISION}
  check_production
  read_previous
  for key in key other-key; do
    ask "${QUICK}" ssh-keygen -q -t ed25519 -N '' -C self-test -f "${WORK}/${key}"
    [[ "${STATUS}" == 0 ]] ||
      cannot_tell tool-missing "this host: expected ssh-keygen, since the policy requires verdicts, observed none" \
        "install it"
  done
  printf 'self-test namespaces="%s" %s\n' "${NAMESPACE}" "$(<"${WORK}/key.pub")" >"${WORK}/signers"
  POLICY[ALLOWED_SIGNERS]="${WORK}/signers" SIGNERS_UID=${EUID} LEDGER="${WORK}/ledger"
  mkdir -- "${LEDGER}" "${LEDGER}-used" "${LEDGER}-newer"
  : >"${LEDGER}-used/${RUN_ID}"
  : >"${LEDGER}-newer/9${RUN_ID:1}"
  printf -v SIGNED_AT '%(%Y-%m-%dT%H:%M:%SZ)T' -1
  sign_scratch key "${NAMESPACE}" "${SIGNED_AT}"
  VERDICT=${REPLY}
}

# Leave in REPLY a verdict about LABELLED: KEY NAMESPACE TIME VARIABLE=VALUE. The variables are what it says otherwise.
sign_scratch() {
  local pair
  (
    for pair in "${@:4}"; do
      printf -v "${pair%%=*}" '%s' "${pair#*=}" # names of our own
    done
    print_statement self-test "$3" "${RUN_ID}"
  ) >"${WORK}/statement"
  rm -f -- "${WORK}/statement.sig"
  ask "${QUICK}" ssh-keygen -q -Y sign -f "${WORK}/$1" -n "$2" "${WORK}/statement"
  [[ "${STATUS}" == 0 ]] || cannot_tell self-test-broken 'ssh-keygen: expected to sign, observed no success' 'look at it'
  pack_verdict "${WORK}/statement.sig"
}

# Leave in REPLY the statement that was written last, with what lies in some files behind it: FILES
pack_verdict() {
  REPLY=$(cat -- "${WORK}/statement" "$@" | base64 -w 0)
}

start_verdict_cases() {
  local signature="${WORK}/statement.sig"
  start_case unsigned verdict-missing VERDICT-
  pack_verdict "${signature}" "${signature}"
  start_case second-signature verdict-malformed "VERDICT=${REPLY}"
  pack_verdict "${signature}" "${WORK}/key.pub"
  start_case trailing-junk verdict-malformed "VERDICT=${REPLY}"
  start_case replayed verdict-used "LEDGER=${LEDGER}-used"
  start_case superseded verdict-superseded "LEDGER=${LEDGER}-newer"
  start_case unkept verdict-ledger "LEDGER=${LEDGER}-none"
  start_signed_case wrong-key verdict-signature other-key "${NAMESPACE}" "${SIGNED_AT}"
  start_signed_case wrong-namespace verdict-signature key file "${SIGNED_AT}"
  start_signed_case expired verdict-expired key "${NAMESPACE}" 1990-01-01T00:00:00Z
  start_signed_case future verdict-future key "${NAMESPACE}" 2100-01-01T00:00:00Z
  start_signed_case other-production verdict-production-changed key "${NAMESPACE}" "${SIGNED_AT}" \
    "PREVIOUS_ID=${UNLABELLED}"
  start_signed_case other-target verdict-other-target key "${NAMESPACE}" "${SIGNED_AT}" PROD_SERVICE=imagefresh
  print_statement self-test 1990-01-01T00:00:00Z "${RUN_ID}" >"${WORK}/statement" # the signature is of another time
  pack_verdict "${signature}"
  start_case edited verdict-signature "VERDICT=${REPLY}"
}

# NAME CAUSE, and what sign_scratch takes.
start_signed_case() {
  sign_scratch "${@:3}"
  start_case "$1" "$2" "VERDICT=${REPLY}"
}

# --verify in a process, folder and result of its own: NAME VARIABLE=VALUE, or VARIABLE- for one that is not set
try_case() {
  local name=$1 pair
  shift
  unset -v LEASE
  SOURCE_IMAGE=${LABELLED} EXPECTED_REVISION=${TEST_REVISION} EXPECTED_IMAGE_ID=${LABELLED}
  FROZEN_FILE="${WORK}/not-frozen" # whether production is frozen just now is not what is tested
  for pair in "$@"; do             # names of our own
    if [[ "${pair}" == *=* ]]; then
      printf -v "${pair%%=*}" '%s' "${pair#*=}"
    else
      unset -v "${pair%-}"
    fi
  done
  MODE=--verify STEP='' STEP_TIMES='' SCRATCH=() CASES=() REHEARSAL=1 WORK="${WORK}/${name}"
  mkdir -- "${WORK}"
  set_traps
  exec 3>"${WORK}.json" 4>/dev/null
  read_promotion_variables
  read_facts
  decide
  conclude_verified
}

# Compare what each case ended with; the first one that is wrong is the reason.
judge_cases() {
  local case pid name cause line wrong=''
  for case in "${CASES[@]}"; do
    read -r pid name cause <<<"${case}"
    wait "${pid}" || :
    line=''
    [[ ! -f "${WORK}/${name}.json" ]] || IFS= read -r line <"${WORK}/${name}.json" || :
    [[ "${line}" =~ \"kind\":\"([a-z-]+)\",\"cause\":\"([a-z-]+)\",\"reason\":\"([^\"]*) ]] ||
      cannot_tell self-test-broken "case ${name}: expected a decision, observed none" "report it"
    [[ "${BASH_REMATCH[1]}" != unknown ]] || cannot_tell "${BASH_REMATCH[2]}" "case ${name}" "${BASH_REMATCH[3]}"
    CASE_RESULTS+="${CASE_RESULTS:+,}\"${name}\":\"${BASH_REMATCH[2]}\""
    [[ "${BASH_REMATCH[2]}" == "${cause}" || -n "${wrong}" ]] ||
      wrong="case ${name}: expected ${cause}, observed ${BASH_REMATCH[2]}: ${BASH_REMATCH[3]}"
  done
  [[ -z "${wrong}" ]] || refuse self-test-failed "${wrong}" "replace this hook: it does not refuse what it must refuse"
}

# --- Promotion: the pin -----------------------------------------------------------------------------------------------

# Leave the path of .env in PIN_FILE, its line of the pin in PIN_LINE, and its lines in PIN_TEXT, with LINE in place of
# that one; without it where LINE is empty.
read_pin_file() {
  local line found=0 newline=$'\n' pattern="^[[:space:]]*(export[[:space:]]+)?${PROD_PIN}[[:space:]]*[=:]"
  PIN_FILE=$(readlink -f -- "${COMPOSE_DIR}/.env") ||
    refuse pin-file "${COMPOSE_DIR}/.env: expected a file or nothing, observed a broken link" "correct the link"
  PIN_TEXT='' PIN_LINE=''
  if [[ -f "${PIN_FILE}" ]]; then
    while IFS= read -r line || { newline='' && [[ -n "${line}" ]]; }; do
      if [[ "${line}" =~ ${pattern} ]]; then
        PIN_LINE=${line}
        found=$((found + 1))
        [[ -n "$1" ]] || continue
        line=$1
      fi
      PIN_TEXT+=${line}${newline}
    done <"${PIN_FILE}"
  fi
  [[ "${found}" -le 1 ]] ||
    refuse pin-ambiguous "${PIN_FILE}: expected one line for ${PROD_PIN}, observed ${found}" "leave one"
  [[ "${found}" == 0 && -n "$1" ]] || return 0
  [[ -z "${PIN_TEXT}" || "${PIN_TEXT}" == *$'\n' ]] || PIN_TEXT+=$'\n'
  PIN_TEXT+=$1$'\n'
}

# Write the new .env beside the old one: LINE. Done before production changes too, so that a full disk or a missing right
# is a refusal and not a rollback.
draft_pin() {
  read_pin_file "$1"
  PIN_DRAFT="${PIN_FILE}.imagefresh-${RUN_ID}"
  copy_pin_file
  printf '%s' "${PIN_TEXT}" >"${PIN_DRAFT}" ||
    refuse pin-file "${PIN_DRAFT}: expected to write it, observed no success" "look for free space"
  sync -- "${PIN_DRAFT}" ||
    refuse pin-file "${PIN_DRAFT}: expected it on the disk, observed no success" "look for free space"
}

# Give the draft the mode and the owner of the file that it will replace.
copy_pin_file() {
  local wanted=0644 given
  if [[ -e "${PIN_FILE}" ]]; then
    cp -p -- "${PIN_FILE}" "${PIN_DRAFT}" ||
      refuse pin-file "${PIN_FILE}: expected to copy it beside itself" "look for free space and the folder's mode"
    wanted=$(stat -c '%u:%g:%a' -- "${PIN_FILE}")
    given=$(stat -c '%u:%g:%a' -- "${PIN_DRAFT}")
    [[ "${wanted}" == "${given}" ]] ||
      refuse pin-file "${PIN_FILE}: expected to keep its owner and mode ${wanted}, observed ${given}" \
        "run the hook as its owner or as root"
  else
    : >"${PIN_DRAFT}" || refuse pin-file "${PIN_DRAFT}: expected to write it" "look at the folder's mode"
    chmod 0644 -- "${PIN_DRAFT}"
  fi
}

# Replace the line of the pin in .env by LINE, for any compose call from the rename on.
write_pin() {
  draft_pin "$1"
  mv -f -- "${PIN_DRAFT}" "${PIN_FILE}" ||
    refuse pin-file "${PIN_FILE}: expected to replace it" "look at the folder's mode"
  PIN_DRAFT=''
  sync -- "${PIN_FILE%/*}" || :
}

# The commit point.
commit_pin() {
  step commit "writing ${PROD_PIN} to ${COMPOSE_DIR}/.env"
  COMMITTED=1
  write_pin "${PROD_PIN}=${IMAGE_ID}"
  resolve_compose
  [[ "${SERVICE_IMAGE[${PROD_SERVICE}]-}" == "${IMAGE_ID}" ]] ||
    refuse pin-unused \
      "${PIN_FILE}: expected it to give ${PROD_SERVICE} ${IMAGE_ID}, observed ${SERVICE_IMAGE[${PROD_SERVICE}]-none}" \
      "look for another line that sets it"
}

# --- Promotion: the journal -------------------------------------------------------------------------------------------
# A file in the state folder, there as long as a change of production is under way: KEY=value lines that say what was to
# become of which production, and what it was before. Whoever finds one under the lock knows that its run has died.

# Leave in REPLY what the value of a key of the journal must match; nothing where there is no such key: KEY
journal_pattern() {
  REPLY=''
  case "$1" in
    run) REPLY=${RUN_ID_PATTERN} ;;
    since) REPLY='[0-9TZ:-]+' ;;
    cause) REPLY='promoted|restored|broke-glass' ;;
    repo | service) REPLY=${NAME_PATTERN} ;;
    revision) REPLY="(${HEX40})?" ;;
    image) REPLY=${REFERENCE_PATTERN} ;;
    port) REPLY='[1-9][0-9]{0,4}' ;;
    profile | pin | proxy) REPLY="(${NAME_PATTERN})?" ;;
    proxy_port) REPLY='([1-9][0-9]{0,4})?' ;;
    drain) REPLY="(${SECONDS_PATTERN})?" ;;
    pin_line) REPLY='.*' ;;
    new) REPLY=${IMAGE_ID_PATTERN} ;;
    old | old_tag) REPLY="(${IMAGE_ID_PATTERN})?" ;;
    health_path) REPLY='/[^[:space:]]*' ;;
    health_timeout | settle) REPLY=${SECONDS_PATTERN} ;;
    *) ;;
  esac
}

readonly JOURNAL_KEYS='run since cause repo revision service image port profile pin pin_line new old old_tag health_path
  health_timeout settle proxy proxy_port drain'

# Open it, on the disk before anything changes: CAUSE of a success.
open_journal() {
  local draft="${JOURNAL_FILE}.draft" since key
  since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
  JOURNAL=(
    [run]=${RUN_ID} [since]=${since} [cause]=$1 [repo]=${REPO} [revision]=${REVISION} [service]=${PROD_SERVICE}
    [image]=${PROD_IMAGE} [port]=${PROD_PORT} [profile]=${PROD_PROFILE} [pin]=${PROD_PIN} [pin_line]=${PIN_LINE}
    [new]=${IMAGE_ID} [old]=${PREVIOUS_ID} [old_tag]=${PREVIOUS_TAG_ID} [health_path]=${HEALTH_PATH}
    [health_timeout]=${HEALTH_TIMEOUT} [settle]=${SETTLE} [proxy]=${PROD_PROXY} [proxy_port]=${PROD_PROXY_PORT}
    [drain]=${PROD_DRAIN}
  )
  JOURNALED=1 # whatever ends this run from here on removes it
  {
    for key in ${JOURNAL_KEYS}; do
      printf '%s=%s\n' "${key}" "${JOURNAL[${key}]}"
    done >"${draft}" && sync -- "${draft}" && mv -f -- "${draft}" "${JOURNAL_FILE}" && sync -- "${STATE}"
  } 2>/dev/null ||
    refuse state-unsafe "${JOURNAL_FILE}: expected to write it, observed no success" "look for free space and its mode"
}

# Close it where production is known to be what it should be: KIND.
close_journal() {
  [[ -n "${JOURNALED}" ]] || return 0
  case "$1:${PHASE}" in
    done:* | rolled-back:* | *:before) ;;
    *) return 0 ;;
  esac
  { rm -f -- "${JOURNAL_FILE}" "${JOURNAL_FILE}.draft" && sync -- "${STATE}"; } 2>/dev/null && return 0
  UNRECORDED+="; ${JOURNAL_FILE} could not be removed: --recover will look at production once more"
  say "WARNING: ${JOURNAL_FILE} could not be removed: --recover will look at production once more"
}

is_journal_open() {
  [[ -e "${JOURNAL_FILE}" || -L "${JOURNAL_FILE}" ]]
}

cannot_read_state() {
  cannot_tell state-unsafe "${STATE}: expected to see whether a change was interrupted, observed another user's folder" \
    "run the hook as its owner"
}

# A decision about a production that is between two images would be worth nothing.
refuse_open_journal() {
  [[ ! -d "${STATE}" || -x "${STATE}" ]] || cannot_read_state
  # shellcheck disable=SC2310 # a question that does not rely on errexit
  ! is_journal_open ||
    refuse promotion-open "${JOURNAL_FILE}: expected no change of production under way, observed one" \
      "wait for its end, or call --recover"
}

# Leave in JOURNAL what is written there, as strictly as it was written.
read_journal() {
  local line key expected=0
  JOURNAL=()
  [[ -f "${JOURNAL_FILE}" && ! -L "${JOURNAL_FILE}" ]] || distrust_journal 'no file'
  [[ -r "${JOURNAL_FILE}" ]] || cannot_read_state
  while IFS= read -r line; do
    key=${line%%=*}
    journal_pattern "${key}"
    [[ "${line}" == *=* && -n "${REPLY}" && "${line#*=}" =~ ^(${REPLY})$ && -z "${JOURNAL[${key}]+set}" ]] ||
      distrust_journal "${line@Q}"
    JOURNAL[${key}]=${line#*=}
  done <"${JOURNAL_FILE}"
  for key in ${JOURNAL_KEYS}; do
    expected=$((expected + 1))
  done
  [[ "${#JOURNAL[@]}" == "${expected}" ]] || distrust_journal "${#JOURNAL[@]} of ${expected} keys"
}

# OBSERVED
distrust_journal() {
  conclude broken journal-malformed "${JOURNAL_FILE}: expected the journal of a promotion, observed $1; \
make sure that production runs the image that it should, then remove that file"
}

# --- Promotion: the images that it ran before -------------------------------------------------------------------------
# Each is protected from pruning by a container that never runs, labelled with the production it belongs to, since when it
# is kept, and by what production left it.
readonly KEEPER='imagefresh.production' KEPT_SINCE='imagefresh.kept-since' LEFT_BY='imagefresh.left-by'

# Keep the previous image, and give it a name: CAUSE by which production leaves it.
keep_previous() {
  local repository=${PROD_IMAGE} name since
  if [[ -z "${PREVIOUS_ID}" ]]; then
    say "this is the first promotion of ${PROD_SERVICE} on this host: there is no previous image to go back to"
    return 0
  fi
  [[ "${PREVIOUS_ID}" != "${IMAGE_ID}" ]] || return 0
  [[ "${repository##*/}" != *:* ]] || repository=${repository%:*}
  tag_image "${repository}:imagefresh-previous" "${PREVIOUS_ID}"
  name="imagefresh-previous-${PROJECT}-${PROD_SERVICE}-${PREVIOUS_ID:7:12}"
  since=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)
  list_preserved
  remove_keepers "${PREVIOUS_ID}"
  change "${QUICK}" docker container create --pull never --name "${name}" --network none --entrypoint /imagefresh-keeper \
    --label "${KEEPER}=${PROJECT}/${PROD_SERVICE}" --label "${KEPT_SINCE}=${since}" --label "${LEFT_BY}=$1" "${PREVIOUS_ID}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame keep-failed "container ${name}: expected the engine to create it, observed: ${REPLY}" "look at the engine"
  fi
  forget_older
}

# Leave in PRESERVED the images that are kept for PROD_SERVICE, the newest first: SINCE|LEFT_BY|CONTAINER|IMAGE_ID.
list_preserved() {
  local line lines=() labels="{{.Label \"${KEPT_SINCE}\"}}|{{.Label \"${LEFT_BY}\"}}"
  ask "${QUICK}" docker container ls --all --no-trunc --filter "label=${KEEPER}=${PROJECT}/${PROD_SERVICE}" \
    --format "${labels}|{{.ID}}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame container-list "the previous images of ${PROD_SERVICE}: expected a list, observed: ${REPLY}" "look at the engine"
  fi
  REPLY=$(sort -r <<<"${REPLY}")
  [[ -z "${REPLY}" ]] || mapfile -t lines <<<"${REPLY}"
  PRESERVED=()
  for line in "${lines[@]}"; do
    read_container "${line##*|}"
    [[ -z "${SEEN[image]-}" ]] || PRESERVED+=("${line}|${SEEN[image]}")
  done
}

# Remove what keeps an image of PRESERVED: IMAGE_ID. The engine removes no container that runs: somebody needs that.
remove_keepers() {
  local entry container
  for entry in "${PRESERVED[@]}"; do
    [[ "${entry##*|}" == "$1" ]] || continue
    container=${entry%|*}
    change "${QUICK}" docker container rm "${container##*|}"
  done
}

# Let go of all but the newest images that are kept. One that has a name, or that a container uses, stays itself.
forget_older() {
  local entry id kept=0
  local -A known=([${IMAGE_ID}]=1)
  list_preserved
  for entry in "${PRESERVED[@]}"; do
    id=${entry##*|}
    [[ -z "${known[${id}]-}" ]] || continue
    known[${id}]=1
    kept=$((kept + 1))
    [[ "${kept}" -gt "${POLICY[KEEP]-${DEFAULT_KEEP}}" ]] || continue
    say "no longer keeping ${id}"
    remove_keepers "${id}"
    ask "${QUICK}" docker image inspect --format '{{len .RepoTags}} {{len .RepoDigests}}' -- "${id}"
    [[ "${STATUS}" != 0 || "${REPLY}" != '0 0' ]] || run_child "${QUICK}" docker image rm --no-prune -- "${id}" >/dev/null 2>&1
  done
}

# Choose the image to go back to: SOURCE_IMAGE, or the newest that is kept and that nobody left by a rollback. PROJECT is
# known; FOUND holds the container of production.
choose_previous() {
  local entry left id runs='' kept
  if [[ "${#FOUND[@]}" == 1 ]]; then
    read_container "${FOUND[0]}"
    runs=${SEEN[image]-}
  fi
  list_preserved
  IMAGE_ID=''
  for entry in "${PRESERVED[@]}"; do
    IFS='|' read -r _ left _ id <<<"${entry}"
    if [[ "${SOURCE_IMAGE}" == "${id}" || (-z "${SOURCE_IMAGE}" && "${id}" != "${runs}" && "${left}" != restored) ]]; then
      IMAGE_ID=${id}
      break
    fi
  done
  if [[ -z "${IMAGE_ID}" ]]; then
    kept=${PRESERVED[*]##*|}
    tell_by_hand
    conclude broken no-previous "production ${PROD_SERVICE}: expected ${SOURCE_IMAGE:-a previous image} among those that \
are kept for it and that no rollback has left, observed ${kept:-none}; name one of them as SOURCE_IMAGE, or: ${REPLY}"
  fi
  read_image "${IMAGE_ID}"
  [[ ! "${SEEN_REVISION}" =~ ^\"(${HEX40})\"$ ]] || REVISION=${BASH_REMATCH[1]}
}

# --- Promotion: the precheck ------------------------------------------------------------------------------------------
# The candidate runs beside production for a moment, as production's own compose configuration says, on a port of loopback
# that the engine chooses. Whatever fails here is a refusal: production is not touched yet.
readonly REHEARSED='imagefresh.precheck'

# CAUSE of a success.
precheck() {
  [[ "${PRECHECK}" == yes && "$1" != restored ]] || return 0 # production ran that one already, and may be down
  [[ -z "${PROD_PROXY}" ]] || return 0                       # which gets nothing else than one that runs beside
  PRECHECKING=1
  step precheck "starting ${IMAGE_ID} beside production"
  remove_precheck
  start_precheck
  take_only "${PROD_SERVICE}" "${IMAGE_ID}"
  compare_start "${IMAGE_ID}"
  find_precheck_address
  AGAIN='precheck-'
  await_health
  require_alive
  AGAIN=''
  remove_precheck
  PRECHECKING=''
}

# Nothing is built or pulled: production has no build:, and pull_policy: never. Leaves its container in FOUND.
start_precheck() {
  local published="${PROD_SERVICE}:${PROD_PORT}" target
  target=${SERVICE_TARGET[${published}]-}
  [[ -n "${target}" ]] ||
    refuse port-not-published "service ${PROD_SERVICE}: expected ports: to publish ${PROD_PORT}, observed none that does" \
      "publish it, or leave out PRECHECK"
  compose_with "${PROD_SERVICE}" "${PROD_PROFILE}" "${IMAGE_ID}" "${PROD_PIN}"
  change "${RECREATE}" "${COMPOSE[@]}" run -d --no-deps --publish "127.0.0.1::${target}" \
    --name "imagefresh-precheck-${WORK##*.}" --label "${REHEARSED}=${PROJECT}/${PROD_SERVICE}" "${PROD_SERVICE}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame start-failed "service ${PROD_SERVICE}: expected compose to start one more, observed: ${REPLY}" \
      "correct that, or leave out PRECHECK"
  fi
  list_containers --filter "label=${REHEARSED}=${PROJECT}/${PROD_SERVICE}"
  [[ "${#FOUND[@]}" == 1 ]] ||
    refuse container-count "service ${PROD_SERVICE}: expected exactly 1 container beside it, observed ${#FOUND[@]}" \
      "look for another compose call at the same time"
}

# Leave in ADDRESS where the engine published the port of the taken container.
find_precheck_address() {
  local binding published="${PROD_SERVICE}:${PROD_PORT}"
  ADDRESS=''
  for binding in ${SEEN[ports]-}; do
    [[ "${binding}" != "${SERVICE_TARGET[${published}]}/tcp|127.0.0.1|"* ]] ||
      ADDRESS="127.0.0.1:${binding##*|}"
  done
  [[ -n "${ADDRESS}" ]] ||
    refuse port-not-published "container ${CONTAINER_ID:0:12}: expected a port on 127.0.0.1, observed: ${SEEN[ports]%.}" \
      "look at the network of ${PROD_SERVICE}"
}

# Remove what a precheck has started, of this run or of a dead one, by its ID. At the end of a run nothing may stop this.
remove_precheck() {
  local ids id
  run_child "${QUICK}" docker container ls --all --quiet --no-trunc \
    --filter "label=${REHEARSED}=${PROJECT}/${PROD_SERVICE}" >"${WORK}/out" 2>"${WORK}/err"
  ids=$(<"${WORK}/out")
  for id in ${ids}; do
    run_child "${QUICK}" docker container rm --force --volumes "${id}" >"${WORK}/out" 2>"${WORK}/err"
    [[ "${STATUS}" == 0 ]] || break
  done
  CONTAINER_ID=''
  [[ "${STATUS}" == 0 ]] ||
    say "WARNING: a container labelled ${REHEARSED}=${PROJECT}/${PROD_SERVICE} may be left: remove it"
}

# --- Promotion: behind a proxy ----------------------------------------------------------------------------------------
# With PROD_PROXY, nginx owns production's port. The candidate runs beside the container that serves; one line in a file of
# the state folder, which the proxy includes in its upstream block, says to which of them it leads. The old container is
# stopped before the new one is believed to answer, and removed past the commit point: until then it is the way back.

# What the proxy is, as the compose files tell it and as it runs.
check_proxy() {
  local source folder mounted=''
  [[ -n "${SERVICE_IMAGE[${PROD_PROXY}]-}" ]] ||
    refuse proxy-missing "PROD_PROXY: expected a service of ${COMPOSE_DIR}, observed ${PROD_PROXY}" \
      "the compose file has: ${!SERVICE_IMAGE[*]}"
  [[ -z "${SERVICE_PORTS[${PROD_SERVICE}]-}" ]] ||
    refuse production-publishes \
      "service ${PROD_SERVICE}: expected no published ports, since two of it run side by side, observed${SERVICE_PORTS[${PROD_SERVICE}]% }" \
      "remove ports: of ${PROD_SERVICE} from the compose file in ${COMPOSE_DIR}"
  [[ -z "${SERVICE_NAMED[${PROD_SERVICE}]-}" ]] ||
    refuse production-named \
      "service ${PROD_SERVICE}: expected no container_name:, since two of it run side by side, observed ${SERVICE_CONTAINER[${PROD_SERVICE}]}" \
      "remove container_name: of ${PROD_SERVICE} from the compose file in ${COMPOSE_DIR}"
  [[ "${SERVICE_PORTS[${PROD_PROXY}]-}" == *" ${PROD_PORT} "* ]] ||
    refuse proxy-port "service ${PROD_PROXY}: expected ports: to publish ${PROD_PORT}, observed:${SERVICE_PORTS[${PROD_PROXY}]- none}" \
      "publish it below ${PROD_PROXY} in the compose file in ${COMPOSE_DIR}"
  folder=$(readlink -m -- "${STATE}/proxy")
  while IFS= read -r source; do
    source=$(readlink -m -- "${source:-/}")
    [[ "${source}" != "${folder}" ]] || mounted=1
  done <<<"${SERVICE_SOURCES[${PROD_PROXY}]-}"
  [[ -n "${mounted}" ]] ||
    refuse proxy-mount "service ${PROD_PROXY}: expected volumes: to mount ${folder}, observed none that does" \
      "mount ./.imagefresh/proxy read-only, and include its files in the upstream block"
  find_proxy
}

# Leave in PROXY_ID the container of the proxy, in PROXY_ADDRESS where it answers for production; both empty while none runs.
find_proxy() {
  local taken=${CONTAINER_ID} since=${STARTED_AT}
  PROXY_ID='' PROXY_ADDRESS='' PROXY_STARTED=''
  find_containers "${PROD_PROXY}"
  [[ "${#FOUND[@]}" -le 1 ]] ||
    refuse container-count "service ${PROD_PROXY}: expected at most 1 container, observed ${#FOUND[@]}" \
      "the hook handles a proxy without replicas"
  [[ "${#FOUND[@]}" == 1 ]] || return 0
  read_container "${FOUND[0]}"
  [[ "${SEEN[status]-}" == running ]] || return 0
  CONTAINER_ID=${FOUND[0]} STARTED_AT=${SEEN[started]} # who is asked why, where it publishes nothing
  find_address "${PROD_PORT}"
  PROXY_ID=${CONTAINER_ID} PROXY_ADDRESS=${ADDRESS} PROXY_STARTED=${STARTED_AT}
  CONTAINER_ID=${taken} STARTED_AT=${since}
}

# Before production changes: the candidate runs beside it and is healthy, and the proxy can read its configuration.
rehearse() {
  find_containers "${PROD_SERVICE}"
  STANDING=${FOUND[*]-}
  find_proxy
  if [[ -n "${PROXY_ID}" ]]; then
    test_proxy "# configuration file .*/${PROD_SERVICE//./\\.}\\.conf:" lenient
    require_workers
  fi
  BESIDE=${IMAGE_ID}
  start_beside "${IMAGE_ID}"
  draft_upstream "server ${SEEN[name]#/}:${PROD_PROXY_PORT};"
}

# Have a container of production run from an image ID, healthy at its own address; others stay as they are: ID.
start_beside() {
  AGAIN=''
  step beside "starting $1 beside what serves"
  find_beside "$1"
  if [[ -z "${CONTAINER_ID}" ]]; then
    create_beside "$1"
    find_beside "$1"
  fi
  [[ -n "${CONTAINER_ID}" ]] ||
    refuse start-failed "service ${PROD_SERVICE}: expected a container that has $1, observed none" \
      "look for another compose call at the same time"
  [[ "${SEEN[status]-}" == running ]] || start_found
  FOUND=("${CONTAINER_ID}")
  take_only "${PROD_SERVICE}" "$1"
  compare_start "$1"
  find_own_address
  AGAIN='beside-'
  await_health
  require_alive
  AGAIN=''
}

# Leave in CONTAINER_ID the container of production that can serve an image ID, and the SEEN table about it; one that runs
# comes first, one that restarted by itself or is unhealthy does not count: ID.
find_beside() {
  local id best=''
  find_containers "${PROD_SERVICE}"
  for id in "${FOUND[@]}"; do
    read_container "${id}"
    case "${SEEN[image]-}/${SEEN[restarts]-}/${SEEN[status]-}/${SEEN[health]-}" in
      "$1/0/running/unhealthy") ;;
      "$1/0/running/"*)
        best=${id}
        break
        ;;
      "$1/0/exited/"* | "$1/0/created/"*) best=${id} ;;
      *) ;;
    esac
  done
  CONTAINER_ID=${best}
  [[ -z "${best}" ]] || read_container "${best}"
}

# Start the container that was found.
start_found() {
  RAISED=${CONTAINER_ID}
  change "${RECREATE}" docker container start "${CONTAINER_ID}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame start-failed "container ${CONTAINER_ID:0:12}: expected the engine to start it, observed: ${REPLY}" \
      "correct that and try again"
  fi
}

# Let compose create one more container of production, and start none: ID. FOUND holds those that are there.
create_beside() {
  compose_with "${PROD_SERVICE}" "${PROD_PROFILE}" "$1" "${PROD_PIN}"
  change "${RECREATE}" "${COMPOSE[@]}" up --no-start --no-recreate --no-deps --no-build --pull never \
    --scale "${PROD_SERVICE}=$((${#FOUND[@]} + 1))" "${PROD_SERVICE}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame start-failed "service ${PROD_SERVICE}: expected compose to create one more, observed: ${REPLY}" \
      "correct that and try again"
  fi
}

# Leave in ADDRESS where the taken container answers by itself: on a network that it shares with the proxy, where that runs.
find_own_address() {
  local network address shared=''
  if [[ -n "${PROXY_ID}" ]]; then
    read_networks "${PROXY_ID}"
    shared=${REPLY}
  fi
  read_networks "${CONTAINER_ID}"
  ADDRESS=''
  while read -r network address; do
    [[ -z "${address}" || (-n "${PROXY_ID}" && $'\n'"${shared}" != *$'\n'"${network} "*) ]] ||
      ADDRESS="${address}:${PROD_PROXY_PORT}"
  done <<<"${REPLY}"
  [[ -n "${ADDRESS}" ]] || require_alive # a container that is just dying has no address any more
  [[ -n "${ADDRESS}" ]] ||
    refuse proxy-network "container ${CONTAINER_ID:0:12}: expected a network that it shares with ${PROD_PROXY}, observed none" \
      "put both services on one bridge network"
}

# Leave in REPLY the networks of a container and its addresses there, a line each: ID.
read_networks() {
  ask "${QUICK}" docker container inspect \
    --format '{{range .NetworkSettings.Networks}}{{println .NetworkID .IPAddress}}{{end}}' -- "$1"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame engine-answer "container ${1:0:12}: expected to see its networks, observed: ${REPLY}" "look at the engine"
  fi
}

# Have production's port answer from an image ID, and from nothing else, and prove it: ID.
serve_behind_proxy() {
  find_proxy
  [[ "${BESIDE}" == "$1" ]] || start_beside "$1"
  BESIDE=''
  require_alive
  lead_proxy "$1"
  ADDRESS=${PROXY_ADDRESS}
  await_health
  retire_others
  prove_behind_proxy
}

# Let the proxy lead to the taken container: ID. New requests go there, those under way finish where they are.
lead_proxy() {
  local name=${SEEN[name]#/}
  step switch "leading ${PROD_PROXY} to ${name}"
  write_upstream "server ${name}:${PROD_PROXY_PORT};"
  if [[ -z "${PROXY_ID}" ]]; then
    start_proxy "$1"
    return
  fi
  test_proxy "server ${name//./\\.}:${PROD_PROXY_PORT};"
  reload_proxy
}

# Have nginx read its configuration again, and wait until no worker that has the former one takes a connection: for a moment
# both do, and the former may lead to a container that is gone.
reload_proxy() {
  local former end pid left
  require_workers
  former=${WORKERS}
  # No signal of the engine: it would take that for a stop, and restart the container no more.
  change "${QUICK}" docker container exec "${PROXY_ID}" nginx -s reload
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame proxy-reload "service ${PROD_PROXY}: expected nginx to reload, observed: ${REPLY}" "look at its container"
  fi
  now
  end=$((NOW + QUICK * 1000))
  while :; do
    find_workers
    left=''
    for pid in ${former}; do
      [[ "${WORKERS} " != *" ${pid} "* ]] || left+=" ${pid}"
    done
    [[ -z "${WORKERS}" || -n "${left}" ]] || return 0
    now
    ((NOW < end)) || refuse proxy-reload "service ${PROD_PROXY}: expected new workers alone to take connections, observed \
after ${QUICK} s:${WORKERS:- none}, former ones:${left:- none}" "look at them with docker top ${PROXY_ID:0:12}"
    pause 0.05
  done
}

require_workers() {
  find_workers
  [[ -n "${WORKERS}" ]] ||
    refuse proxy-workers "service ${PROD_PROXY}: expected processes named nginx: worker process, observed none" \
      "look for them with docker top ${PROXY_ID:0:12}; master_process must be on"
}

# Leave in WORKERS the PIDs of nginx's workers that take connections: one that shuts down has that in its name.
find_workers() {
  local pid name
  ask "${QUICK}" docker container top "${PROXY_ID}" -o pid,args
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame proxy-workers "service ${PROD_PROXY}: expected docker top to list its processes, observed: ${REPLY}" \
      "it needs ps (Debian: procps) beside the engine"
  fi
  WORKERS=''
  while read -r pid name; do
    [[ "${name}" != 'nginx: worker process' ]] || WORKERS+=" ${pid}"
  done <"${WORK}/out"
}

# Write the line that the proxy includes beside the present one: LINE. Done before production changes too, so that a full
# disk or a missing right is a refusal and not a rollback.
draft_upstream() {
  local folder="${STATE}/proxy" file="${STATE}/proxy/${PROD_SERVICE}.conf"
  mkdir -m 0755 -- "${folder}" 2>/dev/null || [[ -d "${folder}" && ! -L "${folder}" && -O "${folder}" ]] ||
    refuse state-unsafe "${folder}: expected a folder that this user owns or can create, observed none" 'correct it'
  { printf '%s\n' "$1" >"${file}.draft" && sync -- "${file}.draft"; } 2>/dev/null ||
    refuse state-unsafe "${file}.draft: expected to write it, observed no success" "look for free space and its mode"
}

# Replace the line that the proxy includes: LINE.
write_upstream() {
  local file="${STATE}/proxy/${PROD_SERVICE}.conf"
  draft_upstream "$1"
  { mv -f -- "${file}.draft" "${file}" && sync -- "${file%/*}"; } 2>/dev/null ||
    refuse state-unsafe "${file}: expected to replace it, observed no success" "look for free space and its mode"
}

# Stop unless nginx takes its configuration, in which a line matches: PATTERN. "lenient": not because the container that it
# leads to is gone.
test_proxy() {
  ask "${QUICK}" docker container exec "${PROXY_ID}" nginx -T
  if [[ "${STATUS}" == 0 ]]; then
    grep -qxE -- "$1" "${WORK}/out" ||
      refuse proxy-config "service ${PROD_PROXY}: expected its configuration to include ${STATE}/proxy/${PROD_SERVICE}.conf, \
observed one that does not" "include it in the upstream block, and recreate ${PROD_PROXY} where that folder was replaced"
    return 0
  fi
  REPLY=$(grep -m 1 -F '[emerg]' -- "${WORK}/err" || tail -n 1 -- "${WORK}/err")
  one_line "${REPLY:-nothing}"
  if [[ "${2-}" == lenient && "${REPLY}" == *'host not found in upstream'*"/${PROD_SERVICE}.conf:"* ]]; then
    say "warning: ${PROD_PROXY} leads to nothing that runs: ${REPLY}"
    return 0
  fi
  blame proxy-config "service ${PROD_PROXY}: expected nginx -T to accept its configuration, observed: ${REPLY}" \
    "correct that"
}

# Start the proxy, whatever is left of an earlier one: ID that the pin names meanwhile.
start_proxy() {
  compose_with "${PROD_PROXY}" "${PROD_PROFILE}" "$1" "${PROD_PIN}"
  change "${RECREATE}" "${COMPOSE[@]}" up -d --no-deps --force-recreate --pull never --no-build "${PROD_PROXY}"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame proxy-down "service ${PROD_PROXY}: expected compose to start it, observed: ${REPLY}" "correct that"
  fi
  find_proxy
  [[ -z "${PROXY_ID}" ]] || return 0
  ask "${QUICK}" docker container logs --tail 1 "${FOUND[0]-none}"
  error_line
  refuse proxy-down "service ${PROD_PROXY}: expected its container to run, observed that it does not; its log ends: ${REPLY}" \
    "see more with docker compose logs ${PROD_PROXY}"
}

# Stop every other container of production that may still work, once it has had the time to finish.
retire_others() {
  local id others=()
  find_containers "${PROD_SERVICE}"
  for id in "${FOUND[@]}"; do
    [[ "${id}" != "${CONTAINER_ID}" ]] || continue
    read_container "${id}"
    case "${SEEN[status]-gone}" in
      created | exited | dead | removing | gone) ;;
      *) others+=("${id}") ;;
    esac
  done
  [[ "${#others[@]}" != 0 ]] || return 0
  drain
  step stop "stopping what served before"
  for id in "${others[@]}"; do
    stop_container "${id}"
  done
}

drain() {
  local end
  step drain "letting what is under way finish for ${PROD_DRAIN} s"
  milliseconds "${PROD_DRAIN}"
  end=$((NOW + REPLY))
  until ((NOW >= end)); do
    pause 0.1
    require_alive
    now
  done
}

# With the others stopped, no container of production but the taken one can answer behind the proxy.
prove_behind_proxy() {
  local end
  step settle "letting it settle for ${SETTLE} s behind ${PROD_PROXY}"
  milliseconds "${SETTLE}"
  end=$((NOW + REPLY))
  while :; do
    require_alive
    probe
    [[ "${ANSWER}" == 200 ]] ||
      refuse unhealthy "http://${ADDRESS}${HEALTH_PATH}: expected 200 from ${PROD_PROXY}, observed ${ANSWER}" \
        "see docker compose logs ${PROD_PROXY}"
    now
    ((NOW < end)) || break
    pause 0.1
  done
  require_undisturbed
  read_container "${PROXY_ID}"
  [[ "${SEEN[started]-}/${SEEN[status]-}" == "${PROXY_STARTED}/running" ]] ||
    refuse proxy-replaced "service ${PROD_PROXY}: expected its container ${PROXY_ID:0:12} to stay up, observed ${SEEN[status]-gone}" \
      "look for another compose call at the same time"
}

# Remove what served before, once nobody goes back to it. What cannot be removed does not run, and serves nobody.
remove_retired() {
  local id
  [[ -n "${PROD_PROXY}" ]] || return 0
  find_containers "${PROD_SERVICE}"
  for id in "${FOUND[@]}"; do
    [[ "${id}" != "${CONTAINER_ID}" ]] || continue
    run_child "${RECREATE}" docker container rm "${id}" >"${WORK}/out" 2>"${WORK}/err"
    [[ "${STATUS}" == 0 ]] || say "WARNING: container ${id:0:12} of ${PROD_SERVICE} could not be removed: remove it"
  done
}

# Remove what this run has started beside production, by its ID. At the end of a run nothing may stop this.
remove_beside() {
  local ids id
  run_child "${QUICK}" docker container ls --all --quiet --no-trunc --filter "label=com.docker.compose.project=${PROJECT}" \
    --filter "label=com.docker.compose.service=${PROD_SERVICE}" --filter label=com.docker.compose.oneoff=False \
    >"${WORK}/out" 2>"${WORK}/err"
  ids=$(<"${WORK}/out")
  [[ -z "${RAISED}" || " ${STANDING} " != *" ${RAISED} "* ]] ||
    run_child "${RECREATE}" docker container stop "${RAISED}" >"${WORK}/out" 2>"${WORK}/err"
  for id in ${ids}; do
    [[ " ${STANDING} " != *" ${id} "* ]] || continue
    run_child "${QUICK}" docker container rm --force --volumes "${id}" >"${WORK}/out" 2>"${WORK}/err"
    [[ "${STATUS}" == 0 ]] || break
  done
  CONTAINER_ID=''
  [[ "${STATUS}" == 0 ]] || say "WARNING: a container of ${PROD_SERVICE} that never served may be left: remove it"
}

# --- Promotion: the change --------------------------------------------------------------------------------------------

# Write down what is production from now on: --build-staging refuses all of it, whatever a caller says.
record_promoted() {
  local file="${STATE}/promoted" line
  canonical "${PROD_IMAGE}"
  touch -- "${file}" || refuse state-unsafe "${file}: expected to write it" "look for free space and its mode"
  for line in "service ${PROD_SERVICE}" "port ${PROD_PORT}" "image ${REPLY}" ${PROD_PROXY:+"service ${PROD_PROXY}"}; do
    grep -qxF -- "${line}" "${file}" || printf '%s\n' "${line}" >>"${file}" ||
      refuse state-unsafe "${file}: expected to write it" "look for free space"
  done
}

# Run production from an image ID and prove that it does: ID.
run_production() {
  if [[ -n "${PROD_PROXY}" ]]; then
    serve_behind_proxy "$1"
    return
  fi
  step recreate "recreating service ${PROD_SERVICE} from $1"
  recreate "${PROD_SERVICE}" "${PROD_PROFILE}" "$1" "${PROD_PIN}"
  prove_production "$1"
}

# ID
prove_production() {
  take_container "${PROD_SERVICE}" "$1" "${PROD_PORT}"
  compare_start "$1"
  await_health
  settle "${PROD_SERVICE}"
}

# Stop unless production starts what its image and the compose file say, as who they say, over nothing else than the mounts
# that they name: IMAGE_ID.
compare_start() {
  local names=(entrypoint command user) container=() image=() index path said=" ${SERVICE_SAYS[${PROD_SERVICE}]-} "
  [[ "${said}" != *' entrypoint '* ]] || said+='command ' # compose then leaves out the image's
  read_start container "${CONTAINER_ID}" "${MOUNTS_FORMAT}"
  mapfile -t container <<<"${REPLY}"
  read_start image "$1" "${VOLUMES_FORMAT}"
  mapfile -t image <<<"${REPLY}"
  for index in "${!names[@]}"; do
    [[ "${said}" == *" ${names[index]} "* || "${container[index]/#null/[]}" == "${image[index]/#null/[]}" ]] ||
      refuse container-start "container ${CONTAINER_ID:0:12}: expected ${names[index]} ${image[index]} of its image, \
observed ${container[index]}" "look for another compose call at the same time"
  done
  for path in "${container[@]:3}"; do
    [[ -n "${path}" ]] || continue # the end of the list
    find_mount "${path}" "${image[@]:3}"
    [[ -n "${REPLY}" ]] ||
      refuse container-mounts "container ${CONTAINER_ID:0:12}: expected no mounts but those of image and compose file, \
observed one at ${path}" "look for another compose call at the same time"
  done
}

# Leave in REPLY what container or image ID starts, and its mounts or volumes: KIND ID FORMAT.
read_start() {
  ask "${QUICK}" docker "$1" inspect --format "${STARTS_FORMAT}$3" -- "$2"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame engine-answer "$1 ${2:0:19}: expected to see what it starts, observed: ${REPLY}" "look at the engine"
  fi
}

# Leave in REPLY by which name image or compose file know a mount, "" where they do not: PATH VOLUMES. Without a target of
# its own, a secret lies below /run/secrets and a configuration below /.
find_mount() {
  local path=$1 name named=()
  shift
  mapfile -t named <<<"${SERVICE_MOUNTS[${PROD_SERVICE}]-}"
  REPLY=''
  for name in "$@" "${named[@]}"; do
    case "${name}" in
      '') ;;
      "${path}" | "${path#/run/secrets/}" | "${path#/}") REPLY=${name} ;;
      *) ;;
    esac
  done
}

promote() {
  read_promotion_variables
  find_policy
  read_facts
  prepare_host
  take_lock "${PROMOTE_WAIT}"
  recover_first
  decide
  change_production promoted "production runs ${IMAGE_ID}"
}

# From the candidate to its end, whatever let it come this far: CAUSE TEXT.
change_production() {
  record_promoted
  open_history
  open_journal "$1"
  precheck "$1"
  [[ -z "${PROD_PROXY}" ]] || rehearse
  [[ -z "${PROD_PIN}" ]] || draft_pin "${PROD_PIN}=${IMAGE_ID}"
  keep_previous "$1"
  say "production changes from here on, whether or not the caller stays" # one who is gone already ends the run here
  heed_lease
  burn_verdict
  trap '' HUP INT TERM PIPE USR1 # it finishes or rolls back; children inherit that
  PHASE='swapping'
  run_production "${IMAGE_ID}"
  [[ -z "${PROD_PIN}" ]] || commit_pin
  remove_retired
  move_tag
  conclude 'done' "$1" "$2"
}

# Where there is no pin, this is the commit point. Until here, a foreign compose call starts the former image.
move_tag() {
  step tag "tagging ${PROD_IMAGE}"
  TAGGING=1
  tag_image "${PROD_IMAGE}" "${IMAGE_ID}"
  require_undisturbed
}

# Stop unless the container that was proven is still the one of production that runs.
require_undisturbed() {
  find_production
  [[ "${FOUND[*]}" == "${CONTAINER_ID}" ]] ||
    refuse container-replaced \
      "service ${PROD_SERVICE}: expected container ${CONTAINER_ID:0:12} alone to run, observed ${FOUND[*]:-none}" \
      "another compose call interfered"
  require_alive
}

# --- Going back -------------------------------------------------------------------------------------------------------
readonly DATA_STAYS='code goes back and data does not: what the newer revision has migrated stays migrated'

# Back to the previous image: CAUSE REASON. Every refusal from here on means that production needs a person.
roll_back() {
  PHASE='rolling-back'
  FAILURE="$1:$2"
  say "rolling back: $2"
  await_engine
  [[ -n "${PREVIOUS_ID}" ]] || stop_unproven
  say "WARNING: ${DATA_STAYS}"
  [[ -z "${COMMITTED}" ]] || write_pin "${JOURNAL[pin_line]}"
  [[ -n "${PROJECT}" ]] || resolve_production
  run_production "${PREVIOUS_ID}"
  remove_retired
  [[ -z "${TAGGING}" || -z "${PREVIOUS_TAG_ID}" ]] || tag_image "${PROD_IMAGE}" "${PREVIOUS_TAG_ID}"
  conclude rolled-back "$1" "$2; production runs the previous image ${PREVIOUS_ID} again; ${DATA_STAYS}"
}

# There was no production before: an image that did not prove itself must not stay up.
stop_unproven() {
  [[ -z "${COMMITTED}" ]] || write_pin "${JOURNAL[pin_line]}"
  stop_production
  refuse no-previous 'there is no previous image' 'what did not prove itself was stopped'
}

stop_production() {
  local id
  [[ -n "${PROJECT}" ]] || resolve_production
  find_containers "${PROD_SERVICE}"
  for id in "${FOUND[@]}"; do
    stop_container "${id}"
  done
}

# ID
stop_container() {
  change "${RECREATE}" docker container stop "$1"
  [[ "${STATUS}" != 0 ]] || return 0
  error_line
  blame stop-failed "container ${1:0:12}: expected the engine to stop it, observed: ${REPLY}" "look at the engine"
}

# Leave in REPLY what a person can do where the hook could not.
tell_by_hand() {
  local command="docker compose${PROD_PROFILE:+ --profile ${PROD_PROFILE}} up -d --no-deps --no-build ${PROD_SERVICE}"
  REPLY="production needs a person: see why with docker compose ps --all and docker compose logs ${PROD_SERVICE} \
in ${COMPOSE_DIR}, call --recover again"
  [[ -z "${PREVIOUS_ID}" ]] ||
    REPLY+=", or start the previous image there: ${PROD_PIN:+"${PROD_PIN}=${PREVIOUS_ID} "}${command}"
  [[ -z "${PREVIOUS_ID}" || -z "${PROD_PROXY}" ]] ||
    REPLY+=", write server ITS-CONTAINER:${PROD_PROXY_PORT}; to ${STATE}/proxy/${PROD_SERVICE}.conf and restart ${PROD_PROXY}"
}

# An engine that restarts in the middle of a swap, or that a host has just booted, gets half a minute.
await_engine() {
  local try
  for try in {1..30}; do
    run_child 5 docker info --format '{{.ID}}' >"${WORK}/out" 2>"${WORK}/err"
    [[ "${STATUS}" != 0 ]] || return 0
    say "the engine does not answer (${try} of 30)"
    pause 1
  done
}

# --rollback: production from an image that it ran before, by the rules of any other change. A freeze does not hold it up.
restore() {
  read_rollback_variables
  find_policy
  prepare_host
  take_lock "${PROMOTE_WAIT}"
  recover_first
  step verify "looking for ${SOURCE_IMAGE:-the previous image}"
  resolve_compose
  find_production
  choose_previous
  check_production
  [[ -z "${PROD_PIN}" ]] || read_pin_file "${PROD_PIN}=${IMAGE_ID}"
  read_previous
  say "WARNING: ${DATA_STAYS}"
  change_production restored "production runs ${IMAGE_ID} again; ${DATA_STAYS}"
}

read_rollback_variables() {
  local name
  may_have SOURCE_IMAGE "${IMAGE_ID_PATTERN}" 'the ID of an image that is kept, or nothing'
  for name in EXPECTED_REVISION EXPECTED_IMAGE_ID VERDICT; do
    [[ -z "${!name+set}" ]] || misuse variable-unused "${name}: expected none, since it was proven before, observed one" \
      "leave it out"
  done
  read_health_variables
  read_production_variables
}

# --- Recovering -------------------------------------------------------------------------------------------------------

# --recover: nothing to do is the usual case, and takes no lock. A step that a dead run has left behind keeps the lock.
recover() {
  end_without_journal
  require_tools
  take_lock "${PROMOTE_WAIT}"
  end_without_journal
  prepare_folder
  await_engine
  require_engine
  recover_production
}

end_without_journal() {
  [[ ! -d "${STATE}" || -x "${STATE}" ]] || cannot_read_state
  # shellcheck disable=SC2310 # a question that does not rely on errexit
  is_journal_open || conclude 'done' nothing-open 'no change of production was interrupted'
}

# Before another change of production: in a process of its own, since its production need not be the caller's.
recover_first() {
  local status=0
  # shellcheck disable=SC2310 # a question that does not rely on errexit
  is_journal_open || return 0
  say 'a change of production was interrupted: recovering it first'
  recover_in_child &
  CHILD=$!
  wait "${CHILD}" || status=$?
  CHILD=''
  [[ "${status}" == 0 || "${status}" == 3 ]] ||
    refuse promotion-open "${JOURNAL_FILE}: expected --recover to end well, observed status ${status}" \
      "read what it said above"
}

recover_in_child() {
  MODE=--recover STEP='' STEP_TIMES='' HOLDER='' WATCHER='' WORK="${WORK}/recover"
  unset -v LEASE
  mkdir -- "${WORK}"
  set_traps
  exec 3>/dev/null
  recover_production
}

# Take over the change that the journal tells of. Past its commit point it is finished, before that it is undone.
recover_production() {
  step recover "reading ${JOURNAL_FILE}"
  [[ -O "${JOURNAL_FILE}" ]] || distrust_journal 'the file of another user'
  read_journal
  take_journal
  trap '' HUP INT TERM PIPE USR1
  PHASE='rolling-back'
  FAILURE="interrupted:run ${JOURNAL[run]} was interrupted"
  JOURNALED=1
  say "run ${JOURNAL[run]} was interrupted while ${PROD_SERVICE} went from ${PREVIOUS_ID:-nothing} to ${IMAGE_ID}"
  PIN_FILE=$(readlink -m -- "${COMPOSE_DIR}/.env")
  rm -f -- "${PIN_FILE}.imagefresh-${JOURNAL[run]}" 2>/dev/null || :
  resolve_compose
  remove_precheck
  read_image "${PROD_IMAGE}"
  if [[ "${SEEN_ID}" == "${IMAGE_ID}" || (-n "${PROD_PIN}" && "${SERVICE_IMAGE[${PROD_SERVICE}]-}" == "${IMAGE_ID}") ]]; then
    finish
  else
    undo
  fi
}

take_journal() {
  REPO=${JOURNAL[repo]} PROD_SERVICE=${JOURNAL[service]} PROD_IMAGE=${JOURNAL[image]} PROD_PORT=${JOURNAL[port]}
  PROD_PROFILE=${JOURNAL[profile]} PROD_PIN=${JOURNAL[pin]} HEALTH_PATH=${JOURNAL[health_path]}
  HEALTH_TIMEOUT=${JOURNAL[health_timeout]} SETTLE=${JOURNAL[settle]}
  IMAGE_ID=${JOURNAL[new]} REVISION=${JOURNAL[revision]}
  PREVIOUS_ID=${JOURNAL[old]} PREVIOUS_TAG_ID=${JOURNAL[old_tag]}
  PROD_PROXY=${JOURNAL[proxy]} PROD_PROXY_PORT=${JOURNAL[proxy_port]} PROD_DRAIN=${JOURNAL[drain]}
}

# Prove that production runs an image; where its one container does not, or was restarted, recreate it: ID.
ensure_production() {
  if [[ -n "${PROD_PROXY}" ]]; then
    serve_behind_proxy "$1"
    return
  fi
  find_containers "${PROD_SERVICE}"
  declare -gA SEEN=()
  [[ "${#FOUND[@]}" != 1 ]] || read_container "${FOUND[0]}"
  case "${SEEN[image]-}/${SEEN[status]-}/${SEEN[restarts]-}" in
    "$1/running/0") prove_production "$1" ;;
    *) run_production "$1" ;;
  esac
}

# Past the commit point: any compose call would start the new image.
finish() {
  say 'it was past its commit point: finishing it'
  PHASE='swapping' COMMITTED=${PROD_PIN:+1} TAGGING=1
  ensure_production "${IMAGE_ID}"
  remove_retired
  move_tag
  conclude 'done' "${JOURNAL[cause]}" "production runs ${IMAGE_ID}: run ${JOURNAL[run]} was interrupted, and is finished now"
}

# Before it: any compose call would start the old one.
undo() {
  local text="run ${JOURNAL[run]} was interrupted, and is undone now"
  say 'it was before its commit point: undoing it'
  if [[ -z "${PREVIOUS_ID}" ]]; then
    stop_production
    IMAGE_ID=''
    conclude 'done' undone "production does not run, as before: ${text}"
  fi
  ensure_production "${PREVIOUS_ID}"
  remove_retired
  IMAGE_ID=${PREVIOUS_ID}
  conclude 'done' undone "production runs ${PREVIOUS_ID}, as before: ${text}"
}

# --- Freezing --------------------------------------------------------------------------------------------------------

# A file in the state folder: since when, who, why. While it is there nothing is promoted from this compose folder.

# Leave in FROZEN since when production is frozen, by whom and why, with a blank between; "" where it is not.
# Whatever lies there freezes, whether or not it can be read.
read_frozen() {
  local line=''
  FROZEN=''
  [[ ! -d "${STATE}" || -x "${STATE}" ]] ||
    cannot_tell state-unsafe "${STATE}: expected to see whether production is frozen, observed a folder of another user" \
      "run the hook as its owner"
  [[ -e "${FROZEN_FILE}" || -L "${FROZEN_FILE}" ]] || return 0
  [[ ! -f "${FROZEN_FILE}" ]] || IFS= read -r line <"${FROZEN_FILE}" || :
  [[ "${line}" == *' '*' '* ]] || line='unknown unknown it does not say why'
  keep_utf8 "${line:0:1000}"
  FROZEN=${REPLY}
}

# Leave in REPLY what people are told of FROZEN.
frozen_words() {
  local words=${FROZEN#* }
  REPLY="since ${FROZEN%% *} by ${words%% *}: ${words#* }"
}

# Leave the text of REASON in REASON_TEXT: one line, secrets masked.
read_reason() {
  need REASON '[A-Za-z0-9+/]+=*' 'base64 of a text, a NUL byte after it'
  decode_items REASON 'base64 of a text, a NUL byte after it'
  one_line "${ITEMS[0]}"
  keep_utf8 "${REPLY}"
  REASON_TEXT=${REPLY}
  [[ "${#ITEMS[@]}" == 1 && "${REASON_TEXT}" == *[![:space:]]* ]] || malformed REASON 'one text that is not empty'
}

# In force at once, for every decision from now on; done when nothing that decided before can be under way any more.
freeze() {
  local before
  read_reason
  require_tools
  identify
  open_state
  read_frozen
  before=${FROZEN}
  write_frozen
  say 'frozen from now on; waiting for whoever may have decided before'
  take_lock "${PROMOTE_WAIT}"
  write_frozen # one that was ending an older freeze may have taken it along
  FROZEN=${before}
  frozen_words
  conclude 'done' frozen "production is frozen: ${REASON_TEXT}${before:+; it was already, ${REPLY}}"
}

# Freeze unless production is frozen already.
write_frozen() {
  local draft="${FROZEN_FILE}.${RUN_ID}" since
  read_frozen
  [[ -z "${FROZEN}" ]] || return 0
  since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
  { printf '%s %s %s\n' "${since}" "${WHO// /_}" "${REASON_TEXT}" >"${draft}" && mv -f -- "${draft}" "${FROZEN_FILE}" &&
    sync -- "${STATE}"; } 2>/dev/null ||
    refuse state-unsafe "${FROZEN_FILE}: expected to write it, observed no success" "look for free space and its mode"
}

unfreeze() {
  require_tools
  take_lock "${PROMOTE_WAIT}"
  read_frozen
  [[ -n "${FROZEN}" ]] || conclude 'done' unfrozen 'production was not frozen'
  rm -f -- "${FROZEN_FILE}" 2>/dev/null ||
    refuse state-unsafe "${FROZEN_FILE}: expected to remove it, observed no success" "remove it by hand"
  frozen_words
  conclude 'done' unfrozen "production may be promoted again; it was frozen ${REPLY}"
}

# --- Breaking the glass ----------------------------------------------------------------------------------------------

# Promote an image that nothing has proven, because somebody takes the blame. Everything that is no proof still holds: the
# one production of the policy, the lock, a previous image, health, the rollback. A freeze holds up regular promotions only.
break_glass() {
  read_break_glass
  find_policy
  [[ "${POLICY[BREAK_GLASS]-no}" == yes ]] ||
    refuse break-glass-forbidden \
      "production ${PROD_SERVICE}: expected BREAK_GLASS=yes in a policy of this host, observed ${POLICY[BREAK_GLASS]:-none}" \
      "promote what a gate has proven"
  say "WARNING: BREAK-GLASS: ${SOURCE_IMAGE} goes into production past every proof: ${REASON_TEXT}"
  prepare_host
  take_lock "${PROMOTE_WAIT}"
  recover_first
  step verify "looking for ${SOURCE_IMAGE}"
  take_unproven
  check_production
  refuse_other_origins
  [[ -z "${PROD_PIN}" ]] || read_pin_file "${PROD_PIN}=${IMAGE_ID}"
  read_previous
  change_production broke-glass "production runs ${IMAGE_ID}, WHICH NOTHING HAS PROVEN"
}

read_break_glass() {
  local name
  need SOURCE_IMAGE "${IMAGE_ID_PATTERN}" 'a full image ID'
  read_promotion_variables
  for name in EXPECTED_REVISION EXPECTED_IMAGE_ID VERDICT; do
    [[ -z "${!name+set}" ]] || misuse variable-unused "${name}: expected none, since nothing is proven, observed one" \
      "leave it out, or promote regularly"
  done
  read_reason
}

# Take the image by its ID. What its label says is told, and proves nothing.
take_unproven() {
  read_image "${SOURCE_IMAGE}"
  [[ "${SEEN_ID}" == "${SOURCE_IMAGE}" ]] ||
    refuse image-missing "SOURCE_IMAGE: expected an image on this host, observed ${SEEN_ID:-none} at ${SOURCE_IMAGE}" \
      "load or pull it first"
  IMAGE_ID=${SEEN_ID}
  [[ ! "${SEEN_REVISION}" =~ ^\"(${HEX40})\"$ ]] || REVISION=${BASH_REMATCH[1]}
}

# --- Looking back ----------------------------------------------------------------------------------------------------

# Tell the last entries of the history, the newest last. What is no entry is counted, and told to people alone.
tell_history() {
  local lines=() line odd=0 count=0
  : "${HISTORY_LIMIT=100}"
  need HISTORY_LIMIT '[1-9][0-9]{0,2}|1000' 'a number from 1 to 1000'
  find_history
  [[ "${#FOUND[@]}" == 0 ]] || REPLY=$(cat -- "${FOUND[@]}" | tail -n "${HISTORY_LIMIT}") || cannot_read_history
  [[ -z "${REPLY}" ]] || mapfile -t lines <<<"${REPLY}"
  for line in "${lines[@]}"; do
    if [[ "${line}" =~ ${ENTRY_PATTERN} ]]; then
      ENTRIES+=${ENTRIES:+,}${line}
      count=$((count + 1))
    elif [[ -n "${line}" ]]; then
      odd=$((odd + 1))
    fi
  done
  [[ "${odd}" == 0 ]] || say "warning: ${odd} lines of ${STATE}/history are no entries"
  conclude 'done' history "the last ${count} decisions in ${COMPOSE_DIR}"
}

# Leave in FOUND the file that was rotated away last and the present one, as far as they are there; REPLY is empty.
find_history() {
  local file
  FOUND=() REPLY=''
  [[ ! -d "${STATE}" || -x "${STATE}" ]] || cannot_read_history
  for file in "${STATE}/history.1" "${STATE}/history"; do
    [[ ! -e "${file}" || -r "${file}" ]] || cannot_read_history
    [[ ! -f "${file}" ]] || FOUND+=("${file}")
  done
}

cannot_read_history() {
  cannot_tell state-unsafe "${STATE}/history: expected to read it, observed no success" "run the hook as its owner"
}

# Leave in REPLY the newest entry by which PROD_SERVICE was to run an image, "" where there is none: CAUSES IMAGE_ID,
# the ID a pattern. Quotes inside a text are escaped, so that no reason can look like these keys.
find_entry() {
  local pattern="^\\{\"time\":\"[0-9TZ:-]+\",\"mode\":\"--[a-z-]+\",\"kind\":\"done\",\"cause\":\"($1)\","
  pattern+=".*,\"service\":\"${PROD_SERVICE//./\\.}\",\"revision\":\"[0-9a-f]*\",\"image_id\":\"$2\","
  find_history
  [[ "${#FOUND[@]}" != 0 ]] || return 0
  REPLY=$(grep -ahE "${pattern}" -- "${FOUND[@]}" | tail -n 1) || REPLY=''
  [[ "${REPLY}" =~ ${ENTRY_PATTERN} ]] || REPLY=''
}

# Tell what runs, whether it is what was promoted last, and whether production is frozen.
tell_status() {
  local runs
  read_status_variables
  prepare_host
  step status 'looking at production and staging'
  resolve_compose
  describe_service "${PROD_SERVICE}"
  SITUATION="\"production\":[${REPLY}]"
  runs=${RUNNING}
  describe_service "${PROD_PROXY}"
  SITUATION+=",\"proxy\":[${REPLY}]"
  describe_service "${TARGET_SERVICE}"
  SITUATION+=",\"staging\":[${REPLY}]"
  describe_tags
  describe_kept
  describe_proof "${runs}"
  describe_freeze
  describe_journal
  conclude 'done' status "${REPLY}"
}

read_status_variables() {
  read_production_variables
  : "${TARGET_IMAGE=}"
  [[ -z "${TARGET_IMAGE}" ]] || need_reference TARGET_IMAGE
  may_have TARGET_SERVICE "${NAME_PATTERN}" 'the name of a compose service, or nothing'
}

# Append a pair to SITUATION: KEY TEXT.
situate() {
  json_pair "$1" "$2"
  SITUATION+=",${REPLY}"
}

# Leave in REPLY what every container of a service is, and in RUNNING the image IDs of those that run; nothing where there
# is no such service: SERVICE.
describe_service() {
  local id list='' ids=()
  REPLY='' RUNNING=''
  [[ -n "$1" ]] || return 0
  find_containers "$1"
  ids=("${FOUND[@]}")
  for id in "${ids[@]}"; do
    read_container "${id}"
    [[ -n "${SEEN[image]-}" ]] || continue # gone since
    [[ "${SEEN[status]}" != running ]] || RUNNING+="${RUNNING:+ }${SEEN[image]}"
    describe_container "$1"
    list+=${list:+,}${REPLY}
  done
  REPLY=${list}
}

# SERVICE. Its revision is the one of the image, never what the container itself says.
describe_container() {
  local line='' pair revision=''
  read_image "${SEEN[image]}"
  [[ ! "${SEEN_REVISION}" =~ ^\"(${HEX40})\"$ ]] || revision=${BASH_REMATCH[1]}
  for pair in "service=$1" "container_id=${SEEN[id]}" "name=${SEEN[name]#/}" "image_id=${SEEN[image]}" \
    "state=${SEEN[status]}" "health=${SEEN[health]}" "since=${SEEN[started]}" "revision=${revision}"; do
    json_pair "${pair%%=*}" "${pair#*=}"
    line+=",${REPLY}"
  done
  REPLY="{${line#,}}"
}

# What the names of production and staging point to now.
describe_tags() {
  local repository=${PROD_IMAGE} pair
  [[ "${repository##*/}" != *:* ]] || repository=${repository%:*}
  for pair in "prod_tag=${PROD_IMAGE}" "previous_tag=${repository}:imagefresh-previous" "staging_tag=${TARGET_IMAGE}"; do
    SEEN_ID=''
    [[ -z "${pair#*=}" ]] || read_image "${pair#*=}"
    situate "${pair%%=*}" "${SEEN_ID}"
  done
}

# The images that --rollback may go back to, the newest first.
describe_kept() {
  local entry since left id list=''
  list_preserved
  for entry in "${PRESERVED[@]}"; do
    IFS='|' read -r since left _ id <<<"${entry}"
    json_pair image_id "${id}"
    list+="${list:+,}{${REPLY}"
    json_pair since "${since}"
    list+=",${REPLY}"
    json_pair left_by "${left}"
    list+=",${REPLY}}"
  done
  SITUATION+=",\"kept\":[${list}]"
}

# Is what production runs what was promoted last, or what it went back to, and was that proven? RUNNING IMAGES
describe_proof() {
  local promoted='' proof='' verified=false words break_glass=''
  find_entry 'promoted|broke-glass|restored|undone' "(${IMAGE_ID_PATTERN})?"
  LAST_PROMOTION=${REPLY}
  [[ ! "${LAST_PROMOTION}" =~ ,\"image_id\":\"(${IMAGE_ID_PATTERN})\", ]] || promoted=${BASH_REMATCH[1]}
  [[ -z "${promoted}" ]] || find_entry 'promoted|broke-glass' "${promoted}"
  [[ -z "${promoted}" || ! "${REPLY}" =~ \"cause\":\"([a-z-]+)\" ]] || proof=${BASH_REMATCH[1]}
  if [[ -z "$1" ]]; then
    words='production does not run'
  elif [[ -z "${promoted}" ]]; then
    words="production runs $1, and the history knows of no promotion of ${PROD_SERVICE}"
  elif [[ "$1" != "${promoted}" ]]; then
    words="production runs $1, but ${promoted} was promoted last"
  elif [[ "${proof}" != promoted ]]; then
    words="production runs ${promoted}, which nothing has proven"
  else
    verified=true words="production runs ${promoted}, as promoted"
  fi
  if [[ "${proof}" == broke-glass ]]; then
    break_glass='production was promoted by break-glass, past every proof; the next regular promotion ends that'
    say "WARNING: ${break_glass}"
  fi
  SITUATION+=",\"verified\":${verified}"
  situate proof "${words}"
  situate break_glass "${break_glass}"
  SITUATION+=",\"promoted\":${LAST_PROMOTION:-null}"
  REPLY=${words}${break_glass:+; ${break_glass}}
}

# Append whether production is frozen; adds that to the text in REPLY, too.
describe_freeze() {
  local words=${REPLY} rest
  read_frozen
  if [[ -z "${FROZEN}" ]]; then
    SITUATION+=',"frozen":null'
    REPLY=${words}
    return 0
  fi
  rest=${FROZEN#* }
  json_pair since "${FROZEN%% *}"
  SITUATION+=",\"frozen\":{${REPLY}"
  situate who "${rest%% *}"
  situate reason "${rest#* }"
  SITUATION+='}'
  frozen_words
  REPLY="${words}; frozen ${REPLY}"
}

# Append the change of production that is under way, or that was interrupted; adds that to the text in REPLY, too.
describe_journal() {
  local words=${REPLY}
  SITUATION+=',"open":'
  # shellcheck disable=SC2310 # a question that does not rely on errexit
  if ! is_journal_open; then
    SITUATION+='null'
    return 0
  fi
  read_journal
  json_pair run_id "${JOURNAL[run]}"
  SITUATION+="{${REPLY}"
  situate since "${JOURNAL[since]}"
  situate service "${JOURNAL[service]}"
  situate from "${JOURNAL[old]}"
  situate to "${JOURNAL[new]}"
  SITUATION+='}'
  REPLY="${words}; since ${JOURNAL[since]} run ${JOURNAL[run]} is changing ${JOURNAL[service]}, or was interrupted"
}

# --- Observing: for keys that may not reach the engine ---------------------------------------------------------------
# Everything is the engine's own answer, as it came, so that the caller's own parser reads it. Nothing is changed but the
# moment of the pause proof; what lies in an image is read out of a container that never runs.

observe() {
  local word words=()
  read_observation_variables
  refuse_production_names
  BUILD_CONTEXT=- # nothing is built
  refuse_claimed_staging
  prepare_host
  [[ -z "${LEASE+set}" ]] || require_lease
  IFS=, read -ra words <<<"${OBSERVE}"
  for word in "${words[@]}"; do
    step "${word}" "observing: ${word}"
    case "${word}" in
      engine) observe_engine ;;
      image) observe_image image "${OBSERVE_IMAGE:-${TARGET_IMAGE}}" ;;
      container) observe_containers ;;
      production) observe_production ;;
      owners) observe_owners ;;
      changes) observe_changes ;;
      places) observe_places ;;
      archive) observe_archive ;;
      answer) observe_answer ;;
      silence) observe_silence ;;
      *) observe_log ;;
    esac
  done
  conclude 'done' observed "observed ${OBSERVE}"
}

read_observation_variables() {
  local path
  read_health_variables
  need OBSERVE "${OBSERVE_WORD}(,${OBSERVE_WORD}){0,10}" 'words such as engine,image,container'
  need_reference TARGET_IMAGE
  need_service TARGET_SERVICE
  need_port TARGET_PORT
  need COMPOSE_PROFILE "${NAME_PATTERN}" 'the compose profile of staging'
  need STAGING_CONTAINER "${NAME_PATTERN}" 'the name of a container'
  need_reference PROD_IMAGE
  need_service PROD_SERVICE
  need_port PROD_PORT
  may_have OBSERVE_IMAGE "${IMAGE_ID_PATTERN}" 'a full image ID, or nothing'
  ITEMS=()
  if [[ ",${OBSERVE}," == *,places,* || ",${OBSERVE}," == *,archive,* ]]; then
    need OBSERVE_PATHS '[A-Za-z0-9+/]+=*' 'base64 of absolute paths, a NUL byte after each'
    decode_items OBSERVE_PATHS 'base64 of absolute paths, a NUL byte after each'
    for path in "${ITEMS[@]}"; do
      [[ "${path}" == /* ]] || malformed OBSERVE_PATHS 'base64 of absolute paths, a NUL byte after each'
    done
  fi
}

# Keep a file as an observation: NAME.
keep_observed() {
  OBSERVED+=("$1")
}

# Ask the engine itself: SECONDS NAME PATH OPTIONS. Leaves its HTTP status in REPLY, its answer in the file of NAME.
ask_engine() {
  local limit=$1 file="${WORK}/observed.$2" path=$3
  shift 3
  ask "${limit}" curl -q --silent --show-error --noproxy '*' --unix-socket "${ENGINE#unix://}" --output "${file}" \
    --write-out '%{http_code}' "$@" "http://engine${path}"
  [[ "${STATUS}" == 0 && "${REPLY}" =~ ^[1-5][0-9][0-9]$ ]] && return 0
  error_line
  cannot_tell engine-answer "${path}: expected an answer from the engine, observed: ${REPLY}" 'look at it and try again'
}

# The engine said no: NAME SUBJECT.
require_answer() {
  local text
  [[ "${REPLY}" != 200 ]] || return 0
  text=$(head -c 1000 <"${WORK}/observed.$1")
  one_line "HTTP ${REPLY}: ${text}"
  cannot_tell engine-answer "$2: expected an answer from the engine, observed: ${REPLY}" 'look at it and try again'
}

# The engine's JSON of one thing, or null where it says itself that there is none: NAME SUBJECT.
keep_or_null() {
  if [[ "${REPLY}" == 404 ]] && grep -qi '"no such \(image\|container\)' "${WORK}/observed.$1"; then
    printf null >"${WORK}/observed.$1"
  else
    require_answer "$1" "$2"
  fi
}

observe_engine() {
  ask "${QUICK}" docker info --format '{"ID":{{json .ID}},"SystemTime":{{json .SystemTime}}}'
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    cannot_tell engine-down "the engine at ${ENGINE}: expected an answer, observed: ${REPLY}" "start it and try again"
  fi
  printf '%s' "${REPLY}" >"${WORK}/observed.engine"
  keep_observed engine
}

# NAME REFERENCE
observe_image() {
  ask_engine "${QUICK}" "$1" "/images/$2/json"
  keep_or_null "$1" "image $2"
  keep_observed "$1"
}

# Leave in FOUND the containers of the staging service, once it is known to be nothing of production.
find_staging() {
  [[ -z "${STAGED}" ]] || return 0
  refuse_promoted
  resolve_compose
  refuse_production_services
  find_containers "${TARGET_SERVICE}"
  STAGED=1
}

observe_containers() {
  local id comma='['
  find_staging
  : >"${WORK}/observed.container"
  for id in "${FOUND[@]}"; do
    ask_engine "${QUICK}" one "/containers/${id}/json"
    keep_or_null one "container ${id}"
    printf '%s' "${comma}" >>"${WORK}/observed.container"
    cat -- "${WORK}/observed.one" >>"${WORK}/observed.container"
    comma=,
  done
  [[ "${comma}" == , ]] || printf '[' >>"${WORK}/observed.container"
  printf ']' >>"${WORK}/observed.container"
  keep_observed container
}

# Leave the one container of staging in CONTAINER_ID and the SEEN table.
find_staging_container() {
  find_staging
  [[ "${#FOUND[@]}" == 1 ]] ||
    refuse container-count "service ${TARGET_SERVICE}: expected exactly 1 container, observed ${#FOUND[@]}" \
      "the hook handles services without replicas"
  CONTAINER_ID=${FOUND[0]}
  read_container "${CONTAINER_ID}"
  [[ -n "${SEEN[id]-}" ]] ||
    refuse container-count "service ${TARGET_SERVICE}: expected a container, observed that it is gone" "try again"
  STARTED_AT=${SEEN[started]}
}

# Whatever could be production: all of its service or on its port, and all that do not run, whose ports the list does not
# tell. The caller looks closer.
observe_production() {
  local line file="${WORK}/observed.production"
  local -A seen=()
  list_containers --filter "label=com.docker.compose.service=${PROD_SERVICE}"
  for line in "${FOUND[@]}"; do seen[${line}]=1; done
  list_containers --filter "publish=${PROD_PORT}"
  for line in "${FOUND[@]}"; do seen[${line}]=1; done
  list_containers --filter status=created --filter status=restarting --filter status=removing \
    --filter status=paused --filter status=exited --filter status=dead
  for line in "${FOUND[@]}"; do seen[${line}]=1; done
  FOUND=() STAGED=''
  printf '[' >"${file}"
  if [[ "${#seen[@]}" != 0 ]]; then
    ask "${QUICK}" docker container inspect --format "${PRODUCTION_FORMAT}" -- "${!seen[@]}"
    [[ "${STATUS}" == 0 ]] || require_absent 'the containers of production' # some may be gone by now
    printf '%s' "${REPLY%,}" >>"${file}"
  fi
  printf ']' >>"${file}"
  keep_observed production
  observe_image production_image "${PROD_IMAGE}"
}

# Leave in FOUND the IDs of containers in any state: FILTERS.
list_containers() {
  ask "${QUICK}" docker container ls --all --quiet --no-trunc "$@"
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame container-list "the containers of this host: expected a list, observed: ${REPLY}" "look at the engine"
  fi
  FOUND=()
  [[ -z "${REPLY}" ]] || mapfile -t FOUND <<<"${REPLY}"
}

observe_owners() {
  ask_engine "${QUICK}" owners /containers/json --get \
    --data-urlencode "filters={\"publish\":[\"${TARGET_PORT}/tcp\"]}"
  require_answer owners "the owners of port ${TARGET_PORT}"
  keep_observed owners
}

observe_changes() {
  find_staging_container
  ask_engine "${CONTENT}" changes "/containers/${CONTAINER_ID}/changes"
  require_answer changes "the changed files of container ${CONTAINER_ID:0:12}"
  keep_observed changes
}

observe_log() {
  find_staging_container
  ask "${QUICK}" docker container logs --tail "${LOG_LINES}" "${CONTAINER_ID}"
  cat -- "${WORK}/out" "${WORK}/err" | tail -c "${OUTPUT_LIMIT}" >"${WORK}/observed.log"
  keep_observed log
}

observe_answer() {
  local url
  find_staging_container
  find_address "${TARGET_PORT}"
  probe
  json_pair url "http://${ADDRESS}${HEALTH_PATH}"
  url=${REPLY}
  json_pair answer "${ANSWER}"
  printf '{%s,%s}' "${url}" "${REPLY}" >"${WORK}/observed.answer"
  keep_observed answer
}

# Leave in REPLY the container to read: staging's own, or one that is made of OBSERVE_IMAGE, never started, and removed.
find_box() {
  REPLY=${BOX}
  [[ -z "${BOX}" ]] || return 0
  if [[ -z "${OBSERVE_IMAGE}" ]]; then
    find_staging_container
    REPLY=${CONTAINER_ID}
    return 0
  fi
  require_staged "${OBSERVE_IMAGE}"
  BOX="imagefresh-content-${WORK##*.}"
  change "${QUICK}" docker container create --name "${BOX}" --label "imagefresh.content=${RUN_ID}" --network none \
    "${OBSERVE_IMAGE}" never-started
  if [[ "${STATUS}" != 0 ]]; then
    error_line
    blame image-missing "image ${OBSERVE_IMAGE}: expected a container to read it, observed: ${REPLY}" "build it again"
  fi
  REPLY=${BOX}
}

# Of no other image are files told than of the one that staging runs, or that its service names: IMAGE_ID
require_staged() {
  local id
  find_staging
  read_image "${SERVICE_IMAGE[${TARGET_SERVICE}]}"
  [[ "${SEEN_ID}" != "$1" ]] || return 0
  for id in "${FOUND[@]}"; do
    read_container "${id}"
    [[ "${SEEN[image]-}" != "$1" ]] || return 0
  done
  refuse image-not-staged \
    "OBSERVE_IMAGE: expected the image that service ${TARGET_SERVICE} runs or names, observed $1" 'stage it first'
}

# What the engine says of each path: its own description in base64, or nothing where there is nothing.
observe_places() {
  local box path comma='' pattern=$'\r?\n[Xx]-[Dd]ocker-[Cc]ontainer-[Pp]ath-[Ss]tat: ([A-Za-z0-9+/=]+)\r?\n'
  find_box
  box=${REPLY}
  printf '[' >"${WORK}/observed.places"
  for path in "${ITEMS[@]}"; do
    ask_engine "${QUICK}" head "/containers/${box}/archive" --head --get --data-urlencode "path=${path}"
    [[ "${REPLY}" == 404 ]] || require_answer head "the path ${path@Q}"
    path=''
    if [[ "${REPLY}" == 200 ]]; then
      path=$(<"${WORK}/observed.head")
      [[ "${path}"$'\n' =~ ${pattern} ]] ||
        cannot_tell engine-answer 'a path in a container: expected its description, observed none' 'look at the engine'
      path=${BASH_REMATCH[1]}
    fi
    printf '%s"%s"' "${comma}" "${path}" >>"${WORK}/observed.places"
    comma=,
  done
  printf ']' >>"${WORK}/observed.places"
  keep_observed places
}

observe_archive() {
  [[ "${#ITEMS[@]}" == 1 && -n "${OBSERVE_IMAGE}" ]] ||
    misuse variable-malformed "OBSERVE_PATHS: expected one path and OBSERVE_IMAGE for an archive, observed others" \
      "ask for one at a time"
  find_box
  ask_engine "${CONTENT}" archive "/containers/${REPLY}/archive" --get --data-urlencode "path=${ITEMS[0]}"
  require_answer archive "the files of ${ITEMS[0]@Q}"
  keep_observed archive
}

# --- Observing: the pause proof --------------------------------------------------------------------------------------

# While staging is paused for a moment, does anybody answer on its port?
observe_silence() {
  local started usual seconds state elapsed heard address
  find_staging_container
  refuse_to_pause
  find_listeners
  find_own_addresses
  find_addresses
  ask_addresses usual 2 "${PATIENCE}"
  slowest_answer
  usual=${REPLY}
  seconds=$((3 * usual < LEAST_SILENCE ? LEAST_SILENCE : 3 * usual))
  now
  started=${NOW}
  arm_deadman
  now
  ((NOW - started + seconds + 200 <= DEADMAN)) ||
    cannot_tell port-slow "port ${TARGET_PORT}: expected a fast answer, observed ${usual} ms" "choose a faster health path"
  PAUSED=1
  change "${QUICK}" docker container pause "${CONTAINER_ID}"
  ask_addresses heard "${CONNECTIONS}" "$((seconds / 1000)).$(printf '%03d' $((seconds % 1000)))"
  read_container "${CONTAINER_ID}"
  state=${SEEN[status]-gone}
  now
  elapsed=$((NOW - started))
  end_pause
  await_answer
  heard=' '
  while read -r address _; do
    [[ "${heard}" == *"\"${address}\""* ]] || heard+="${heard:+,}\"${address}\""
  done <"${WORK}/heard"
  heard=${heard#' '}
  write_silence "${seconds}" "${usual}" "${state}" "${elapsed}" "${heard#,}"
  keep_observed silence
}

# Nothing of production is ever paused, and nothing that does not run.
refuse_to_pause() {
  [[ "${SEEN[ports]} " != *"/tcp|"*"|${PROD_PORT} "* ]] ||
    refuse port-is-prod "container ${CONTAINER_ID:0:12}: expected it not to publish ${PROD_PORT}, observed: ${SEEN[ports]%.}" \
      'correct the staging settings'
  [[ "${SEEN[status]}" == running ]] ||
    refuse unhealthy "container ${CONTAINER_ID:0:12}: expected it to run, observed ${SEEN[status]}" 'start it'
}

# Leave in LISTENERS the lines of the host's tables of sockets in which something listens on TARGET_PORT.
find_listeners() {
  local line port fields=()
  printf -v port '%04X' "${TARGET_PORT}"
  LISTENERS=''
  cat -- /proc/net/tcp >/dev/null ||
    cannot_tell no-listeners 'this host: expected a list of what listens here, observed none' 'mount /proc'
  while IFS= read -r line; do
    read -ra fields <<<"${line}"
    [[ "${fields[1]-}" != *":${port}" || "${fields[3]-}" != 0A ]] || LISTENERS+="${line}"$'\n'
  done < <(cat -- /proc/net/tcp /proc/net/tcp6 2>/dev/null || :)
}

# Leave in OWN_ADDRESSES the lines of the host's tables of routes and interfaces that say what its addresses are.
find_own_addresses() {
  OWN_ADDRESSES=$(
    sed -n -e '/|--/h' -e '/\/32 host LOCAL/{g;p' -e '}' -- /proc/net/fib_trie 2>/dev/null || :
    cat -- /proc/net/if_inet6 2>/dev/null || :
  )
}

# Leave in ADDRESSES where to ask: what the container publishes, this host itself, wherever else something listens, and
# what a wildcard among these stands for.
find_addresses() {
  local binding host fields=() line wildcards=' '
  ADDRESSES=()
  for binding in ${SEEN[ports]}; do
    [[ "${binding}" == */tcp\|*\|"${TARGET_PORT}" ]] || continue
    host=${binding#*|}
    add_address "${host%|*}"
    add_wildcard "${host%|*}"
  done
  add_address 127.0.0.1
  while IFS= read -r line; do
    [[ -n "${line}" ]] || continue
    read -ra fields <<<"${line}"
    socket_address "${fields[1]%:*}"
    add_address "${REPLY}"
    add_wildcard "${REPLY}"
    [[ "${REPLY}" != :: ]] || add_address 127.0.0.1 # may stand for every IPv4 address, too
  done <<<"${LISTENERS}"
  [[ "${wildcards}" == ' ' ]] || add_own_addresses
}

# An address that stands for all of them is remembered in the caller's `wildcards`: ADDRESS.
add_wildcard() {
  case "$1" in
    '' | 0.0.0.0 | ::) wildcards+="${1:-::} " ;;
    *) ;;
  esac
}

# What the caller's `wildcards` stand for, within bounds. An IPv6 address of one link is none without its interface.
add_own_addresses() {
  local fields=() line address taken=' ' count=0
  while IFS= read -r line; do
    [[ -n "${line}" ]] || continue
    read -ra fields <<<"${line}"
    case "${line}" in
      *'|-- '*) address=${line##* } ;;
      fe[89ab]*) continue ;;
      *)
        [[ "${wildcards}" == *' :: '* ]] || continue
        long_address "${fields[0]-}"
        address=${REPLY}
        ;;
    esac
    [[ "${taken}" != *" ${address} "* ]] || continue
    taken+="${address} " count=$((count + 1))
    ((count <= MOST_ADDRESSES)) || return 0
    add_address "${address}"
  done <<<"${OWN_ADDRESSES}"
}

# One that stands for all of them is asked at its loopback: ADDRESS.
add_address() {
  local address=$1
  case "${address}" in
    '' | 0.0.0.0) address=127.0.0.1 ;;
    ::) address=::1 ;;
    *) ;;
  esac
  [[ " ${ADDRESSES[*]-} " == *" ${address} "* ]] || ADDRESSES+=("${address}")
}

# Leave in REPLY the address of a table of sockets: HEX. The kernel prints each four bytes in the order of a small machine.
socket_address() {
  local hex='' word index
  for ((index = 0; index < ${#1}; index += 8)); do
    word=${1:index:8}
    hex+="${word:6:2}${word:4:2}${word:2:2}${word:0:2}"
  done
  [[ "${hex}" != 00000000000000000000FFFF* ]] || hex=${hex:24}
  if [[ "${#hex}" == 8 ]]; then
    printf -v REPLY '%d.%d.%d.%d' "0x${hex:0:2}" "0x${hex:2:2}" "0x${hex:4:2}" "0x${hex:6:2}"
  else
    long_address "${hex}"
  fi
}

# Leave in REPLY the IPv6 address of 32 hexadecimal digits: HEX.
long_address() {
  local hex=$1
  if [[ "${hex}" =~ ^0+$ ]]; then
    REPLY=::
  elif [[ "${hex}" =~ ^0{31}1$ ]]; then
    REPLY=::1
  else
    printf -v REPLY '%x:%x:%x:%x:%x:%x:%x:%x' "0x${hex:0:4}" "0x${hex:4:4}" "0x${hex:8:4}" "0x${hex:12:4}" \
      "0x${hex:16:4}" "0x${hex:20:4}" "0x${hex:24:4}" "0x${hex:28:4}"
  fi
}

# Ask every address at the same time, by fresh connections: FILE CONNECTIONS SECONDS. What answered is in $WORK/FILE.
ask_addresses() {
  local address pid pids=() index
  : >"${WORK}/$1"
  for address in "${ADDRESSES[@]}"; do
    for ((index = 0; index < $2; index++)); do
      env -i "${CHILD_ENV[@]}" timeout -k 1 5 bash -p -c "${KNOCK}" bash "${address}" "${TARGET_PORT}" \
        "${HEALTH_PATH}" "$3" </dev/null >>"${WORK}/$1" 2>/dev/null 3>&- 4>&- 9>&- &
      pids+=("$!")
    done
  done
  for pid in "${pids[@]}"; do
    wait "${pid}" || :
  done
}

# Leave in REPLY how long an answer usually takes, in milliseconds.
slowest_answer() {
  local address time slowest=-1
  while read -r address time; do
    ((time <= slowest)) || slowest=${time}
  done <"${WORK}/usual"
  REPLY=${slowest}
  ((slowest >= 0)) ||
    cannot_tell port-silent \
      "port ${TARGET_PORT}: expected an answer within ${PATIENCE} s before the pause proof, observed none at ${ADDRESSES[*]}" \
      'choose a faster health path'
}

# Somebody else must end the pause should this process be gone. The question shows that he can reach the container.
arm_deadman() {
  ask_engine "${QUICK}" armed "/containers/${CONTAINER_ID}/json"
  require_answer armed "container ${CONTAINER_ID:0:12}"
  env -i "${CHILD_ENV[@]}" setsid sh -c "${END_PAUSE}" imagefresh-deadman "${ENGINE#unix://}" "${CONTAINER_ID}" \
    "$((DEADMAN / 1000))" </dev/null >/dev/null 2>&1 3>&- 4>&- 5>&- 6>&- 9>&- &
  DEADMAN_PID=$!
  disown "${DEADMAN_PID}"
}

end_pause() {
  ask "${QUICK}" docker container unpause "${CONTAINER_ID}"
  read_container "${CONTAINER_ID}" # somebody else may have been faster
  [[ "${SEEN[status]-}" != paused ]] ||
    cannot_tell engine-answer "container ${CONTAINER_ID:0:12}: expected it to run again, observed that it is paused" \
      'unpause it'
  PAUSED=''
}

# Ask the container's own address until it says 200 again, or the time is over. Leaves ANSWER.
await_answer() {
  local deadline
  find_address "${TARGET_PORT}"
  milliseconds "${HEALTH_TIMEOUT}"
  now
  deadline=$((NOW + REPLY))
  probe
  while [[ "${ANSWER}" != 200 ]] && ((NOW < deadline)); do
    pause 0.05
    probe
    now
  done
}

# SECONDS USUAL STATE ELAPSED HEARD, times in milliseconds
write_silence() {
  local asked url lines own
  printf -v asked ',"%s"' "${ADDRESSES[@]}"
  json_pair url "http://${ADDRESS}${HEALTH_PATH}"
  url=${REPLY}
  lines=${LISTENERS//$'\n'/\\n}
  own=${OWN_ADDRESSES//$'\n'/\\n}
  json_pair answer "${ANSWER}"
  printf '{"addresses":[%s],"connections":%d,"seconds":%d,"usual":%d,"state":"%s","elapsed":%d,"heard":[%s]' \
    "${asked#,}" "${CONNECTIONS}" "$1" "$2" "$3" "$4" "$5" >"${WORK}/observed.silence"
  printf ',%s,%s,"listeners":"%s","host":"%s"}' "${url}" "${REPLY}" "${lines}" "${own}" \
    >>"${WORK}/observed.silence"
}

# --- Start -----------------------------------------------------------------------------------------------------------

# Standard output is kept as descriptor 3 for the one JSON line; all other text goes to standard error, kept as
# descriptor 4. Either may be closed. What the caller of --lease says is descriptor 5; locks are 7, 8 and 9.
take_streams() {
  { : >&2; } || exec 2>/dev/null
  { exec 3>&1; } 2>/dev/null || exec 3>/dev/null
  exec </dev/null >&2 4>&2
}

set_traps() {
  local signal
  trap 'on_error "${LINENO}" "${BASH_COMMAND}"' ERR
  trap on_exit EXIT
  for signal in HUP INT TERM PIPE; do
    # shellcheck disable=SC2064 # the signal's name is meant to be filled in now
    trap "interrupted ${signal}" "${signal}"
  done
}

dispatch() {
  case "${MODE}" in
    --build-staging) build_staging ;;
    --observe) observe ;;
    --verify) verify ;;
    --lease) lease ;;
    --self-test) self_test ;;
    --status) tell_status ;;
    --history) tell_history ;;
    --freeze) freeze ;;
    --unfreeze) unfreeze ;;
    --break-glass) break_glass ;;
    --promote) promote ;;
    --rollback) restore ;;
    --recover) recover ;;
    *) misuse mode-unknown "mode: expected one that does something, observed ${MODE@Q}" "report it" ;;
  esac
}

# --help and --contract need no variables, and print no JSON: MODE.
answer_at_once() {
  case "$1" in
    --help) usage ;;
    --contract) printf '%s\n' "${CONTRACT}" ;;
    *) return 0 ;;
  esac
  exit
}

# MODE
read_mode() {
  case "$1" in
    --build-staging | --observe | --verify | --promote | --rollback | --recover | --lease | --self-test) MODE=$1 ;;
    --status | --history | --freeze | --unfreeze | --break-glass) MODE=$1 ;;
    *) misuse mode-unknown "mode: expected one that --help names, observed ${1@Q}" "see --help" ;;
  esac
}

# Keep standard input only where the caller has something to say: as descriptor 5 for --lease, as 6 for a pack.
keep_input() {
  [[ "${MODE}" != --lease ]] || { exec 5<&6; } 2>/dev/null || exec 5</dev/null
  [[ "${MODE}" == --build-staging && "${BUILD_CONTEXT-}" == - ]] || exec 6<&-
}

main() {
  set +o posix # POSIXLY_CORRECT of the caller has no say
  umask 022    # the image gets the modes that any checkout has; what is private lies in folders of mode 0700
  clean_environment "${1-}"
  reset_state
  answer_at_once "${1-}"
  { exec 6<&0; } 2>/dev/null || exec 6</dev/null
  take_streams
  set_traps
  if [[ "${1-}" == --ssh ]]; then
    read_request "$@"
  else
    [[ "$#" -le 1 ]] || misuse arguments "arguments: expected one mode, observed $#" "everything else comes in variables"
    read_mode "${1---promote}"
  fi
  keep_input
  [[ "${MODE}" != --contract ]] || tell_contract
  read_common_variables
  dispatch
}

# Once standard output is kept for the JSON line.
tell_contract() {
  printf '%s\n' "${CONTRACT}" >&3
  CONCLUDED=1
  exit
}

# Sourced, for tests of single functions, it only defines them.
if [[ "${BASH_SOURCE[0]-$0}" != "$0" ]]; then
  return 0
fi
main "$@"
# shellcheck disable=SC2317 # never reached, and never to be missed: nothing appended to this file may run
exit
