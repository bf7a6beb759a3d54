"""The files of deploy/: complete, private by default, and without secrets."""

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
def test_pool_placeholders_match_its_variables(path):
    pool = json.loads(path.read_text(encoding="utf-8"))
    used = set(PLACEHOLDER.findall(json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])
    for name, variable in pool["variables"]["properties"].items():
        assert "password" not in json.dumps(variable.get("default", "")).lower(), name


def test_image_and_pools_repeat_all_settings():
    """In a container Prefect reads its settings before the package flows sets them."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    image = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.+)", text, re.MULTILINE) for pair in line.split())
    assert {name: image.get(name) for name in SETTINGS} == SETTINGS
    for path in POOLS:
        variables = json.loads(path.read_text(encoding="utf-8"))["variables"]["properties"]
        assert variables["env"]["default"] == RUN_SETTINGS, path.stem


def test_run_settings_contain_all_but_server_and_worker_settings():
    others = {name for name in SETTINGS if name.startswith(("PREFECT_WORKER_", "PREFECT_SERVER_"))}
    assert SETTINGS.keys() - others <= RUN_SETTINGS.keys()
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in RUN_SETTINGS


def test_pod_timeout_equals_the_keepers_start_timeout():
    pool = json.loads((DEPLOY / "pools/kubernetes.json").read_text(encoding="utf-8"))
    assert pool["variables"]["properties"]["pod_watch_timeout_seconds"]["default"] == DEFAULT_START_TIMEOUT


def test_kubernetes_run_gets_its_number_of_gpus():
    (path,) = (path for path in POOLS if path.stem == "kubernetes")
    pool = json.loads(path.read_text(encoding="utf-8"))
    (container,) = pool["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    # The keeper reschedules crashed runs; retries by the cluster would duplicate them.
    assert pool["variables"]["properties"]["backoff_limit"]["default"] == 0


def test_compose_server_listens_on_loopback_with_a_password(services):
    server = services["server"]
    assert server["ports"] == ["${TUNELINE_LISTEN:-127.0.0.1}:4200:4200"]
    assert server["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith("${TUNELINE_LOGIN:?")
    assert server["command"][:3] == ["python", "-m", "flows.api_server"]  # with access control
    assert "ports" not in services["database"]
    for name in ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        assert server["environment"][name] == SETTINGS[name]


def test_compose_server_allows_its_own_addresses(services):
    """For browsers and for the other services."""
    default = re.compile(r"\${\w+:-([^}]*)}")
    environment = services["server"]["environment"]
    origins = allowed_origins("0.0.0.0", 4200, default.sub(r"\1", environment["TUNELINE_ORIGINS"]))
    for address in (environment["PREFECT_UI_API_URL"], services["cpu"]["environment"]["PREFECT_API_URL"]):
        assert default.sub(r"\1", address).removesuffix("/api") in origins


def test_required_variables_are_in_the_example(services):
    example = (DEPLOY / "example.env").read_text(encoding="utf-8")
    required = set(re.findall(r"\${(\w+):\?", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    for name in required:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} must be in example.env, without a value"


def test_image_excludes_secrets():
    excluded = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".dvc/config.local", "**/.env", ".git", "conversation.jsonl"} <= set(excluded)
