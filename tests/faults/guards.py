"""The guards that make mutants takes out, one at a time: where each is, how it goes, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass

HOOK = "hooks/deploy-hook.sh"
VERDICT = "pytest_imagefresh/core/verdict.py"
ANCHOR = "pytest_imagefresh/adapters/git/anchor.py"
KNOWN_HOSTS = "pytest_imagefresh/adapters/ssh/known_hosts.py"
RUNNING = "pytest_imagefresh/core/running.py"
RUNNING_TESTS = ("tests/core/test_running.py",)
UNCHANGED = "pytest_imagefresh/core/unchanged.py"
UNCHANGED_TESTS = ("tests/core/test_unchanged.py",)
PORT = "pytest_imagefresh/core/port.py"
PORT_TESTS = ("tests/core/test_port.py",)
CONTENT_TESTS = "tests/core/test_content.py"
SSH_TESTS = ("tests/hook/test_ssh.py", "-k")
LEFT_TESTS = ("tests/hook/test_real_staging.py", "-k")
NOTIFY_TESTS = ("tests/hook/test_notify.py", "-k")


@dataclass(frozen=True)
class Guard:
    """One guard."""

    name: str
    file: str
    text: str
    """Exactly as it stands in the file, once."""
    without: str
    """What stands there without the guard."""
    tests: tuple[str, ...]
    """What pytest is given: the tests that must fail then."""


def fault(name: str, host: str = "local") -> str:
    """Return the node ID of a fault test."""
    return f"tests/faults/test_faults.py::test_fault[{name}-{host}]"


GUARDS = [
    # -- the commit and the tree
    Guard(
        "the branch is checked out in the worktree",
        ANCHOR,
        "[worktree for worktree in listed if worktree.ref == self.branch.ref]",
        "listed[-1:]",
        (fault("HEAD is on another branch"),),
    ),
    Guard(
        "the branch is where it was",
        VERDICT,
        "        now.revision,\n",
        "        first.revision,\n",
        (fault("the branch moves on while the gate runs"),),
    ),
    Guard(
        "the worktree is the clone's own",
        ANCHOR,
        "        if common != expected:\n",
        "        if not common:\n",
        ("tests/adapters/test_git.py",),
    ),
    Guard(
        "a revision is a full commit ID",
        "pytest_imagefresh/adapters/git/anchor.py",
        "        return Revision(text)\n",
        "        return Revision((text + '0' * 40)[:40].lower())\n",
        (fault("a revision that is abbreviated, upper-case, empty, a pattern, padded"),),
    ),
    Guard(
        "variables of the caller stay outside",
        "pytest_imagefresh/adapters/command.py",
        'return {"PATH": _DEFAULT_PATH, **kept,',
        'return {**os.environ, "PATH": _DEFAULT_PATH, **kept,',
        ("tests/adapters/test_command.py",),
    ),
    Guard(
        "the export is written without conversion",
        HOOK,
        "'* -text -eol !crlf -ident -filter !working-tree-encoding -export-subst' >",
        "'' >",
        (fault("smudge filter, export-ignore, eol and ident attributes in the commit"),),
    ),
    Guard(
        "the export's tree is the commit's",
        HOOK,
        '  [[ -n "${REPLY}" ]] || TREE=${LISTED_TREE}\n',
        "  REPLY='' TREE=${LISTED_TREE}\n",
        ("tests/hook/test_checkout.py",),
    ),
    Guard(
        "what was built from is hashed after the build",
        HOOK,
        '  build_image\n  if [[ -n "${MOVED}" ]]; then\n    await_oddity\n',
        '  [[ -z "${MOVED}" ]] || start_proof\n  build_image\n  start_proof() { :; }\n'
        '  if [[ -n "${MOVED}" ]]; then\n    await_oddity\n',
        ("tests/hook/test_checkout.py::test_what_is_changed_while_it_is_built_is_found",),
    ),
    Guard(
        "what git does not compare is found before staging runs it",
        HOOK,
        '    if [[ -n "${REPLY}" ]]; then\n      build_again\n',
        "    if false; then\n      build_again\n",
        ("tests/hook/test_checkout.py",),
    ),
    Guard(
        "an LFS pointer is no content",
        HOOK,
        "[[ \"${line}\" != 'version https://git-lfs.github.com/spec/v1'* ]] ||",
        "true ||",
        (fault("an LFS pointer instead of the content"),),
    ),
    Guard(
        "the commit is read through a store of the run's own",
        HOOK,
        'GIT_NO_REPLACE_OBJECTS=1 GIT_NO_LAZY_FETCH=1 GIT_OPTIONAL_LOCKS=0\n    "GIT_INDEX_FILE=${index}")\n'
        '  GIT_WORDS=(git -C "${EXPORT}" "--git-dir=${STORE}"',
        'GIT_NO_LAZY_FETCH=1 GIT_OPTIONAL_LOCKS=0\n    "GIT_INDEX_FILE=${index}")\n'
        '  GIT_WORDS=(git -C "${EXPORT}" "--git-dir=${BUILD_CONTEXT}/.git"',
        (fault("replace refs for a file and for the commit"),),
    ),
    Guard(
        "a submodule is taken at the commit that is recorded",
        HOOK,
        '    list_commit "${1:+"$1/modules/${name}"}" "${entry:14:40}" ',
        '    list_commit "${1:+"$1/modules/${name}"}" "$(git --git-dir="$1/modules/${name}" rev-parse HEAD)" ',
        (fault("the submodule is checked out at another commit than recorded"),),
    ),
    Guard(
        "a search for submodules that fails is no answer",
        HOOK,
        "  if ((status > 1)); then\n",
        "  if false; then\n",
        ("tests/hook/test_export.py",),
    ),
    # -- the build and the image
    Guard(
        "a file that changed has a time of its own",
        HOOK,
        '  git_in "${INDEX}" read-tree --reset -u "${WHOLE_TREE}"\n',
        '  git_in "${INDEX}" read-tree --reset -u "${WHOLE_TREE}"\n  find "${EXPORT}" -type f -exec touch -d @1 {} +\n',
        (fault("BuildKit knows a file of the same name, size and time"),),
    ),
    Guard(
        "a build reaches nothing of the host",
        "pytest_imagefresh/core/build.py",
        "    if value is None or (key in _REACHING",
        "    if key or (key in _REACHING",
        (fault("the branch's compose file asks for a host file as a secret"),),
    ),
    Guard(
        "links of the commit stay in its tree",
        HOOK,
        '[[ -n "${ITEMS[0]-}" && "$1/" == "${ITEMS[0]}/"* ]] ||',
        "true ||",
        (fault("a link in the commit leads the build to the host's files"),),
    ),
    Guard(
        "the hook stamps the revision itself",
        HOOK,
        ' --label "${LABEL}=${GIT_SHA}")',
        ")",
        (fault("the base image bears the label of another commit"),),
    ),
    Guard(
        "an engine without an ID of its own is refused",
        HOOK,
        "!= *' k8s-file '* ]] ||",
        "!= *' k8s-file '* ]] || true ||",
        ("tests/hook/test_builders.py",),
    ),
    Guard(
        "the built image is the one that the builder names",
        HOOK,
        '[[ -n "${SEEN_ID}" && "${SEEN_ID}" == "${built}" ]] ||',
        '[[ -n "${SEEN_ID}" ]] ||',
        ("tests/hook/test_builders.py", "-k", "did_not_name"),
    ),
    Guard(
        "the promoted image is the validated one, by ID",
        HOOK,
        "FACT[image_id]=wrong",
        "FACT[image_id]=right",
        (fault("other code, built with the expected revision as argument, takes the staging tag"),),
    ),
    Guard(
        "the same commit built again is another image",
        HOOK,
        "FACT[image_id]=wrong",
        "FACT[image_id]=right",
        (fault("the same commit is built again on a moved base"),),
    ),
    Guard(
        "an image that is gone is refused as such",
        HOOK,
        '  FACT[image]=missing\n  [[ -n "${SEEN_ID}" ]] || return 0\n',
        "",
        (fault("the image is pruned before the promotion"),),
    ),
    Guard(
        "the revision label is the expected one",
        HOOK,
        "  FACT[revision]=wrong\n",
        "  FACT[revision]=right\n",
        ("tests/hook/test_decision.py",),
    ),
    Guard(
        "an empty expectation is refused",
        HOOK,
        "  'revision-empty             revision=empty'\n",
        "  'verified                   revision=empty'\n",
        ("tests/hook/test_decision.py",),
    ),
    Guard(
        "the first line of the decision that holds decides",
        HOOK,
        "    REPLY=${parts[0]}\n    return 0\n",
        "    REPLY=${parts[0]}\n",
        ("tests/hook/test_decision_table.py",),
    ),
    Guard(
        "what the policy requires cannot be left out",
        HOOK,
        "    FACT[require_${requirement}]=yes\n",
        "    FACT[require_${requirement}]=no\n",
        ("tests/hook/test_policy.py",),
    ),
    Guard(
        "a production that no policy claims is refused",
        HOOK,
        '  [[ -n "${found}" ]] ||\n    refuse policy-unclaimed',
        '  [[ -n "${found}" ]] || return 0\n  true ||\n    refuse policy-unclaimed',
        ("tests/hook/test_policy.py",),
    ),
    Guard(
        "a policy is root's",
        HOOK,
        "require_owned policy-unsafe \"${file}\" 'regular file' 0",
        "true policy-unsafe \"${file}\" 'regular file' 0",
        ("tests/hook/test_policy.py",),
    ),
    Guard(
        "staging is nothing that a policy claims",
        HOOK,
        "  refuse_claimed_staging\n  prepare_folder\n",
        "  prepare_folder\n",
        ("tests/hook/test_policy.py",),
    ),
    Guard(
        "staging is nothing that a plain compose up starts",
        HOOK,
        "  refuse_default_service\n  build_and_try\n",
        "  build_and_try\n",
        ("tests/hook/test_never_production.py",),
    ),
    Guard(
        "no name in a request is evaluated",
        HOOK,
        '    *) misuse request-malformed "the request: expected a variable of --help',
        '    *) printf -v "$1" \'%s\' "$2" ;;\n    -) misuse request-malformed "',
        ("tests/hook/test_ssh.py",),
    ),
    Guard(
        "a key asks for its own modes only",
        HOOK,
        '  [[ " ${modes} " == *" ${MODE} "* ]] ||',
        "  true ||",
        ("tests/hook/test_ssh.py",),
    ),
    Guard(
        "a key stays with its target",
        HOOK,
        '  [[ "$2" == "$3" ]] ||\n    refuse policy-mismatch',
        "  true ||\n    refuse policy-mismatch",
        ("tests/hook/test_ssh.py",),
    ),
    Guard(
        "a frozen production is not promoted",
        HOOK,
        '[[ -z "${FROZEN}" ]] || FACT[frozen]=yes',
        "true",
        ("tests/hook/test_operations.py",),
    ),
    Guard(
        "break-glass needs a policy that says yes",
        HOOK,
        '  [[ "${POLICY[BREAK_GLASS]-no}" == yes ]] ||',
        "  true ||",
        ("tests/hook/test_operations.py",),
    ),
    Guard(
        "a verdict is kept only once the host has accepted it",
        "pytest_imagefresh/verdicts.py",
        'if not check_accepted(report, statement.image_id) or report.verdict != "accepted":',
        "if not report:",
        ("tests/plugin/test_verdicts.py",),
    ),
    Guard(
        "compose files are the host's own",
        "pytest_imagefresh/run.py",
        "(folder == worktree or worktree in folder.parents)",
        "(folder == '')",
        ("tests/plugin/test_gate.py",),
    ),
    Guard(
        "a connection that is still on its way is no silence",
        "pytest_imagefresh/adapters/pause.py",
        "before, coming = coming, under_way()",
        "before = coming",
        ("tests/adapters/test_pause.py",),
    ),
    Guard(
        "the pause proof heeds what is still on its way",
        "pytest_imagefresh/pause.py",
        "            under_way=run.run.host.under_way,\n",
        "",
        ("tests/plugin/test_gate.py",),
    ),
    Guard(
        "a process that was held up has not listened meanwhile",
        "pytest_imagefresh/adapters/pause.py",
        "listened += min(_SLICE_SECONDS, time.monotonic() - now)",
        "listened += time.monotonic() - now",
        ("tests/adapters/test_pause.py",),
    ),
    Guard(
        "a connection for which this machine has no room is no silence",
        "pytest_imagefresh/adapters/ssh/session.py",
        "if forward.lost:",
        "if False:",
        ("tests/adapters/test_ssh.py", "-k", "is_no_silence"),
    ),
    Guard(
        "a way that is forbidden is no silence",
        "pytest_imagefresh/pause.py",
        "    run.run.host.require_reached()\n",
        "",
        (fault("sshd forbids the way to another address on which a foreign process answers", "ssh"),),
    ),
    Guard(
        "all targets are looked at again at the end",
        "pytest_imagefresh/session.py",
        "        if len(self.targets) < 2 or self.partial:\n",
        "        if self.targets:\n",
        ("tests/e2e/test_layouts.py",),
    ),
    Guard(
        "a subtest that is not ok is heard",
        "pytest_imagefresh/core/tap.py",
        "    if inner is not None:\n",
        "    if inner is None and False:\n",
        ("tests/core/test_verdict.py",),
    ),
    Guard(
        "a verdict is used up",
        HOOK,
        "  heed_lease\n  burn_verdict\n",
        "  heed_lease\n",
        ("tests/hook/test_verdict.py",),
    ),
    Guard(
        "who may sign is as hard to change as the policy",
        HOOK,
        "require_owned verdict-signers \"${file}\" 'regular file'",
        "true verdict-signers \"${file}\" 'regular file'",
        ("tests/hook/test_verdict.py",),
    ),
    Guard(
        "the image's label is read by the plugin itself",
        VERDICT,
        'compare(f"revision label of {image.id}", revision, image.revision_label, image.id)',
        'compare(f"revision label of {image.id}", revision, revision, image.id)',
        ("tests/core/test_verdict.py",),
    ),
    Guard(
        "only a complete record is promoted",
        "pytest_imagefresh/adapters/records.py",
        'record.get("complete") is True and record',
        "record",
        (fault("staging is restarted while the gate runs"),),
    ),
    Guard(
        "every declared file is compared with the commit's",
        VERDICT,
        "    if differences:\n",
        "    if len(differences) > 9:\n",
        (CONTENT_TESTS,),
    ),
    Guard(
        "a declared folder is a real one",
        VERDICT,
        "    if misplaced:\n",
        "    if len(misplaced) > 9:\n",
        (CONTENT_TESTS,),
    ),
    Guard(
        "what may be added is no excuse for a file of the commit",
        "pytest_imagefresh/core/content.py",
        '        return "missing" if seen is None else _describe(wanted, seen)\n',
        '        return _describe(wanted, seen or wanted) if not is_ignored(path, self.ignore) else ""\n',
        (CONTENT_TESTS,),
    ),
    Guard(
        "an archive is read to its end",
        "pytest_imagefresh/adapters/archive.py",
        "            if source.end_of_data > archive.offset or source.size < archive.offset + _END:\n",
        "            if not files:\n",
        ("tests/adapters/test_archive.py",),
    ),
    Guard(
        "an archive holds each file once",
        "pytest_imagefresh/adapters/archive.py",
        "        if path in files or len(files) >= FILE_LIMIT:\n",
        "        if len(files) >= FILE_LIMIT:\n",
        ("tests/adapters/test_archive.py",),
    ),
    Guard(
        "the commit's trees are hashed again",
        "pytest_imagefresh/adapters/git/content.py",
        "        check_hash(found, git.folder)\n",
        "        _ = check_hash\n",
        ("tests/adapters/test_git_content.py",),
    ),
    Guard(
        "a submodule is read where the clone keeps it",
        "pytest_imagefresh/adapters/git/content.py",
        'if not name or ".." in name.split("/") or not',
        "if not name or not",
        ("tests/adapters/test_git_content.py",),
    ),
    # -- the container and the port
    Guard(
        "staging is always recreated",
        HOOK,
        "up -d --force-recreate --no-deps",
        "up -d --no-deps",
        (fault("a hot-fixed container of the same image runs beforehand"),),
    ),
    Guard(
        "a container that was there before proves nothing",
        VERDICT,
        "if before is not None and before.id.hex == report.container_id:",
        "if before is None and report.container_id == '':",
        (fault("compose does not recreate"),),
    ),
    Guard(
        "no other service is touched",
        HOOK,
        "--force-recreate --no-deps --no-build",
        "--force-recreate --no-build",
        (fault("staging depends on production, whose configuration changed"),),
    ),
    Guard(
        "a container's name is compose's own",
        HOOK,
        '[[ "${planned}" == "${STAGING_CONTAINER}" ]] ||',
        "true ||",
        (fault("container_name is gone from the compose file, and an old container of that name lives on"),),
    ),
    Guard(
        "the port belongs to nobody else",
        HOOK,
        '[[ -z "${line}" || "${line#*|}" == "${PROJECT}|$2|False" ]] ||',
        "true ||",
        (fault("a foreign container owns the port"),),
    ),
    Guard(
        "the port belongs to no container of `compose run`",
        HOOK,
        '[[ -z "${line}" || "${line#*|}" == "${PROJECT}|$2|False" ]] ||',
        '[[ -z "${line}" || "${line#*|}" == "${PROJECT}|$2|"* ]] ||',
        ("tests/hook/test_never_production.py", "-k", "another_container_publishes"),
    ),
    Guard(
        "who took the port meanwhile is named",
        HOOK,
        '    name_port_owners "$1"\n',
        "",
        (fault("an old container takes the port while staging is recreated"),),
    ),
    Guard(
        "only 200 is healthy",
        HOOK,
        '  until [[ "${ANSWER}" == 200 ]]; do\n    require_alive\n',
        '  until [[ "${ANSWER}" =~ ^[0-9]{3}$ ]]; do\n    require_alive\n',
        (fault("the health path answers a redirect"),),
    ),
    Guard(
        "what dies while it settles is refused",
        HOOK,
        "  while ((NOW < end)); do\n    pause 0.1\n    require_alive\n",
        "  while false; do\n    pause 0.1\n    require_alive\n",
        (fault("dies during the settle time"),),
    ),
    Guard(
        "a check that fails is a refusal",
        HOOK,
        '[[ "${STATUS}" == 0 ]] || refuse_check',
        "CHECK_STATUS=0",
        (fault("the check says PASS and exits with 1"),),
    ),
    Guard(
        "TAP and exit status agree",
        VERDICT,
        "if tap is not None and tap.problem:",
        "if tap is not None and tap.problem and result.exit_status:",
        (fault("the check says not ok, and exits with 0"),),
    ),
    Guard(
        "mounts are listed",
        "pytest_imagefresh/core/running.py",
        "    if foreign:\n",
        "    if foreign and not image:\n",
        (fault("a mount replaces the image's code"),),
    ),
    Guard(
        "the program is the image's",
        "pytest_imagefresh/core/running.py",
        "shlex.join(expected), shlex.join(observed), image)",
        "shlex.join(observed), shlex.join(observed), image)",
        (fault("the compose file replaces the command"),),
    ),
    Guard(
        "no variable redirects the code",
        "pytest_imagefresh/core/running.py",
        "    if found:\n",
        "    if found and not image:\n",
        (fault("the compose file replaces a loader's variable"),),
    ),
    Guard(
        "nobody answers while the container is paused",
        "pytest_imagefresh/core/port.py",
        "    if silence.heard:\n",
        "    if silence.heard and not silence.addresses:\n",
        (fault("another process answers on another address of the port"),),
    ),
    Guard(
        "the container is the same at the end",
        VERDICT,
        'f"{now.id} since {now.started_at}"',
        'f"{first.id} since {first.started_at}"',
        (fault("staging is restarted while the gate runs"),),
    ),
    Guard(
        "production is as it was",
        VERDICT,
        "    if _without_health(before) != _without_health(after):\n",
        "    if after is None:\n",
        (fault("production is restarted while the gate runs"),),
    ),
    # -- the way there
    Guard(
        "an unknown host key is refused",
        KNOWN_HOSTS,
        "    if offered in expected:\n",
        "    if offered in expected or not expected:\n",
        (fault("the host key is unknown", "ssh"),),
    ),
    Guard(
        "a changed host key is refused",
        KNOWN_HOSTS,
        "    if offered in expected:\n",
        "    if expected:\n",
        (fault("the host key has changed", "ssh"),),
    ),
    Guard(
        "a caller who is gone ends a promotion before production changes",
        HOOK,
        '  say "production changes from here on, whether or not the caller stays" #',
        "  : #",
        (fault("ssh is dropped just before production changes", "ssh"),),
    ),
    Guard(
        "a token that the lease did not give lets nobody through",
        HOOK,
        '[[ "${line}" == "${RUN_ID} ${digest%% *}" ]] || lose_lease\n',
        ":\n",
        ("tests/hook/test_lease.py::test_no_other_token_passes",),
    ),
    Guard(
        "a lease that ended lets nobody through",
        HOOK,
        '  [[ "${STATUS}" == 7 ]] || lose_lease\n',
        "  :\n",
        ("tests/hook/test_lease.py::test_the_token_of_a_lease_that_ended_does_not_pass",),
    ),
    Guard(
        "the end of the lease ends the work",
        HOOK,
        "  trap lose_lease USR1\n",
        "  trap '' USR1\n",
        ("tests/hook/test_lease.py::test_the_end_of_the_lease_ends_the_work",),
    ),
    Guard(
        "the lock was held from first to last",
        VERDICT,
        "    if tenure.held + _CLOCK_SECONDS < tenure.needed:\n",
        "    if tenure.needed < 0:\n",
        ("tests/core/test_verdict.py",),
    ),
    Guard(
        "a caller who says nothing for 20 s loses the lock",
        HOOK,
        "      ((NOW - HEARD < SILENCE * 1000)) ||\n",
        "      ((NOW > HEARD)) ||\n",
        (fault("the client is stopped during the build, its connection open"),),
    ),
    Guard(
        "one run at a time",
        HOOK,
        '  run_child "${QUICK}" flock -n "$1"\n',
        "  STATUS=0\n",
        (fault("two branches are gated at once"),),
    ),
    Guard(
        "a session that sshd does not give yet is waited for",
        "pytest_imagefresh/adapters/ssh/session.py",
        "            if time.monotonic() >= give_up:\n",
        "            if connection:\n",
        ("tests/adapters/test_ssh.py", "-k", "programs_in_turn"),
    ),
    Guard(
        "the run's own tag is taken away",
        HOOK,
        '  [[ -n "${RUN_TAG}" ]] || return 0\n',
        "  return 0\n",
        (fault("dies at start"),),
    ),
    Guard(
        "the images of failed runs are removed",
        HOOK,
        "  sweep_runs\n}",
        '  [[ -z "${NOTE}" ]] || untag "${RUN_TAG}"\n}',
        (*LEFT_TESTS, "failed_runs or killed_run"),
    ),
    Guard(
        "no image is forced away from a container that does not run",
        HOOK,
        'docker import - <"${WORK}/empty.tar"',
        'docker image rm --force "$1"',
        (*LEFT_TESTS, "takes_no_image"),
    ),
    Guard(
        "an image that has a name by now is nobody's leftover",
        HOOK,
        "  elif [[ \"${REPLY}\" == '0 0' ]]; then\n",
        "  else\n",
        (*LEFT_TESTS, "left_alone"),
    ),
    Guard(
        "an image that was proven before is nobody's leftover",
        HOOK,
        '  ! grep -qs "\\"kind\\":\\"done\\".*',
        '  ! grep -qs "\\"kind\\":\\"never\\".*',
        (*LEFT_TESTS, "outlives"),
    ),
    Guard(
        "secrets are masked",
        "pytest_imagefresh/core/masking.py",
        "            text = text.replace(value, MASK)\n",
        "            pass\n",
        (fault("secrets in build output, check output and environment, of a gate that refuses"),),
    ),
    Guard(
        "a check's output does not contradict its exit status",
        VERDICT,
        "    if contradiction:\n",
        "    if contradiction and tap is not None:\n",
        ("tests/core/test_verdict.py",),
    ),
    # -- what runs, and who answers
    Guard(
        "a volume that was taken over is none of the image's",
        "pytest_imagefresh/adapters/engine.py",
        'seeded=asked is not None and posixpath.normpath(each["Destination"]) not in asked,',
        "seeded=True,",
        ("tests/adapters/test_engine.py", "-k", "nobody_asked_for"),
    ),
    Guard(
        "no file of the running container was changed",
        UNCHANGED,
        "problems = [*_covered(container.mounts, target), *_touched(changes, target), *_replaced(places)]",
        "problems = [*_covered(container.mounts, target), *_replaced(places)]",
        UNCHANGED_TESTS,
    ),
    Guard(
        "only what is added can be ignored",
        UNCHANGED,
        'target.content_ignore if change.kind == "added" else ()',
        "target.content_ignore",
        UNCHANGED_TESTS,
    ),
    Guard(
        "no mount lies over declared content",
        UNCHANGED,
        "problems = [*_covered(container.mounts, target), ",
        "problems = [",
        UNCHANGED_TESTS,
    ),
    Guard(
        "a folder was not replaced",
        UNCHANGED,
        'if place.kind != "folder":',
        "if not path:",
        UNCHANGED_TESTS,
    ),
    Guard(
        "no other container publishes the port",
        PORT,
        "    foreign = [each for each in owners if each.id != container.id]\n",
        "    foreign = [each for each in owners if not each.id]\n",
        PORT_TESTS,
    ),
    Guard(
        "the pause lasted to the end",
        PORT,
        'if state != "paused" or elapsed >= DEADMAN_SECONDS:',
        "if elapsed >= DEADMAN_SECONDS:",
        PORT_TESTS,
    ),
    Guard(
        "the proof is over before the deadman",
        PORT,
        'if state != "paused" or elapsed >= DEADMAN_SECONDS:',
        'if state != "paused":',
        PORT_TESTS,
    ),
    Guard(
        "production is never paused",
        PORT,
        "    if reasons:\n",
        "    if not container.name:\n",
        PORT_TESTS,
    ),
    Guard(
        "under host networking the silence is needed",
        PORT,
        "    if not published_on(container, port):\n",
        "    if not container.name:\n",
        PORT_TESTS,
    ),
    Guard(
        "a deadman confirms that it is armed",
        "pytest_imagefresh/adapters/pause.py",
        '"http://engine/containers/$2/json" || exit 1',
        '"http://engine/containers/$2/json" || :',
        ("tests/adapters/test_pause.py", "-k", "not_armed"),
    ),
    Guard(
        "a deadman ends the pause",
        "pytest_imagefresh/adapters/pause.py",
        '"http://engine/containers/$2/unpause"',
        '"http://engine/containers/$2/stats"',
        ("tests/adapters/test_pause.py", "-k", "ends_a_pause"),
    ),
    Guard(
        "a pause ends with its body",
        "pytest_imagefresh/adapters/engine.py",
        "            self._unpause(container_id)\n",
        "            pass\n",
        ("tests/adapters/test_engine.py", "-k", "whatever_happens"),
    ),
    Guard(
        "a container is up long enough",
        VERDICT,
        "    if up < settle:\n",
        "    if up < 0:\n",
        ("tests/core/test_verdict.py", "-k", "up_long_enough"),
    ),
    # -- a key that is bound to one target
    Guard(
        "a request holds harmless characters only",
        HOOK,
        '  [[ "${rest}" =~ ${REQUEST_PATTERN} ]] ||\n',
        "  [[ -n 1 ]] ||\n",
        (*SSH_TESTS, "malformed and gate"),
    ),
    Guard(
        "a request says everything once",
        HOOK,
        '    named+="${word%%=*} "\n',
        "",
        (*SSH_TESTS, "twice"),
    ),
    Guard(
        "a bound key's environment has no say",
        HOOK,
        "  [[ \"$1\" != --ssh ]] || kept=' SSH_ORIGINAL_COMMAND '\n",
        "  [[ \"$1\" != --ssh ]] || kept+=' SSH_ORIGINAL_COMMAND '\n",
        (*SSH_TESTS, "no_variable_of"),
    ),
    Guard(
        "a gate key promotes nothing, a promote key builds nothing",
        HOOK,
        '  [[ " ${modes} " == *" ${MODE} "* ]] ||\n',
        "  [[ -n 1 ]] ||\n",
        (*SSH_TESTS, "other_key"),
    ),
    Guard(
        "a bound key's production is the policy's",
        HOOK,
        '  find_policy_named "$3"\n  bind_to_policy\n',
        '  find_policy_named "$3"\n',
        (*SSH_TESTS, "another_production"),
    ),
    Guard(
        "what a policy claims is not observed as staging",
        HOOK,
        "  BUILD_CONTEXT=- # nothing is built\n  refuse_claimed_staging\n",
        "",
        (*SSH_TESTS, "another_policy_claims"),
    ),
    Guard(
        "a bound key's repo is the policy's",
        HOOK,
        '    require_bound REPO "${REPO-${POLICY[REPO]}}" "${POLICY[REPO]}"\n',
        "",
        (*SSH_TESTS, "speaks_for_the_repo"),
    ),
    Guard(
        "files of no other image than staging's are told",
        HOOK,
        '  require_staged "${OBSERVE_IMAGE}"\n',
        "",
        ("tests/hook/test_observe.py", "-k", "no_other_image"),
    ),
    Guard(
        "a signal while the verdict is issued leaves none",
        "pytest_imagefresh/session.py",
        "            self.interruption.signals.handle(deaf.callback)\n",
        "",
        ("tests/plugin/test_verdicts.py", "-k", "while_its_verdict"),
    ),
    Guard(
        "a pause behind a bound key ends by itself",
        HOOK,
        'sleep "$3" &\n',
        "sleep 99 &\n",
        ("tests/hook/test_observe.py", "-k", "killed"),
    ),
    Guard(
        "what the hook observed is our container",
        "pytest_imagefresh/observed_engine.py",
        "        if report.container_id != container_id.hex:\n",
        "        if not report:\n",
        ("tests/test_observed_engine.py", "-k", "another_container"),
    ),
    Guard(
        "production is built by nobody",
        HOOK,
        """  [[ -z "${SERVICE_BUILD[${PROD_SERVICE}]-}" ]] ||
    refuse production-builds""",
        """  : ||
    refuse production-builds""",
        ("tests/hook/test_rollback.py", "-k", "could_replace"),
    ),
    Guard(
        "production is pulled by nobody",
        HOOK,
        """  [[ "${pull}" == never ]] ||""",
        """  : ||""",
        ("tests/hook/test_rollback.py", "-k", "could_replace"),
    ),
    Guard(
        "a previous image is kept from pruning",
        HOOK,
        """  list_preserved
  remove_keepers "${PREVIOUS_ID}"
