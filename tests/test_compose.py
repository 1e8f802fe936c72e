"""The container stack: valid, pinned, closed to the outside, and all it configures exists."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from compose_spec import PyCompose
from kafka import KafkaConsumer

from pipeline.config import Config, KafkaSettings, load_config
from pipeline.topics import client_settings, create_topics
from schemas.clickhouse import read_migrations

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
#: yaml.safe_load resolves the merge keys, as Compose does.
STACK = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
VERSIONED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?$")
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$")

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def required_variables() -> set[str]:
    return set(REQUIRED.findall((ROOT / "docker-compose.yml").read_text(encoding="utf-8")))


# --- Compose ---------------------------------------------------------------------------------


def test_the_file_holds_to_the_compose_specification() -> None:
    compose = PyCompose.from_json(json.dumps(STACK))
    compose.validate()
    assert set(compose.service_names()) == {
        "kafka",
        "clickhouse",
        "gateway",
        "grafana",
        "init",
        "worker",
    }


def test_the_specification_is_not_toothless() -> None:
    wrong = copy.deepcopy(STACK)
    wrong["services"]["worker"]["depend_on"] = {}
    with pytest.raises(ValueError, match="depend_on"):
        PyCompose.from_json(json.dumps(wrong))


def test_docker_itself_accepts_it(tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker has no compose plugin here")
    make_passwords(tmp_path / "env")
    command = ["docker", "compose", "--env-file", str(tmp_path / "env"), "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    assert VERSIONED.match(service["image"])


def test_our_image_carries_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert OURS
    for name in OURS:
        assert SERVICES[name]["image"] == f"{project['name']}:{project['version']}"


@each_service
def test_ports_are_published_on_loopback_only(service: dict[str, Any]) -> None:
    for port in service.get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_containers_have_no_privileges(service: dict[str, Any]) -> None:
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")
    assert int(service["user"].split(":")[0]) > 0
    assert service["mem_limit"]


@each_service
def test_long_running_services_restart_and_tell_their_health(service: dict[str, Any]) -> None:
    if service["restart"] == "no":
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()


def test_dependants_wait_until_what_they_need_is_there() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            once = SERVICES[needed]["restart"] == "no"
            done = "service_completed_successfully" if once else "service_healthy"
            assert how == {"condition": done}
    assert set(SERVICES["worker"]["depends_on"]) == {"kafka", "clickhouse", "init"}


@each_service
def test_mounts_exist(service: dict[str, Any]) -> None:
    for mount in service.get("volumes", ()):
        source, _, mode = mount.partition(":")[0], *mount.rpartition(":")[1:]
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert mode == "ro"
        else:
            assert source in STACK["volumes"]


def test_no_password_is_written_down() -> None:
    secrets = {
        key: value
        for service in SERVICES.values()
        for key, value in service["environment"].items()
        if SECRET.search(key)
    }
    assert secrets
    for key, value in secrets.items():
        assert value is None or REQUIRED.fullmatch(value), key


@pytest.mark.parametrize("name", OURS)
def test_our_settings_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [k for k in os.environ if k.startswith("KIZASHI_")]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(DEPLOY)  # no kizashi.toml is there
    environment = dict(SERVICES[name]["environment"])
    file = environment.pop("KIZASHI_CONFIG", None)
    if file is not None:
        text = (DEPLOY / Path(file).name).read_text(encoding="utf-8")
        for key in [k for k in environment if not k.startswith("KIZASHI_")]:
            environment.pop(key)
            assert f'"{key}"' in text
        monkeypatch.setenv("KIZASHI_CONFIG", str(DEPLOY / Path(file).name))
    for key, value in environment.items():
        section, *path = key.removeprefix("KIZASHI_").lower().split("__")
        assert_is_setting([section, *path])
        if value is not None:
            monkeypatch.setenv(key, REQUIRED.sub("a-password", value))
    config = load_config()
    assert config.clickhouse.host in SERVICES
    assert config.kafka.bootstrap_servers.partition(":")[0] in SERVICES
    assert config.clickhouse.password.get_secret_value() == (
        "a-password" if "clickhouse" in SERVICES[name]["depends_on"] else ""
    )


def assert_is_setting(path: list[str]) -> None:
    model: Any = Config
    for part in path:
        if get_origin(model) is dict:
            return  # a key of the user's own
        assert part in model.model_fields, f"{'.'.join(path)} is no setting"
        model = model.model_fields[part].annotation


def test_an_unknown_setting_would_be_found() -> None:
    with pytest.raises(AssertionError, match=r"kafka\.bootstrap is no setting"):
        assert_is_setting(["kafka", "bootstrap"])


# --- Passwords -------------------------------------------------------------------------------


def make_passwords(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEPLOY / "make-passwords", file], capture_output=True, text=True)


def test_make_passwords_makes_every_one_that_is_required(tmp_path: Path) -> None:
    file = tmp_path / "env"
    assert make_passwords(file).returncode == 0
    made = dict(line.split("=") for line in file.read_text(encoding="utf-8").splitlines())
    assert made.keys() == required_variables()
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in made.values())
    assert len(set(made.values())) == len(made)
    assert file.stat().st_mode & 0o077 == 0


def test_make_passwords_adds_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "env"
    had = "KEPT=1\nGRAFANA_ADMIN_PASSWORD=mine\n"
    file.write_text(had, encoding="utf-8")
    assert make_passwords(file).returncode == 0
    made = file.read_text(encoding="utf-8")
    assert made.startswith(had)
    names = [line.split("=")[0] for line in made.splitlines()]
    assert len(names) == len(set(names))
    assert set(names) == required_variables() | {"KEPT"}
    assert make_passwords(file).returncode == 0
    assert file.read_text(encoding="utf-8") == made


def test_git_ignores_the_passwords() -> None:
    assert ".env" in (DEPLOY / ".gitignore").read_text(encoding="utf-8").splitlines()


# --- ClickHouse ------------------------------------------------------------------------------

USERS = ET.parse(DEPLOY / "clickhouse" / "users.d" / "kizashi.xml").getroot()  # noqa: S314 - ours
#: Runs statements with the rights of the user that `users.xml` in the working directory calls
#: default, and prints ClickHouse's error code for each: 0 when it was done.
RUN_STATEMENTS = """
import json, sys
from pipeline.config import ClickHouseSettings
from pipeline.sinks.clickhouse import Store, error_code

