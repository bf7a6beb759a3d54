"""Who can make a site run something, against a real server with an agent: its own pages and programs alone."""

import json
from uuid import uuid4

import httpx
import pytest
from sites import LOGIN, Site, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from flows import SETTINGS
from flows.run_metadata import HEARTBEAT_LABEL

pytestmark = pytest.mark.integration

OURS = "flows.prepare_data.prepare_data"
WRONG = "tests:wrong"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server and an agent for pool ``cpu``, without the project's deployments."""
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.start("server", "cpu")
        until(lambda: "started!" in (made.folder / "cpu.log").read_text(), "the agent")
        yield made
    finally:
        print((made.folder / "cpu.log").read_text(errors="replace")[-4000:])
        made.power_loss(*made.running)


@pytest.fixture(scope="module")
def flow(site) -> str:
    return site.ask("POST", "/flows/", {"name": "attacked"})["id"]


def deploy(site, flow: str, **more) -> str:
    """Make a deployment by the API; gives its id."""
    body = {
        "name": f"attack {uuid4()}",
        "flow_id": flow,
        "work_pool_name": "cpu",
        "entrypoint": OURS,
        "pull_steps": [],
    } | more
    return site.ask("POST", "/deployments/", body)["id"]


def outcome(site, deployment: str, **more) -> str:
    """Start a run and wait for its end; gives the message of its last state."""
    body = {"state": {"type": "SCHEDULED"}, "parameters": {"revision": "no-such-revision"}} | more
    run = site.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
    assert site.ended(run) == "Failed"
    return site.ask("GET", f"/flow_runs/{run}")["state"]["message"]


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
def test_a_page_of_another_site_starts_no_run_even_with_the_password(site, flow, headers, status):
    """A POST of plain text needs no preflight: CORS alone would run it, and hide the answer."""
    deployment = deploy(site, flow)
    headers = {name: value.replace("{port}", str(port(site))) for name, value in headers.items()}
    answer = httpx.post(
        f"{site.api}/deployments/{deployment}/create_flow_run",
        content=json.dumps({"state": {"type": "SCHEDULED"}}),
        headers={"Content-Type": "text/plain"} | headers,
        auth=tuple(LOGIN.split(":")),
    )
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert site.ask("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}}) == []


def test_without_the_password_nothing_is_read_or_written(site):
    for login in (None, WRONG, ":", "tests:"):
        auth = tuple(login.split(":")) if login else None
        for method, path in (("POST", "/flow_runs/filter"), ("GET", "/admin/version"), ("POST", "/flows/")):
            assert httpx.request(method, f"{site.api}{path}", json={}, auth=auth).status_code == 401
    assert httpx.get(f"{site.api}/health").status_code == 200


def test_the_sites_own_pages_are_served_and_may_ask(site):
    root = site.api.removesuffix("/api")
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    page = httpx.get(root, headers={"Accept": "text/html"} | navigation, follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text
    assert page.headers["x-frame-options"] == "DENY"
    assert httpx.get(root, headers=navigation | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert httpx.get(root, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(f"{root}/ui-settings").json()["auth"] == "BASIC"
    for name in ("127.0.0.1", "localhost", "[::1]"):  # the UI may be opened by one name and ask by another
        origin = f"http://{name}:{port(site)}"
        answer = httpx.post(
            f"{site.api}/flow_runs/filter", json={}, headers={"Origin": origin}, auth=tuple(LOGIN.split(":"))
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize("path", ["/events/in", "/events/out", "/logs/out", "/task_runs/subscriptions/scheduled"])
def test_a_websocket_is_opened_for_the_sites_own_pages_with_the_password_alone(site, path):
    own = f"http://localhost:{port(site)}"
    assert greet(site, path, LOGIN, origin=own) == greet(site, path, LOGIN) == "auth_success"
    with pytest.raises(ConnectionClosed):
        greet(site, path, WRONG)
    for refused in ({"origin": "http://evil.example"}, {"additional_headers": {"Sec-Fetch-Site": "cross-site"}}):
        with pytest.raises(InvalidStatus, match="403"):
            greet(site, path, LOGIN, **refused)


def greet(site, path: str, login: str, **more) -> str:
    address = f"{site.api.replace('http', 'ws', 1)}{path}"
    with connect(address, subprotocols=[Subprotocol("prefect")], proxy=None, **more) as socket:
        socket.send(json.dumps({"type": "auth", "token": login}))
        return json.loads(socket.recv(10))["type"]


def test_an_agent_runs_what_the_project_has_deployed_and_nothing_else(site, flow, tmp_path):
    mark = tmp_path / "executed"
    touch = f"touch {mark}"
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n\n\ndef main():\n    pass\n"
    )
    shell = [{"prefect.deployments.steps.run_shell_script": {"script": touch}}]
    for change, named in (
        ({"job_variables": {"command": touch}}, "'command'"),
        ({"job_variables": {"env": {"PYTHONPATH": str(tmp_path)}}}, "'env'"),
        ({"job_variables": {"env.PREFECT__FLOW_ENTRYPOINT": "evil.main"}}, "'env.PREFECT__FLOW_ENTRYPOINT'"),
        ({"job_variables": {"working_dir": str(tmp_path)}}, "'working_dir'"),
        ({"entrypoint": f"{tmp_path}/evil.py:main"}, "entrypoint"),
        ({"entrypoint": "pipelines.processes.output_of"}, "entrypoint"),
        ({"pull_steps": shell}, "pull steps"),
        ({"path": str(tmp_path)}, "path"),
    ):
        said = outcome(site, deploy(site, flow, **change))
        assert said.startswith("Refused: deployment 'attack "), said
        assert named in said
    for variables in ({"command": touch}, {"env": {"LD_PRELOAD": "/tmp/evil.so"}}):
        said = outcome(site, deploy(site, flow), job_variables=variables)
        assert said.startswith(f"Refused: the run sets job variable {next(iter(variables))!r}")
    assert not mark.exists()
    # What is the project's own runs, and its flow says what is wrong; a run on GPUs says how many.
    said = outcome(site, deploy(site, flow), job_variables={"gpus": 2})
    assert "no-such-revision" in said
    assert not said.startswith("Refused")
    # It has told the keeper how often it gives a sign of life, by the setting that its agent gave it.
    (run,) = (run for run in site.ask("POST", "/flow_runs/filter", {}) if run["state"]["message"] == said)
    assert run["labels"][HEARTBEAT_LABEL] == int(SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def test_a_pool_whose_template_was_changed_serves_nothing(site, flow, tmp_path):
    pool = site.ask("GET", "/work_pools/cpu")["base_job_template"]
    changed = json.loads(json.dumps(pool))
    changed["variables"]["properties"]["command"]["default"] = f"touch {tmp_path}/executed"
    site.ask("PATCH", "/work_pools/cpu", {"base_job_template": changed})
    try:
        # The agent takes a new template with its heartbeat, within 30 s.
        until(lambda: "sets 'command'" in outcome(site, deploy(site, flow)), "the template to be read", 120)
    finally:
        site.ask("PATCH", "/work_pools/cpu", {"base_job_template": pool})
    assert not (tmp_path / "executed").exists()


def test_no_log_names_the_password(site):
    for log in site.folder.glob("*.log"):
        assert LOGIN.partition(":")[2] not in log.read_text(errors="replace"), log.name
