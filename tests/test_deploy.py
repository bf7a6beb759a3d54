"""What stands in deploy: whole, closed to others by default, and without a secret."""

import json
import re

import pytest
import yaml
from shared_data import ROOT

from flows import RUN_SETTINGS, SETTINGS
from flows.access import allowed_origins
from flows.keeper import DEFAULT_START_TIMEOUT

DEPLOY = ROOT / "deploy"
POOLS = sorted((DEPLOY / "pools").glob("*.json"))
PLACEHOLDER = re.compile(r"{{ (\w+) }}")


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_every_placeholder_of_a_pool_is_one_of_its_variables(path):
    pool = json.loads(path.read_text(encoding="utf-8"))
    used = set(PLACEHOLDER.findall(json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])
    for name, variable in pool["variables"]["properties"].items():
        assert "password" not in json.dumps(variable.get("default", "")).lower(), name


def test_every_setting_of_a_run_is_in_the_image_and_in_each_pool():
    """In a container Prefect is imported before flows: what flows sets comes too late there."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    image = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.+)", text, re.MULTILINE) for pair in line.split())
    assert {name: image.get(name) for name in SETTINGS} == SETTINGS
    for path in POOLS:
        variables = json.loads(path.read_text(encoding="utf-8"))["variables"]["properties"]
        assert variables["env"]["default"] == RUN_SETTINGS, path.stem


def test_every_setting_of_prefect_that_a_flow_reads_is_one_of_a_run():
    """A new one belongs there, unless server and workers alone read it, which start by importing flows."""
    others = {name for name in SETTINGS if name.startswith(("PREFECT_WORKER_", "PREFECT_SERVER_"))}
    assert SETTINGS.keys() - others <= RUN_SETTINGS.keys()
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in RUN_SETTINGS


def test_an_agent_of_kubernetes_gives_a_pod_as_long_as_the_keeper():
    pool = json.loads((DEPLOY / "pools/kubernetes.json").read_text(encoding="utf-8"))
    assert pool["variables"]["properties"]["pod_watch_timeout_seconds"]["default"] == DEFAULT_START_TIMEOUT


def test_a_run_in_kubernetes_gets_the_gpus_that_it_is_started_with():
    (path,) = (path for path in POOLS if path.stem == "kubernetes")
    pool = json.loads(path.read_text(encoding="utf-8"))
    (container,) = pool["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    # The keeper starts a run again; a cluster that did it, too, would have it twice.
    assert pool["variables"]["properties"]["backoff_limit"]["default"] == 0


def test_the_server_of_the_compose_file_is_on_loopback_with_a_password(services):
    server = services["server"]
    assert server["ports"] == ["${TUNELINE_LISTEN:-127.0.0.1}:4200:4200"]
    assert server["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith("${TUNELINE_LOGIN:?")
    assert server["command"][:3] == ["python", "-m", "flows.api_server"]  # which refuses other sites' pages
    assert "ports" not in services["database"]
    for name in ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        assert server["environment"][name] == SETTINGS[name]


def test_the_compose_file_names_every_address_that_its_server_is_reached_by(services):
    """Of browsers, and of the other services."""
    default = re.compile(r"\${\w+:-([^}]*)}")
    environment = services["server"]["environment"]
    origins = allowed_origins("0.0.0.0", 4200, default.sub(r"\1", environment["TUNELINE_ORIGINS"]))
    for address in (environment["PREFECT_UI_API_URL"], services["cpu"]["environment"]["PREFECT_API_URL"]):
        assert default.sub(r"\1", address).removesuffix("/api") in origins


def test_every_service_asks_for_what_its_environment_needs(services):
    example = (DEPLOY / "example.env").read_text(encoding="utf-8")
    required = set(re.findall(r"\${(\w+):\?", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    for name in required:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} is to be named there, and left empty"


def test_no_secret_goes_into_the_image():
    left_out = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".dvc/config.local", "**/.env", ".git", "conversation.jsonl"} <= set(left_out)
