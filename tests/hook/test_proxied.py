"""`PROD_PROXY`: the next container runs beside the one that serves, and nginx leads from one to the other."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.crowd import crowd
from tests.e2e.pipeline import wait_until
from tests.hook.crash import Crashing, Point
from tests.hook.harness import Outcome, PretendedHost, changed
from tests.hook.proxied import NGINX, PROXY, SERVICE, SLOW, ProxiedHost
from tests.hook.test_real_promotion import SILENT, break_staging
from tests.support import ask

# --- what is refused before anything is touched, on a pretended host --------------------------------------------------

PROXIED = {"PROD_PROXY": "shop-proxy", "PROD_PROXY_PORT": "8000"}


@pytest.fixture
def behind(pretended: PretendedHost) -> PretendedHost:
    """Production behind a proxy, as it should be: one container of either."""
    ports = pretended.state["compose"]["services"]["shop"]["ports"]
    pretended.service("shop", container_name=None, ports=None)
    mount = {"type": "bind", "source": f"{pretended.compose_dir}/.imagefresh/proxy", "target": "/etc/nginx/imagefresh"}
    pretended.service("shop-proxy", image="nginx", ports=ports, volumes=[mount])
    (production,) = pretended.state["containers"]
    proxy = {**production, "id": "9" * 64, "name": "project-shop-proxy-1", "service": "shop-proxy"}
    pretended.set(containers=[{**production, "name": "project-shop-1", "ports": []}, proxy])
    return pretended


def change_proxy(host: PretendedHost, changes: dict[str, object]) -> None:
    production, proxy = host.state["containers"]
    host.set(containers=[production, {**proxy, **changes}])


def test_a_production_behind_a_proxy_is_verified(behind: PretendedHost) -> None:
    assert behind.verify(**PROXIED).verdict == (0, "verified")


@pytest.mark.parametrize(
    ("service", "changes", "cause", "word"),
    [
        ("shop", {"ports": [{"target": 8000, "published": "43102"}]}, "production-publishes", "remove ports: of shop"),
        ("shop", {"container_name": "shop"}, "production-named", "remove container_name: of shop"),
        ("shop", {"container_name": "project-shop-1"}, "production-named", "remove container_name: of shop"),
        ("shop-proxy", {"ports": None}, "proxy-port", "publish 43100"),
        ("shop-proxy", {"ports": [{"target": 80, "published": "43102"}]}, "proxy-port", "43102"),
        ("shop-proxy", {"volumes": None}, "proxy-mount", "mount ./.imagefresh/proxy"),
        ("shop-proxy", {"volumes": [{"type": "bind", "source": "/etc", "target": "/x"}]}, "proxy-mount", "/proxy"),
        ("shop", {"build": {"context": "/srv/shop"}}, "production-builds", "remove build:"),
    ],
    ids=str,
)
def test_a_compose_file_that_does_not_fit_is_refused_with_the_line_to_change(
    behind: PretendedHost, service: str, changes: dict[str, object], cause: str, word: str
) -> None:
    behind.service(service, **changes)
    for outcome in (behind.verify(**PROXIED), behind.promote(**PROXIED)):
        assert outcome.verdict == (1, cause)
        assert word in outcome.reason
    assert behind.changes() == []


def test_a_proxy_that_is_no_service_is_refused(behind: PretendedHost) -> None:
    outcome = behind.promote(PROD_PROXY="elsewhere", PROD_PROXY_PORT="8000")
    assert outcome.verdict == (1, "proxy-missing")
    assert behind.changes() == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"ports": []}, "port-not-published"),
        ({"ports": [["80/tcp", "127.0.0.1", "43102"]]}, "port-not-published"),
        ({"project": "other"}, "port-taken"),
        ({"service": "shop-staging"}, "port-taken"),
    ],
    ids=str,
)
def test_a_proxy_that_does_not_own_the_port_is_refused(
    behind: PretendedHost, changes: dict[str, object], cause: str
) -> None:
    change_proxy(behind, changes)
    assert behind.promote(**PROXIED).verdict == (1, cause)
    assert behind.changes() == []


def test_two_that_serve_already_are_refused(behind: PretendedHost) -> None:
    containers = behind.state["containers"]
    behind.set(containers=[*containers, {**containers[0], "id": "7" * 64, "name": "project-shop-2"}])
    assert behind.verify(**PROXIED).verdict == (1, "container-count")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"PROD_PIN": ""}, "variable-missing"),
        ({"PROD_PROXY_PORT": None}, "variable-missing"),
        ({"PROD_PROXY": "shop"}, "variable-malformed"),
        ({"PROD_DRAIN": "0.9"}, "variable-malformed"),
    ],
    ids=str,
)
def test_a_proxy_needs_a_pin_a_port_and_time(behind: PretendedHost, changes: dict[str, str | None], cause: str) -> None:
    variables = changed(PROXIED, changes)
    gone = {name: None for name in PROXIED if name not in variables}
    outcome = behind.promote(**variables, **gone)
    assert outcome.verdict == (2, cause)
    assert behind.calls == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("policy", "asked", "cause"),
    [
        ("shop-proxy", PROXIED, "verified"),
        ("shop-proxy", {}, "policy-mismatch"),
        ("other", PROXIED, "policy-mismatch"),
        (None, PROXIED, "policy-mismatch"),
    ],
    ids=str,
)
def test_the_policy_says_which_proxy_there_is(
    behind: PretendedHost, policy: str | None, asked: dict[str, str], cause: str
) -> None:
    behind.policy(REQUIRE="revision image_id", PROD_PROXY=policy)
    assert behind.verify(**asked).cause == cause


@pytest.mark.root
def test_staging_is_never_the_proxy_of_a_policy(behind: PretendedHost) -> None:
    behind.policy(REQUIRE="revision image_id", PROD_PROXY="shop-proxy")
    assert behind.staging(TARGET_SERVICE="shop-proxy").verdict == (1, "staging-is-claimed")


def test_staging_is_never_the_proxy_that_its_caller_names(behind: PretendedHost) -> None:
    outcome = behind.staging(TARGET_SERVICE="shop-proxy", PROD_PROXY="shop-proxy")
    assert outcome.verdict == (1, "service-is-prod")


# --- on a real engine, with a real nginx ------------------------------------------------------------------------------


@pytest.fixture
def empty(orchestrator: MakeOrchestrator, tmp_path: Path) -> ProxiedHost:
    """Production behind nginx, nothing of it running yet; staging's image is built."""
    host = ProxiedHost(orchestrator(), tmp_path / "hook")
    host.copy.build_image(host.copy.staging_image)
    return host


