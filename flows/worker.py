"""Prefect's worker, restricted to the flows of this project: ``python -m flows.worker --type process --pool cpu``.

A deployment or a run may specify the command, environment, pull steps and entrypoint that Prefect's worker executes. So
any client with write access to the server could run programs on every agent. The worker of this module validates a run
before it starts. A refused run ends in state Failed with the reason, so that the keeper does not restart it. The
arguments are those of ``prefect worker start``; types are ``process``, ``docker``, ``kubernetes``.
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

from flows.agent import PROCESS_POOL
from models.command_line import entry_point
from models.errors import UserError

DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"
ALLOWED_JOB_VARIABLES = ("gpus",)  # set by flows.child_runs
INSTALLED_CODE_ONLY = "agents run the code that is installed on their host"
RESERVED_VARIABLES = ("command", "env", "working_dir")  # a process pool's template must not set them


def read_allowed_entrypoints() -> set[str]:
    """Return the entrypoints of the deployments in prefect.yaml."""
    deployments = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))["deployments"]
    return {deployment["entrypoint"] for deployment in deployments}


def find_refusal_reason(
    run: FlowRun,
    deployment: DeploymentResponse | None,
    entrypoints: Collection[str],
    template: dict[str, Any] | None = None,
) -> str | None:
    """Return the reason to refuse a run, or None. The reason contains no values, which may be secrets.

    Args:
        entrypoints: entrypoints of prefect.yaml.
        template: base job template of a process pool. For containers, the pool defines what runs.
    """
    return next(_list_refusal_reasons(run, deployment, entrypoints, template or {}), None)


def _list_refusal_reasons(
    run: FlowRun, deployment: DeploymentResponse | None, entrypoints: Collection[str], template: dict[str, Any]
) -> Iterator[str]:
    if deployment is None:
        yield "Refused: the run has no deployment; start one of the deployments of prefect.yaml."
        return
    deployment_label = f"deployment {deployment.name!r}"
    for source, variables in (("the run", run.job_variables), (deployment_label, deployment.job_variables)):
        for name, value in sorted((variables or {}).items()):
            if value and name not in ALLOWED_JOB_VARIABLES:
                allowed = ", ".join(ALLOWED_JOB_VARIABLES)
                yield f"Refused: {source} sets job variable {name!r}; agents accept only {allowed}."
    if deployment.entrypoint not in entrypoints:
        yield f"Refused: {deployment_label} has an entrypoint that is not in prefect.yaml: {deployment.entrypoint!r}."
    if deployment.pull_steps:
        yield f"Refused: {deployment_label} has pull steps; {INSTALLED_CODE_ONLY}."
    if deployment.storage_document_id or deployment.path not in (None, "", "."):
        yield f"Refused: {deployment_label} has a path or a storage block; {INSTALLED_CODE_ONLY}."
    yield from _list_template_refusal_reasons(template)


def _list_template_refusal_reasons(template: dict[str, Any]) -> Iterator[str]:
    job = template.get("job_configuration", {})
    properties = template.get("variables", {}).get("properties", {})
    for name in RESERVED_VARIABLES:
        is_fixed = job.get(name) not in (None, {}, f"{{{{ {name} }}}}")
        if is_fixed or properties.get(name, {}).get("default"):
            yield (
                f"Refused: the base job template of the work pool sets {name!r}. Restore the default template with "
                f"`prefect work-pool get-default-base-job-template --type {PROCESS_POOL} --file template.json` and "
                "`prefect work-pool update POOL --base-job-template template.json`, and set variables in the agent's "
                "environment."
            )


def make_checked_worker(pool_type: str) -> type[BaseWorker]:
    """Return a subclass of Prefect's worker for a pool type that validates runs, and register it in its place.

    Raises:
        UserError: no worker for this type is installed.
    """
    base = BaseWorker.get_worker_class_from_type(pool_type)
    if base is None:
        raise UserError(f"No worker for pool type {pool_type!r} is installed; run `pip install prefect-{pool_type}`.")
    with warnings.catch_warnings():  # Prefect warns that a worker of this type exists, which is intended
        warnings.simplefilter("ignore")

        class CheckedWorker(base):
            """Validates a run before Prefect's worker submits it."""

            async def _submit_run(self, flow_run: FlowRun) -> None:
                deployment = await _read_deployment(self.client, flow_run)
                # The worker's own type decides, since the server may report another type for the pool.
                template = self.work_pool.base_job_template if pool_type == PROCESS_POOL else None
                if reason := find_refusal_reason(flow_run, deployment, read_allowed_entrypoints(), template):
                    await fail_run(self, flow_run, reason)
                else:
                    await super()._submit_run(flow_run)

    return CheckedWorker


async def _read_deployment(client, run: FlowRun) -> DeploymentResponse | None:
    try:
        return await client.read_deployment(run.deployment_id) if run.deployment_id else None
    except ObjectNotFound:  # deleted meanwhile
        return None


async def fail_run(worker: BaseWorker, run: FlowRun, reason: str) -> None:
    """Set a run to Failed before it starts, as Prefect's worker does for a run whose deployment was deleted."""
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
        description="Serve a work pool with the flows of this project only.", allow_abbrev=False
    )
    parser.add_argument(
        "-t", "--type", default=PROCESS_POOL, help=f"pool type: process, docker or kubernetes (default: {PROCESS_POOL})"
    )
    arguments, rest = parser.parse_known_args()
    make_checked_worker(arguments.type)
    sys.argv[1:] = ["worker", "start", "--type", arguments.type, *rest]
    app()


if __name__ == "__main__":
    main()
