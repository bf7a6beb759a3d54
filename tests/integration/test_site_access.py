"""Access control of a real server with an agent: which requests and which runs are refused."""

import json
from uuid import uuid4

import httpx
import pytest
from sites import LOGIN, Site, create_small_project, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from flows import SETTINGS
from flows.run_metadata import HEARTBEAT_LABEL

pytestmark = pytest.mark.integration

ENTRYPOINT = "flows.prepare_data.prepare_data"
WRONG_LOGIN = "tests:wrong"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server and an agent for pool ``cpu``, without the project's deployments."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, create_small_project(folder / "project"))
    try:
        site.start("server", "cpu")
        wait_until(lambda: "started!" in site.log("cpu"), "the agent")
        yield site
    finally:
        print(site.log("cpu")[-4000:])
        site.kill(*site.running)


@pytest.fixture(scope="module")
def flow(site) -> str:
    return site.request("POST", "/flows/", {"name": "attacked"})["id"]


def create_deployment(site, flow: str, **fields) -> str:
    """Create a deployment by the API and return its id."""
    body = {
        "name": f"attack {uuid4()}",
        "flow_id": flow,
        "work_pool_name": "cpu",
        "entrypoint": ENTRYPOINT,
        "pull_steps": [],
    } | fields
    return site.request("POST", "/deployments/", body)["id"]


def failure_message(site, deployment: str, **fields) -> str:
    """Start a run, which must fail, and return the message of its last state."""
    body = {"state": {"type": "SCHEDULED"}, "parameters": {"revision": "no-such-revision"}} | fields
    run = site.request("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
    assert site.final_state(run) == "Failed"
    return site.request("GET", f"/flow_runs/{run}")["state"]["message"]


def port(site) -> int:
    return httpx.URL(site.api).port


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 400),
        ({"Host": "127.0.0.1:1"}, 400),
    ],
)
def test_cross_site_request_starts_no_run_even_with_the_password(site, flow, headers, status):
    """A POST of plain text needs no preflight: CORS would only hide the response."""
    deployment = create_deployment(site, flow)
    headers = {name: value.replace("{port}", str(port(site))) for name, value in headers.items()}
    response = httpx.post(
        f"{site.api}/deployments/{deployment}/create_flow_run",
        content=json.dumps({"state": {"type": "SCHEDULED"}}),
        headers={"Content-Type": "text/plain"} | headers,
        auth=tuple(LOGIN.split(":")),
    )
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    assert site.request("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}}) == []


def test_requests_without_the_password_are_rejected(site):
    for login in (None, WRONG_LOGIN, ":", "tests:"):
        auth = tuple(login.split(":")) if login else None
        for method, path in (("POST", "/flow_runs/filter"), ("GET", "/admin/version"), ("POST", "/flows/")):
            assert httpx.request(method, f"{site.api}{path}", json={}, auth=auth).status_code == 401
    assert httpx.get(f"{site.api}/health").status_code == 200


def test_own_pages_are_served_and_may_send_requests(site):
    root = site.api.removesuffix("/api")
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    page = httpx.get(root, headers={"Accept": "text/html"} | navigation, follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text
    assert page.headers["x-frame-options"] == "DENY"
    assert httpx.get(root, headers=navigation | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert httpx.get(root, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(f"{root}/ui-settings").json()["auth"] == "BASIC"
    for name in ("127.0.0.1", "localhost", "[::1]"):  # the UI may be opened by one name and send requests to another
        origin = f"http://{name}:{port(site)}"
        response = httpx.post(
            f"{site.api}/flow_runs/filter", json={}, headers={"Origin": origin}, auth=tuple(LOGIN.split(":"))
        )
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize("path", ["/events/in", "/events/out", "/logs/out", "/task_runs/subscriptions/scheduled"])
def test_websocket_requires_own_origin_and_password(site, path):
    own = f"http://localhost:{port(site)}"
    assert greet(site, path, LOGIN, origin=own) == greet(site, path, LOGIN) == "auth_success"
    with pytest.raises(ConnectionClosed):
        greet(site, path, WRONG_LOGIN)
    for foreign in ({"origin": "http://evil.example"}, {"additional_headers": {"Sec-Fetch-Site": "cross-site"}}):
        with pytest.raises(InvalidStatus, match="403"):
            greet(site, path, LOGIN, **foreign)


def greet(site, path: str, login: str, **options) -> str:
    """Open a websocket, authenticate, and return the type of the server's reply."""
    address = f"{site.api.replace('http', 'ws', 1)}{path}"
    with connect(address, subprotocols=[Subprotocol("prefect")], proxy=None, **options) as socket:
        socket.send(json.dumps({"type": "auth", "token": login}))
        return json.loads(socket.recv(10))["type"]


def test_agent_runs_only_the_projects_deployments(site, flow, tmp_path):
    marker = tmp_path / "executed"
    touch = f"touch {marker}"
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n\n\ndef main():\n    pass\n"
    )
    shell = [{"prefect.deployments.steps.run_shell_script": {"script": touch}}]
    for change, quoted in (
        ({"job_variables": {"command": touch}}, "'command'"),
        ({"job_variables": {"env": {"PYTHONPATH": str(tmp_path)}}}, "'env'"),
        ({"job_variables": {"env.PREFECT__FLOW_ENTRYPOINT": "evil.main"}}, "'env.PREFECT__FLOW_ENTRYPOINT'"),
        ({"job_variables": {"working_dir": str(tmp_path)}}, "'working_dir'"),
        ({"entrypoint": f"{tmp_path}/evil.py:main"}, "entrypoint"),
        ({"entrypoint": "pipelines.processes.output_of"}, "entrypoint"),
        ({"pull_steps": shell}, "pull steps"),
        ({"path": str(tmp_path)}, "path"),
    ):
        message = failure_message(site, create_deployment(site, flow, **change))
        assert message.startswith("Refused: deployment 'attack "), message
        assert quoted in message
    for variables in ({"command": touch}, {"env": {"LD_PRELOAD": "/tmp/evil.so"}}):
        message = failure_message(site, create_deployment(site, flow), job_variables=variables)
        assert message.startswith(f"Refused: the run sets job variable {next(iter(variables))!r}")
    assert not marker.exists()
    # The project's own flow runs, and fails with its own message. The number of GPUs is an allowed variable.
    message = failure_message(site, create_deployment(site, flow), job_variables={"gpus": 2})
    assert "no-such-revision" in message
    assert not message.startswith("Refused")
    # The run has labelled itself with its heartbeat interval, for the keeper.
    (run,) = (run for run in site.request("POST", "/flow_runs/filter", {}) if run["state"]["message"] == message)
    assert run["labels"][HEARTBEAT_LABEL] == int(SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def test_pool_with_a_changed_template_runs_nothing(site, flow, tmp_path):
    pool = site.request("GET", "/work_pools/cpu")["base_job_template"]
    changed = json.loads(json.dumps(pool))
    changed["variables"]["properties"]["command"]["default"] = f"touch {tmp_path}/executed"
    site.request("PATCH", "/work_pools/cpu", {"base_job_template": changed})
    try:
        # The agent reads a new template with its heartbeat, every 30 s.
        wait_until(
            lambda: "sets 'command'" in failure_message(site, create_deployment(site, flow)),
            "the agent to read the template",
        )
    finally:
        site.request("PATCH", "/work_pools/cpu", {"base_job_template": pool})
    assert not (tmp_path / "executed").exists()


def test_no_log_contains_the_password(site):
    for log in site.folder.glob("*.log"):
        assert LOGIN.partition(":")[2] not in log.read_text(errors="replace"), log.name