@pytest.fixture
def proxied(empty: ProxiedHost) -> ProxiedHost:
    """Production behind nginx, promoted once; staging's image is that of another commit."""
    outcome = empty.promote()
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    empty.copy.commit({"src/orchestrator/more.py": "MORE = 1\n"})
    empty.copy.build_image(empty.copy.staging_image)
    return empty


def assert_serves(host: ProxiedHost, image: str) -> None:
    """One container of production is left; it has this image, and the proxy leads to it."""
    (container,) = host.containers()
    assert host.container(container, ".Image") == image
    name = host.container(container, ".Name").removeprefix("/")
    assert host.upstream.read_text() == f"server {name}:8000;\n"
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    revision = host.engine.docker("image", "inspect", "--format", label, image)
    assert ask(host.copy.prod_port, "/version")["revision"] == revision
    assert host.image_of(host.copy.prod_image) == image
    assert f"{host.copy.pin}={image}\n" in host.copy.env_file.read_text()


@pytest.mark.docker
def test_nobody_is_turned_away_by_a_promotion_and_a_rollback(proxied: ProxiedHost) -> None:
    old, new = (proxied.image_of(name) for name in (proxied.copy.prod_image, proxied.copy.staging_image))
    with crowd(proxied.copy.prod_port, lingering=SLOW) as seen:
        outcome = proxied.promote(PROD_DRAIN="3")
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    assert seen.failed == []
    assert len(seen.answered) > 300
    assert_serves(proxied, new)
    before = proxied.production()
    proxied.copy.compose("up", "--detach")
    assert proxied.production() == before
    with crowd(proxied.copy.prod_port) as seen:
        outcome = proxied.rollback()
    assert outcome.verdict == (0, "restored"), outcome.stderr
    assert seen.failed == []
    assert_serves(proxied, old)
    promoted = (proxied.copy.compose_dir / ".imagefresh" / "promoted").read_text()
    assert f"service {PROXY}\n" in promoted


