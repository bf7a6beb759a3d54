"""What a worker refuses to run: whatever a run, its deployment or its pool says of what is executed."""

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

OURS = "flows.train_adapter.train_adapter"


def run(**variables) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="a run", deployment_id=uuid4(), job_variables=variables)


def deployment(**more) -> DeploymentResponse:
    return DeploymentResponse(id=uuid4(), name="train", flow_id=uuid4(), **{"entrypoint": OURS} | more)


def template(**defaults) -> dict:
    """As Prefect makes one, with other defaults of its variables."""
    made = ProcessWorker.get_default_base_job_template()
    for name, value in defaults.items():
        made["variables"]["properties"][name]["default"] = value
    return made


def test_the_projects_own_runs_pass():
    allowed = worker.allowed_entrypoints()
    assert {OURS, "flows.sweep_parameters.sweep_parameters"} <= allowed
    for entrypoint in allowed:
        assert worker.find_objection(run(), deployment(entrypoint=entrypoint), allowed, template()) is None
    for variables in ({"gpus": 2}, {"command": None}, {"env": {}}):
        assert worker.find_objection(run(**variables), deployment(job_variables=variables), allowed) is None
    assert worker.find_objection(run(), deployment(pull_steps=[], path=""), allowed) is None
    emptied = template()
    emptied["job_configuration"] |= {"env": {}, "command": None}
    assert worker.find_objection(run(), deployment(), allowed, emptied) is None


@pytest.mark.parametrize(
    "name",
    ["command", "env", "env.PATH", "env.PREFECT_API_URL", "working_dir", "image", "volumes", "job_manifest", "gpus.x"],
)
def test_a_variable_that_the_project_does_not_set_is_refused_by_name(name):
    for where in (run(**{name: "secret"}), run()):
        its = {name: "secret"} if not where.job_variables else {}
        reason = worker.find_objection(where, deployment(job_variables=its), [OURS])
        assert reason.startswith("Refused: the run sets" if not its else "Refused: deployment 'train' sets")
        assert repr(name) in reason
        assert "secret" not in reason


@pytest.mark.parametrize(
    "more",
    [
        {"entrypoint": "flows.train_adapter.free_the_gpu"},
        {"entrypoint": "flows/train_adapter.py:train_adapter"},
        {"entrypoint": f"{OURS}_"},
        {"entrypoint": f" {OURS}"},
        {"entrypoint": None},
        {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "true"}}]},
        {"path": "/srv"},
        {"path": ".."},
        {"storage_document_id": uuid4()},
    ],
)
def test_a_deployment_of_other_code_is_refused(more):
    assert worker.find_objection(run(), deployment(**more), [OURS]).startswith("Refused: deployment 'train'")


def test_a_run_without_a_deployment_is_refused():
    assert "no deployment" in worker.find_objection(run(), None, [OURS])


@pytest.mark.parametrize("name", ["command", "env", "working_dir"])
@pytest.mark.parametrize("value", ["{{ gpus }}", {"PATH": "/srv"}])
def test_a_process_pool_that_decides_what_is_executed_is_refused(name, value):
    """A template may hand on a variable that passes, too."""
    fixed = template()
    fixed["job_configuration"][name] = value
    for changed in (template(**{name: value}), fixed):
        assert f"sets {name!r}" in worker.find_objection(run(), deployment(), [OURS], changed)


class Client:
    """A server that knows one deployment, and keeps the states that it is told."""

    def __init__(self, found: DeploymentResponse):
        self.found, self.states = found, []

    async def read_deployment(self, _) -> DeploymentResponse:
        return self.found

    async def set_flow_run_state(self, run, state, force: bool) -> None:
        self.states.append((run, state, force))


@pytest.mark.parametrize(("variables", "defaults"), [({}, {}), ({"command": "true"}, {}), ({}, {"command": "true"})])
@pytest.mark.parametrize("said", ["process", "docker"])  # by the server, of the pool's type
def test_what_is_refused_has_failed_before_it_begins_and_frees_its_place(variables, defaults, said, monkeypatch):
    begun = []

    async def submit(self, flow_run) -> None:
        begun.append(flow_run)

    monkeypatch.setattr(ProcessWorker, "_submit_run", submit)

    async def offer() -> None:
        made = worker.make_checked_worker("process")("cpu", limit=1)
        made._client, made._limiter = Client(deployment()), anyio.CapacityLimiter(1)
        made._work_pool = WorkPool(name="cpu", type=said, base_job_template=template(**defaults))
        made.get_flow_run_logger = lambda run: logging.getLogger("worker")  # Prefect's sends lines to a server
        one = run(**variables)
        made._limiter.acquire_on_behalf_of_nowait(one.id)
        made._submitting_flow_run_ids.add(one.id)
        await made._submit_run(one)
        is_refused = bool(variables or defaults)
        assert begun == ([] if is_refused else [one])
        if is_refused:
            ((failed, state, force),) = made._client.states
            assert (failed, state.is_failed(), force) == (one.id, True, True)
            assert "'command'" in state.message
            assert made._limiter.available_tokens == 1
            assert made._submitting_flow_run_ids == set()

    anyio.run(offer)


def test_the_checked_worker_takes_the_place_of_prefects_own():
    made = worker.make_checked_worker("process")
    assert issubclass(made, ProcessWorker)
    assert BaseWorker.get_worker_class_from_type("process") is made
    with pytest.raises(UserError, match="pip install prefect-docker"):
        worker.make_checked_worker("docker")