store = Store(ClickHouseSettings(path="data"))

def run(statement):
    try:
        store.migrate() if statement == "MIGRATE" else store.rows(statement)
    except Exception as error:
        return error_code(error) or repr(error)
    return 0

print(json.dumps([run(statement) for statement in json.load(sys.stdin)]))
"""
DONE, READONLY, DENIED = 0, 164, 497


def run_as(user: str, statements: list[str], directory: Path) -> list[int]:
    """Run statements in an embedded ClickHouse whose only user has the rights of `user`."""
    write_users(user, directory / "users.xml")
    (directory / "config.xml").write_text(
        f"<clickhouse><users_config>{directory}/users.xml</users_config></clickhouse>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN_STATEMENTS],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=json.dumps(statements),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_users(user: str, file: Path) -> None:
    """Our users.d file as a whole users.xml in which `user` is the one that connects."""
    root = ET.Element("clickhouse")
    profiles = copy.deepcopy(USERS.find("profiles"))
    assert profiles is not None
    ET.SubElement(profiles, "default")
    for constraint in profiles.iter("max_execution_time"):
        # The embedded engine knows constraints, but not this exception from them.
        for exception in constraint.findall("changeable_in_readonly"):
            constraint.remove(exception)
    root.append(profiles)
    ET.SubElement(ET.SubElement(root, "quotas"), "default")
    connecting = copy.deepcopy(USERS.find(f"users/{user}"))
    assert connecting is not None
    connecting.tag = "default"
    password = connecting.find("password")
    assert password is not None
    password.attrib.clear()
    ET.SubElement(root, "users").append(connecting)
    ET.ElementTree(root).write(file)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the schema in it, made with the migrator's rights."""
    directory = tmp_path_factory.mktemp("clickhouse")
    assert run_as("migrator", ["MIGRATE", "MIGRATE"], directory) == [DONE, DONE]
    return directory


def test_the_migrator_reaches_no_other_database(migrated: Path) -> None:
    forbidden = ["CREATE DATABASE other", "CREATE USER other", "SELECT * FROM file('x', 'CSV')"]
    assert run_as("migrator", forbidden, migrated) == [DENIED] * len(forbidden)


def test_the_writer_writes_and_changes_no_schema(migrated: Path) -> None:
    insert = "INSERT INTO kizashi.requests (event_id) SELECT 'a'"
    allowed = [insert, "SELECT count() FROM kizashi.requests FINAL"]
    forbidden = [
        "DROP TABLE kizashi.requests",
        "TRUNCATE TABLE kizashi.requests",
        "ALTER TABLE kizashi.requests DELETE WHERE 1",
        "CREATE TABLE kizashi.more (a Int8) ENGINE = MergeTree ORDER BY a",
        "CREATE DATABASE other",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a Int8')",
    ]
    codes = run_as("writer", allowed + forbidden, migrated)
    assert codes == [DONE] * len(allowed) + [DENIED] * len(forbidden)


def test_the_reader_only_reads_and_never_prompts(migrated: Path) -> None:
    statements = {
        "SELECT count() FROM kizashi.requests": DONE,
        "SELECT * FROM kizashi.rollup_1m LIMIT 1": DONE,
        "SELECT count() FROM kizashi.request_texts": DENIED,
        "SELECT * FROM file('x', 'CSV', 'a Int8')": DENIED,
        "INSERT INTO kizashi.requests (event_id) SELECT 'a'": DENIED,
        "DROP TABLE kizashi.requests": DENIED,
        "SET max_threads = 1": READONLY,
    }
    assert run_as("reader", list(statements), migrated) == list(statements.values())