""",
        """  return 0
""",
        ("tests/hook/test_rollback.py", "-k", "comes_back"),
    ),
    Guard(
        "nothing with a name is removed",
        HOOK,
        """[[ "${STATUS}" != 0 || "${REPLY}" != '0 0' ]] ||""",
        """[[ "${STATUS}" != 0 ]] ||""",
        ("tests/hook/test_rollback.py", "-k", "has_a_name"),
    ),
    Guard(
        "what was regretted is no previous image",
        HOOK,
        """ && "${left}" != restored) ]]""",
        """) ]]""",
        ("tests/hook/test_rollback.py", "-k", "rolling_back_twice"),
    ),
    Guard(
        "production is compared by what it starts",
        HOOK,
        """    [[ "${said}" == *" ${names[index]} "* ||""",
        """    true || [[ "${said}" == *" ${names[index]} "* ||""",
        ("tests/hook/test_decision.py", "-k", "starts_something_else"),
    ),
    Guard(
        "production is compared by its mounts",
        HOOK,
        """  REPLY=''
  for name in "$@" "${named[@]}"; do""",
        """  REPLY=${path}
  for name in "$@" "${named[@]}"; do""",
        ("tests/hook/test_decision.py", "-k", "starts_something_else"),
    ),
    Guard(
        "the candidate runs beside production first",
        HOOK,
        """  open_journal "$1"
  precheck "$1"
""",
        """  open_journal "$1"
""",
        ("tests/hook/test_precheck.py", "-k", "runs_beside or does_not_answer"),
    ),
    Guard(
        "what runs beside production is what will be promoted",
        HOOK,
        """  take_only "${PROD_SERVICE}" "${IMAGE_ID}"
  compare_start""",
        """  take_only "${PROD_SERVICE}" "${SEEN[image]-}"
  compare_start""",
        ("tests/hook/test_precheck.py", "-k", "single_difference"),
    ),
    Guard(
        "nothing of a precheck stays",
        HOOK,
        """  [[ -z "${PRECHECKING}" ]] || remove_precheck
  tidy_up_self_test""",
        """  tidy_up_self_test""",
        ("tests/hook/test_precheck.py", "-k", "signal or single_difference"),
    ),
    Guard(
        "what a killed precheck left is removed",
        HOOK,
        """  resolve_compose
  remove_precheck
""",
        """  resolve_compose
""",
        ("tests/hook/test_precheck.py", "-k", "killed"),
    ),
    Guard(
        "two containers of production never fight for a port",
        HOOK,
        """  [[ -z "${SERVICE_PORTS[${PROD_SERVICE}]-}" ]] ||""",
        """  true ||""",
        ("tests/hook/test_proxied.py", "-k", "does_not_fit"),
    ),
    Guard(
        "the policy says which proxy there is",
        HOOK,
        """  [[ "${PROD_PROXY}" == "${POLICY[PROD_PROXY]-}" ]] ||""",
        """  true ||""",
        ("tests/hook/test_proxied.py", "-k", "which_proxy"),
    ),
    Guard(
        "the proxy leads to nothing that has not been healthy before",
        HOOK,
        """  [[ -z "${PROD_PROXY}" ]] || rehearse
""",
        "",
        ("tests/hook/test_proxied.py", "-k", "never_gets_a_request"),
    ),
    Guard(
        "what was refused beside production does not stay",
        HOOK,
        """  [[ -z "${BESIDE}" ]] || remove_beside
""",
        "",
        ("tests/hook/test_proxied.py", "-k", "never_gets_a_request"),
    ),
    Guard(
        "a broken configuration of the proxy is found before production changes",
        HOOK,
        """    test_proxy "# configuration file .*/${PROD_SERVICE//./\\\\.}\\\\.conf:" lenient
""",
        "",
        ("tests/hook/test_proxied.py", "-k", "cannot_lead"),
    ),
    Guard(
        "the proxy includes the line that leads it",
        HOOK,
        """    grep -qxE -- "$1" "${WORK}/out" ||""",
        """    true ||""",
        ("tests/hook/test_proxied.py", "-k", "cannot_lead"),
    ),
    Guard(
        "what was proven still runs once it is called production",
        HOOK,
        """  tag_image "${PROD_IMAGE}" "${IMAGE_ID}"
  require_undisturbed
""",
        """  tag_image "${PROD_IMAGE}" "${IMAGE_ID}"
""",
        ("tests/hook/test_recovery.py", "-k", "foreign_compose_up"),
    ),
    Guard(
        "nginx's former workers no longer take connections once it leads elsewhere",
        HOOK,
        """    [[ -z "${WORKERS}" || -n "${left}" ]] || return 0
""",
        """    return 0
""",
        ("tests/hook/test_proxied.py", "-k", "former_worker"),
    ),
    Guard(
        "a proxy whose workers cannot be told apart is found before production changes",
        HOOK,
        """    require_workers
  fi""",
        """  fi""",
        ("tests/hook/test_proxied.py", "-k", "without_workers"),
    ),
    Guard(
        "a first image that was refused is no way back",
        HOOK,
        """    created | exited | dead) [[ -n "${PREVIOUS_TAG_ID}" ]] || return 0 ;; # it never proved itself
""",
        "",
        ("tests/hook/test_proxied.py", "-k", "first_one_that_dies"),
    ),
    Guard(
        "what is under way may finish",
        HOOK,
        """  drain
  step stop""",
        """  step stop""",
        ("tests/hook/test_proxied.py", "-k", "turned_away"),
    ),
    Guard(
        "behind the proxy only the next container can answer",
        HOOK,
        """  await_health
  retire_others
""",
        """  await_health
""",
        ("tests/hook/test_proxied.py", "-k", "leads_elsewhere"),
    ),
    Guard(
        "the proxy must answer once the old container is stopped",
        HOOK,
        """    [[ "${ANSWER}" == 200 ]] ||
      refuse unhealthy "http://${ADDRESS}${HEALTH_PATH}: expected 200 from""",
        """    true ||
      refuse unhealthy "http://${ADDRESS}${HEALTH_PATH}: expected 200 from""",
        ("tests/hook/test_proxied.py", "-k", "leads_elsewhere"),
    ),
    Guard(
        "the journal is open before anything changes",
        HOOK,
        """  open_journal "$1"
  precheck""",
        """  precheck""",
        ("tests/hook/test_recovery.py", "-k", "undone_and_told"),
    ),
    Guard(
        "an interrupted promotion is recovered first",
        HOOK,
        """  # shellcheck disable=SC2310 # a question that does not rely on errexit
  is_journal_open || return 0
  say 'a change""",
        """  return 0
  say 'a change""",
        ("tests/hook/test_recovery.py", "-k", "recovers_first"),
    ),
    Guard(
        "nothing is verified while production changes",
        HOOK,
        """  refuse_open_journal
  decide
""",
        """  decide
""",
        ("tests/hook/test_recovery.py", "-k", "recovers_first"),
    ),
    Guard(
        "a journal is believed only where it is one",
        HOOK,
        """ && "${line#*=}" =~ ^(${REPLY})$ && -z""",
        """ && -z""",
        ("tests/hook/test_recovery.py", "-k", "journal_that_is_none"),
    ),
    Guard(
        "a journal stays open where production needs a person",
        HOOK,
        """    done:* | rolled-back:* | *:before) ;;
""",
        """    *) ;;
""",
        ("tests/hook/test_recovery.py", "-k", "cannot_be_recovered"),
    ),
    Guard(
        "whoever is notified holds no lock",
        HOOK,
        '<<<"${ENTRY}" >/dev/null 2>&1 9>&-',
        '<<<"${ENTRY}" >/dev/null 2>&1',
        (*NOTIFY_TESTS, "keeps_no_lock or nothing_else"),
    ),
    Guard(
        "whoever is notified is root's own",
        HOOK,
        "  require_owned notify-unsafe \"${command}\" 'regular file' 0\n",
        "",
        (*NOTIFY_TESTS, "others_have_a_say"),
    ),
    Guard(
        "the folder of whoever is notified is root's own",
        HOOK,
        '  require_owned notify-unsafe "${command%/*}" directory 0\n',
        "",
        (*NOTIFY_TESTS, "others_have_a_say"),
    ),
    Guard(
        "whoever is notified gets no environment",
        HOOK,
        'env -i "PATH=${SAFE_PATH}" "$1"',
        'env "PATH=${SAFE_PATH}" "$1"',
        (*NOTIFY_TESTS, "nothing_else"),
    ),
    Guard(
        "whoever is notified gets no more than his time",
        HOOK,
        'run_child "${NOTIFY_LIMIT}" env -i',
        "run_child 120 env -i",
        (*NOTIFY_TESTS, "hangs"),
    ),
    Guard(
        "a bad notifier does not hold up a recovery",
        HOOK,
        "  PHASE='asking'\n",
        "",
        (*NOTIFY_TESTS, "hold_up or silence"),
    ),
    Guard(
        "a host that does not say what it still has is no silence",
        PORT,
        '    if "127.0.0.1" not in now:\n',
        "    if False:\n",
        PORT_TESTS,
    ),
    Guard(
        "a wildcard is asked at every address of the host",
        PORT,
        '    return [each for each in host if wildcards and not (only_four and ":" in each)]\n',
        "    return []\n",
        PORT_TESTS,
    ),
]
