"""The worker's checks: runs, deployments and pools that set what is executed are refused."""

import logging
from uuid import uuid4

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from flows import worker
from models.errors import UserError

ENTRYPOINT = "flows.train_adapter.train_adapter"


def make_run(**variables) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="a run", deployment_id=uuid4(), job_variables=variables)


def make_deployment(**fields) -> DeploymentResponse:
    return DeploymentResponse(id=uuid4(), name="train", flow_id=uuid4(), **{"entrypoint": ENTRYPOINT} | fields)


def make_template(**defaults) -> dict:
    """Return Prefect's base job template with other defaults."""
    template = ProcessWorker.get_default_base_job_template()
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    return template


def test_runs_of_the_project_pass():
    allowed = worker.read_allowed_entrypoints()
    assert {ENTRYPOINT, "flows.sweep_parameters.sweep_parameters"} <= allowed
    for entrypoint in allowed:
        assert (
            worker.find_refusal_reason(make_run(), make_deployment(entrypoint=entrypoint), allowed, make_template())
            is None
        )
    for variables in ({"gpus": 2}, {"command": None}, {"env": {}}):
        assert (
            worker.find_refusal_reason(make_run(**variables), make_deployment(job_variables=variables), allowed) is None
        )
    assert worker.find_refusal_reason(make_run(), make_deployment(pull_steps=[], path=""), allowed) is None
    template = make_template()
    template["job_configuration"] |= {"env": {}, "command": None}
    assert worker.find_refusal_reason(make_run(), make_deployment(), allowed, template) is None


@pytest.mark.parametrize(
    "name",
    ["command", "env", "env.PATH", "env.PREFECT_API_URL", "working_dir", "image", "volumes", "job_manifest", "gpus.x"],
)
def test_other_job_variable_is_refused_by_name(name):
    variables = {name: "secret"}
    for run, deployment, source in (
        (make_run(**variables), make_deployment(), "the run"),
        (make_run(), make_deployment(job_variables=variables), "deployment 'train'"),
    ):
        reason = worker.find_refusal_reason(run, deployment, [ENTRYPOINT])
        assert reason.startswith(f"Refused: {source} sets")
        assert repr(name) in reason
        assert "secret" not in reason


@pytest.mark.parametrize(
    "fields",
    [
        {"entrypoint": "flows.train_adapter.free_the_gpu"},
        {"entrypoint": "flows/train_adapter.py:train_adapter"},
        {"entrypoint": f"{ENTRYPOINT}_"},
        {"entrypoint": f" {ENTRYPOINT}"},
        {"entrypoint": None},
        {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "true"}}]},
        {"path": "/srv"},
        {"path": ".."},
        {"storage_document_id": uuid4()},
    ],
)
def test_deployment_of_other_code_is_refused(fields):
    assert worker.find_refusal_reason(make_run(), make_deployment(**fields), [ENTRYPOINT]).startswith(
        "Refused: deployment 'train'"
    )


def test_run_without_a_deployment_is_refused():
    assert "no deployment" in worker.find_refusal_reason(make_run(), None, [ENTRYPOINT])


@pytest.mark.parametrize("name", ["command", "env", "working_dir"])
@pytest.mark.parametrize("value", ["{{ gpus }}", {"PATH": "/srv"}])
def test_process_pool_that_sets_what_is_executed_is_refused(name, value):
    """A template could forward an allowed variable, too."""
    template = make_template()
    template["job_configuration"][name] = value
    for changed in (make_template(**{name: value}), template):
        assert f"sets {name!r}" in worker.find_refusal_reason(make_run(), make_deployment(), [ENTRYPOINT], changed)


class Client:
    """A stand-in for the server with one deployment; it records new states."""

    def __init__(self, deployment: DeploymentResponse):
        self.deployment, self.states = deployment, []

    async def read_deployment(self, _) -> DeploymentResponse:
        return self.deployment

    async def set_flow_run_state(self, run, state, force: bool) -> None:
        self.states.append((run, state, force))


@pytest.mark.parametrize(("variables", "defaults"), [({}, {}), ({"command": "true"}, {}), ({}, {"command": "true"})])
@pytest.mark.parametrize("reported_type", ["process", "docker"])  # of the pool, by the server
def test_refused_run_fails_before_it_starts_and_frees_its_slot(variables, defaults, reported_type, monkeypatch):
    submitted = []

    async def submit(self, flow_run) -> None:
        submitted.append(flow_run)

    monkeypatch.setattr(ProcessWorker, "_submit_run", submit)

    async def submit_run() -> None:
        checked = worker.make_checked_worker("process")("cpu", limit=1)
        checked._client, checked._limiter = Client(make_deployment()), anyio.CapacityLimiter(1)
        checked._work_pool = WorkPool(name="cpu", type=reported_type, base_job_template=make_template(**defaults))
        checked.get_flow_run_logger = lambda flow_run: logging.getLogger("worker")  # Prefect's logger sends to a server
        run = make_run(**variables)
        checked._limiter.acquire_on_behalf_of_nowait(run.id)
        checked._submitting_flow_run_ids.add(run.id)
        await checked._submit_run(run)
        is_refused = bool(variables or defaults)
        assert submitted == ([] if is_refused else [run])
        if is_refused:
            ((run_id, state, force),) = checked._client.states
            assert (run_id, state.is_failed(), force) == (run.id, True, True)
            assert "'command'" in state.message
            assert checked._limiter.available_tokens == 1
            assert checked._submitting_flow_run_ids == set()

    anyio.run(submit_run)


def test_checked_worker_replaces_prefects_own():
    checked = worker.make_checked_worker("process")
    assert issubclass(checked, ProcessWorker)
    assert BaseWorker.get_worker_class_from_type("process") is checked
    with pytest.raises(UserError, match="pip install prefect-docker"):
        worker.make_checked_worker("docker")
