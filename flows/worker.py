"""Prefect's worker, which runs the flows of this project alone: ``python -m flows.worker --type process --pool cpu``.

A worker of Prefect runs what a deployment or a run names: another command, another environment, pull steps, an
entrypoint anywhere. A client with write access to the server could run programs on every agent. The worker of this
module validates a run before it starts. A refused run ends in state Failed with the reason, so that the keeper does not
retry it. The arguments are those of ``prefect worker start``; the types are ``process``, ``docker`` and ``kubernetes``.
"""

import argparse
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.cli import app
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from prefect.workers.base import BaseWorker

from flows.agent import PROCESS
from models.command_line import entry_point
from models.errors import UserError

DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"
JOB_VARIABLES = ("gpus",)  # what the project's own runs set; see flows.runs.start
OF_THE_AGENT = ("command", "env", "working_dir")  # what the template of a process pool must leave alone


def entrypoints() -> set[str]:
    """Those of the project's deployments."""
    return {found["entrypoint"] for found in yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))["deployments"]}


def refusal(
    run: FlowRun,
    deployment: DeploymentResponse | None,
    allowed: Collection[str],
    template: dict[str, Any] | None = None,
) -> str | None:
    """Why an agent does not run this, in a sentence, or None. Values stay out of it: they may hold secrets.

    Args:
        allowed: entrypoints.
        template: of the work pool, if it is one of processes; what containers run is for their pool to say.
    """
    return next(_objections(run, deployment, allowed, template or {}), None)


def _objections(
    run: FlowRun, deployment: DeploymentResponse | None, allowed: Collection[str], template: dict[str, Any]
) -> Iterator[str]:
    if deployment is None:
        yield "Refused: the run has no deployment; start one of the deployments of prefect.yaml."
        return
    named = f"deployment {deployment.name!r}"
    for owner, variables in (("the run", run.job_variables), (named, deployment.job_variables)):
        for name, value in sorted((variables or {}).items()):
            if value and name not in JOB_VARIABLES:
                yield f"Refused: {owner} sets job variable {name!r}; agents take {', '.join(JOB_VARIABLES)} alone."
    if deployment.entrypoint not in allowed:
        yield f"Refused: {named} has an entrypoint that is none of prefect.yaml's: {deployment.entrypoint!r}."
    if deployment.pull_steps:
        yield f"Refused: {named} has pull steps; agents run the project that they are installed with."
    if deployment.storage_document_id or deployment.path not in (None, "", "."):
        yield f"Refused: {named} names a path or a storage; agents run the project that they are installed with."
    job = template.get("job_configuration", {})
    properties = template.get("variables", {}).get("properties", {})
    for name in OF_THE_AGENT:
        is_fixed = job.get(name) not in (None, {}, f"{{{{ {name} }}}}")
        if is_fixed or properties.get(name, {}).get("default"):
            yield (
                f"Refused: the template of the work pool sets {name!r}; reset the template, and set variables in the "
                "environment of the agent."
            )


def guarded(kind: str) -> type[BaseWorker]:
    """Prefect's worker class of a type, with the check before each run; it takes the place of Prefect's own.

    Raises:
        UserError: no such worker is installed.
    """
    base = BaseWorker.get_worker_class_from_type(kind)
    if base is None:
        raise UserError(f"No worker of type {kind!r} is installed; for containers, pip install prefect-{kind}.")
    with warnings.catch_warnings():  # Prefect warns that the type is taken already, which is meant
        warnings.simplefilter("ignore")

        class Guarded(base):
            """Checks a run before Prefect's worker takes it."""

            async def _submit_run(self, flow_run: FlowRun) -> None:
                deployment = await _deployment_of(self.client, flow_run)
                # By the worker's own type: the server's word for the pool's type may be another.
                template = self.work_pool.base_job_template if kind == PROCESS else None
                if reason := refusal(flow_run, deployment, entrypoints(), template):
                    await _fail(self, flow_run, reason)
                else:
                    await super()._submit_run(flow_run)

    return Guarded


async def _deployment_of(client, run: FlowRun) -> DeploymentResponse | None:
    try:
        return await client.read_deployment(run.deployment_id) if run.deployment_id else None
    except ObjectNotFound:  # deleted meanwhile
        return None


async def _fail(worker: BaseWorker, run: FlowRun, reason: str) -> None:
    """End a run before it begins, as Prefect's worker ends one whose deployment is gone."""
    worker.get_flow_run_logger(run).error(reason)
    try:
        await worker.client.set_flow_run_state(run.id, Failed(message=reason), force=True)
    finally:
        worker._release_limit_slot(run.id)
        worker._submitting_flow_run_ids.discard(run.id)
        if worker._cancelling_observer is not None:
            worker._cancelling_observer.remove_in_flight_flow_run_id(run.id)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve a work pool with the flows of this project alone.", allow_abbrev=False
    )
    parser.add_argument("-t", "--type", default=PROCESS, help=f"of the pool: process, docker, kubernetes ({PROCESS})")
    arguments, rest = parser.parse_known_args()
    guarded(arguments.type)
    sys.argv[1:] = ["worker", "start", "--type", arguments.type, *rest]
    app()


if __name__ == "__main__":
    main()