@pytest.mark.docker
@pytest.mark.fault
def test_a_candidate_that_is_silent_never_gets_a_request(proxied: ProxiedHost) -> None:
    break_staging(proxied, SILENT)
    before = proxied.production()
    with crowd(proxied.copy.prod_port) as seen:
        outcome = proxied.promote(HEALTH_TIMEOUT="1")
    assert outcome.verdict == (1, "unhealthy"), outcome.stderr
    assert seen.failed == []
    assert proxied.production() == before


@pytest.mark.docker
@pytest.mark.fault
def test_a_first_candidate_that_is_silent_leaves_nothing(empty: ProxiedHost) -> None:
    break_staging(empty, SILENT)
    before = empty.production()
    outcome = empty.promote(HEALTH_TIMEOUT="1")
    assert outcome.verdict == (1, "unhealthy"), outcome.stderr
    assert empty.production() == before


DIES_SOON = "python3 -m orchestrator & sleep 3; kill $!"


@pytest.mark.docker
@pytest.mark.fault
def test_one_that_dies_behind_the_proxy_is_rolled_back(proxied: ProxiedHost) -> None:
    old = proxied.image_of(proxied.copy.prod_image)
    break_staging(proxied, DIES_SOON)
    outcome = proxied.promote(PROD_DRAIN="8")
    assert outcome.verdict == (3, "unhealthy"), outcome.stderr
    assert_serves(proxied, old)


@pytest.mark.docker
@pytest.mark.fault
def test_a_first_one_that_dies_behind_the_proxy_is_stopped_and_the_next_one_serves(empty: ProxiedHost) -> None:
    break_staging(empty, DIES_SOON)
    outcome = empty.promote(SETTLE="5")
    assert outcome.status == 4, outcome.stderr
    assert [empty.container(each, ".State.Running") for each in empty.containers()] == ["false"]
    new = break_staging(empty, "exec python3 -m orchestrator")
    outcome = empty.promote()
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    assert_serves(empty, new)
    assert empty.rollback().verdict == (4, "no-previous")


@pytest.mark.docker
@pytest.mark.fault
def test_a_proxy_that_leads_elsewhere_is_noticed(proxied: ProxiedHost) -> None:
    old = proxied.image_of(proxied.copy.prod_image)
    fixed = f"upstream fixed {{ {proxied.upstream.read_text().strip()} }}\n  server {{"
    proxied.configuration.write_text(NGINX.replace("server {", fixed).replace(f"http://{SERVICE};", "http://fixed;"))
    outcome = proxied.promote()
    assert outcome.verdict == (3, "unhealthy"), outcome.stderr
    assert_serves(proxied, old)


@pytest.mark.docker
@pytest.mark.fault
@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("proxy_pass", "proxy_past", "proxy_past"),
        (f"include /etc/nginx/imagefresh/{SERVICE}.conf;", "server 127.0.0.1:1;", "one that does not"),
        ("location / {", "location /blog { proxy_pass http://blog; }\n    location / {", "blog"),
    ],
    ids=["malformed", "without the file", "another upstream is missing"],
)
def test_a_configuration_that_cannot_lead_to_production_is_refused(
    proxied: ProxiedHost, before: str, after: str, word: str
) -> None:
    proxied.configuration.write_text(NGINX.replace(before, after))
    production = proxied.production()
    outcome = proxied.promote()
    assert outcome.verdict == (1, "proxy-config"), outcome.stderr
    assert word in outcome.reason
    assert proxied.production() == production