def test_the_reader_may_set_grafanas_timeout_and_no_longer_one() -> None:
    constraint = USERS.find("profiles/reader/constraints/max_execution_time")
    assert constraint is not None
    assert constraint.find("changeable_in_readonly") is not None
    assert constraint.findtext("max") == "60"
    server = ET.parse(DEPLOY / "clickhouse" / "config.d" / "kizashi.xml")  # noqa: S314 - ours
    wanted = "access_control_improvements/settings_constraints_replace_previous"
    assert server.findtext(wanted) == "true"


def test_every_user_has_a_password_and_the_stock_user_has_gone() -> None:
    users = {user.tag: user for user in USERS.findall("users/*")}
    assert users.pop("default").get("remove")
    assert set(users) == {"migrator", "writer", "reader"}
    for name, user in users.items():
        variable = f"CLICKHOUSE_{name.upper()}_PASSWORD"
        password = user.find("password")
        assert password is not None
        assert password.attrib == {"from_env": variable}
        assert SERVICES["clickhouse"]["environment"][variable].startswith(f"${{{variable}:?")


def test_the_migrator_may_use_every_engine_of_the_schema() -> None:
    granted = " ".join(query.text or "" for query in USERS.iterfind("users/migrator/grants/query"))
    statements = [s for migration in read_migrations() for s in migration.statements]
    engines = {e for s in statements for e in re.findall(r"ENGINE = (\w+)", s)}
    assert engines
    for engine in engines:
        assert re.search(rf"TABLE ENGINE ON {engine}\b", granted), engine


# --- Grafana ---------------------------------------------------------------------------------


def test_grafana_reads_with_the_plugin_that_is_installed() -> None:
    file = DEPLOY / "grafana" / "provisioning" / "datasources" / "kizashi.yaml"
    [source] = yaml.safe_load(file.read_text(encoding="utf-8"))["datasources"]
    environment = SERVICES["grafana"]["environment"]
    plugin, _, version = environment["GF_PLUGINS_PREINSTALL_SYNC"].partition("@")
    assert source["type"] == plugin
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert source["jsonData"]["username"] == "reader"
    assert source["jsonData"]["host"] in SERVICES
    assert source["secureJsonData"]["password"].removeprefix("$") in environment


def test_dashboards_are_mounted_where_grafana_looks() -> None:
    file = DEPLOY / "grafana" / "provisioning" / "dashboards" / "kizashi.yaml"
    [provider] = yaml.safe_load(file.read_text(encoding="utf-8"))["providers"]
    mounts = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


# --- The worker's health ---------------------------------------------------------------------

MEMBER_TIMEOUT_S = 30.0


@pytest.mark.kafka
def test_the_worker_is_healthy_while_its_group_has_a_member(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("worker_health", DEPLOY / "worker_health.py")
    assert spec is not None
    assert spec.loader is not None
    worker_health = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker_health)
    create_topics(kafka_settings)
    monkeypatch.setenv("KIZASHI_KAFKA__BOOTSTRAP_SERVERS", kafka_settings.bootstrap_servers)
    monkeypatch.setenv("KIZASHI_KAFKA__ALLOW_PLAINTEXT", "true")
    monkeypatch.setenv("KIZASHI_KAFKA__GROUP_ID", kafka_settings.group_id)

    assert worker_health.main() == 1
    member = KafkaConsumer(
        kafka_settings.events_topic,
        group_id=kafka_settings.group_id,
        **client_settings(kafka_settings),
    )
    deadline_s = time.monotonic() + MEMBER_TIMEOUT_S
    while not member.assignment():
        assert time.monotonic() < deadline_s, "the member was never given a partition"
        member.poll(timeout_ms=100)
    assert worker_health.main() == 0
    member.close()
    assert worker_health.main() == 1


# --- Dockerfile ------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, flags=re.MULTILINE)


def test_both_stages_share_one_pinned_python() -> None:
    bases = [base.split(" AS ")[0] for base in instructions("FROM")]
    assert len(bases) == 2
    assert len(set(bases)) == 1  # the environment made in one stage runs in the other
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", bases[0])


def test_the_image_runs_as_the_user_that_compose_names() -> None:
    assert {SERVICES[name]["user"] for name in OURS} == set(instructions("USER"))


def test_the_image_installs_nothing_without_a_hash() -> None:
    commands = [part.strip() for run in instructions("RUN") for part in run.split("&&")]
    installs = [command for command in commands if " install " in command and "pip" in command]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or {"--no-deps", "--offline"} <= set(command.split())


def test_what_the_image_copies_is_there_and_let_through() -> None:
    let_through = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    sources = [s for c in instructions("COPY") if "--from" not in c for s in c.split()[:-1]]
    assert "pipeline" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert {source, *map(str, Path(source).parents)} & let_through, source