@pytest.mark.docker
@pytest.mark.fault
def test_a_line_that_cannot_be_written_is_refused_before_production_changes(proxied: ProxiedHost) -> None:
    proxied.upstream.with_name(f"{proxied.upstream.name}.draft").mkdir()
    production = proxied.production()
    outcome = proxied.promote()
    assert outcome.verdict == (1, "state-unsafe"), outcome.stderr
    assert proxied.production() == production


@pytest.mark.docker
@pytest.mark.fault
def test_a_stopped_production_stays_stopped_where_its_promotion_is_refused(proxied: ProxiedHost) -> None:
    old = proxied.image_of(proxied.copy.prod_image)
    proxied.copy.compose("stop", SERVICE)
    proofs = {"SOURCE_IMAGE": old, "EXPECTED_IMAGE_ID": old, "EXPECTED_REVISION": None}
    outcome = proxied.promote(**proofs, HEALTH_PATH="/nowhere", HEALTH_TIMEOUT="1")
    assert outcome.verdict == (1, "unhealthy"), outcome.stderr
    assert [proxied.container(each, ".State.Running") for each in proxied.containers()] == ["false"]


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.fault
def test_a_proxy_that_was_led_is_still_restarted_by_the_engine(proxied: ProxiedHost) -> None:
    assert proxied.promote().verdict == (0, "promoted")
    (proxy,) = proxied.containers(PROXY)
    os.kill(int(proxied.container(proxy, ".State.Pid")), signal.SIGKILL)
    assert wait_until(lambda: proxied.container(proxy, ".RestartCount") == "1", 30)


def workers(host: ProxiedHost) -> list[int]:
    """The PIDs of nginx's workers, of those that are shutting down too."""
    (proxy,) = host.containers(PROXY)
    lines = host.engine.docker("container", "top", proxy, "-o", "pid,args").splitlines()
    return [int(line.split()[0]) for line in lines if "nginx: worker process" in line]


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.fault
def test_a_former_worker_that_takes_connections_is_waited_for(proxied: ProxiedHost) -> None:
    (old,) = proxied.containers()
    (former,) = workers(proxied)
    os.kill(former, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        try:
            promotion = pool.submit(proxied.promote)
            assert wait_until(lambda: len(workers(proxied)) > 1, 60)
            assert not wait_until(lambda: promotion.done() or proxied.container(old, ".State.Running") == "false", 4)
        finally:
            os.kill(former, signal.SIGCONT)
        assert promotion.result().verdict == (0, "promoted"), promotion.result().stderr
    assert former not in workers(proxied)


@pytest.mark.docker
@pytest.mark.fault
def test_a_proxy_without_workers_is_refused(proxied: ProxiedHost) -> None:
    proxied.configuration.write_text(f"master_process off;{NGINX}")
    proxied.copy.compose("restart", PROXY)
    production = proxied.production()
    outcome = proxied.promote()
    assert outcome.verdict == (1, "proxy-workers"), outcome.stderr
    assert proxied.production() == production


def while_leading(host: ProxiedHost, folder: Path, action: str) -> Outcome | None:
    """Promote, and let something happen right after the proxy was told to lead elsewhere."""
    docker = {"docker": host.docker}
    crashing = Crashing(folder, docker, engine=host.engine.docker_host, docker_config=host.engine.docker_config)
    point = Point(moment="after", command="nginx -s reload", action=action)
    outcome = crashing.call("--promote", host.promotion_variables(), point)
    assert crashing.acted, crashing.said
    return outcome


@pytest.mark.docker
@pytest.mark.fault
def test_a_foreign_compose_up_on_the_way_brings_back_what_is_pinned(proxied: ProxiedHost, tmp_path: Path) -> None:
    old = proxied.image_of(proxied.copy.prod_image)
    environment = " ".join(f"{name}={value}" for name, value in proxied.engine.env.items() if name.startswith("DOCKER"))
    action = f"cd {proxied.copy.compose_dir} && env {environment} docker compose up --detach\n"
    outcome = while_leading(proxied, tmp_path / "crashing", action)
    assert outcome is not None
    assert outcome.verdict[0] == 3, outcome.stderr
    assert_serves(proxied, old)
