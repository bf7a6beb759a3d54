"""The keeper, a monitor that restarts crashed runs: ``python -m flows.keeper``, one per server.

Prefect's workers report a flow whose process died, but nothing reports a worker or a host that died, and Prefect
restarts none of them. The keeper sets a run without heartbeats to Crashed, and schedules a crashed run again, up to
``TUNELINE_RESTARTS`` times; after that the run is set to Failed, with a notification (:mod:`flows.notifications`).

The keeper measures silence on its own monotonic clock, and counts heartbeats instead of reading their timestamps,
because the clocks of hosts differ and may jump. No run is set to Crashed during an outage of the server and for two
minutes after. Several keepers on one server do not interfere.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed

from flows import notifications
from flows.agent import PROCESS_POOL, wait_for_server
from flows.child_runs import cancel_children
from flows.lifecycle import max_restarts
from flows.run_metadata import HEARTBEAT_LABEL, PROJECT_TAG, UNSUCCESSFUL, parent_from_tag
from models.command_line import entry_point

POLL_INTERVAL = 5.0  # seconds
MISSED_HEARTBEATS = 2  # missed heartbeats before a run counts as dead
DELIVERY_DELAY = 20.0  # seconds until the server has stored a heartbeat
# Seconds between heartbeats of a run that has not reported its own interval: Prefect's default, as in containers.
DEFAULT_HEARTBEAT = 180.0
OUTAGE_GRACE = 120.0  # seconds: a server without its database drops heartbeats, and takes a while to recover
OUTAGE_AFTER = 15.0  # seconds of failed requests that count as an outage
# Seconds between Pending and Running, by pool type: images are pulled, and pods wait for a free node.
START_TIMEOUTS = {PROCESS_POOL: 90.0, "docker": 1800.0}
DEFAULT_START_TIMEOUT = 3600.0  # Kubernetes, and other pool types
RESCHEDULE_DELAY = 15.0  # seconds between a crash and the retry: a worker may still hold the run's concurrency slot
MAX_CRASH_AGE = 86_400.0  # seconds: a keeper ignores runs that crashed longer ago when it starts
HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
# Prefect's default filter ends at the server's current time; a host's clock may be ahead.
ANY_TIME = {"since": "1970-01-01T00:00:00Z", "until": "9999-01-01T00:00:00Z"}

log = logging.getLogger("tuneline.keeper")


@dataclass
class Activity:
    """The last activity of a run: state and number of heartbeats, and seconds for which neither has changed."""

    value: str
    silent: float = 0.0


@dataclass
class Keeper:
    """State between two rounds of checks.

    Attributes:
        seen: last activity, by run.
        ignored: runs that had crashed long before the keeper started; None before the first round.
        pool_types: by pool name; read again in each round.
    """

    client: SyncPrefectClient
    seen: dict[UUID, Activity] = field(default_factory=dict)
    ignored: set[UUID] | None = None
    pool_types: dict[str, str] = field(default_factory=dict)

    def check_runs(self, seconds: float) -> None:
        """Check every run once.

        Args:
            seconds: since the last round, while the server was reachable.
        """
        self.pool_types.clear()  # a pool may have been recreated with another type
        alive = self.read_runs(StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
        crashed = self.read_runs(StateType.CRASHED)
        if self.ignored is None:
            self.ignored = {run.id for run in crashed if time.time() - run.state.timestamp.timestamp() > MAX_CRASH_AGE}
        self.ignored -= {run.id for run in alive}  # rescheduled by hand
        self.update_activity([*alive, *crashed], seconds)
        for run in alive:
            self.end_if_silent(run)
        for run in crashed:
            self.reschedule(run)
        self.cancel_missed_schedules(self.read_runs(StateType.SCHEDULED))

    def read_runs(self, *types: StateType) -> list[FlowRun]:
        """Return the runs of the project's deployments in one of these states, latest expected start first."""
        in_states = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[PROJECT_TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        )
        runs = self.client.read_flow_runs(
            flow_run_filter=in_states, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
        )
        return [run for run in runs if run.deployment_id is not None]

    def update_activity(self, runs: Iterable[FlowRun], seconds: float) -> None:
        """Add ``seconds`` of silence to each run whose activity has not changed; forget all other runs."""
        activities = {run.id: self.activity_of(run) for run in runs}
        for run, value in activities.items():
            if run not in self.seen or self.seen[run].value != value:
                self.seen[run] = Activity(value)
            else:
                self.seen[run].silent += seconds
        self.seen = {run: activity for run, activity in self.seen.items() if run in activities}

    def reset_silence(self) -> None:
        """Restart all silence after an outage of the server, with a grace period."""
        for activity in self.seen.values():
            activity.silent = -OUTAGE_GRACE

    def activity_of(self, run: FlowRun) -> str:
        """Return state id and number of heartbeats, which change while the run is alive."""
        of_run = {"event": {"name": [HEARTBEAT_EVENT]}, "any_resource": {"id": [f"prefect.flow-run.{run.id}"]}}
        body = {"filter": of_run | {"occurred": ANY_TIME}, "limit": 1}
        return f"{run.state_id} {self.client.request('POST', '/events/filter', json=body).json()['total']}"

    def pool_type(self, run: FlowRun) -> str:
        """Return the type of the run's pool, such as ``process``; empty if the run has no pool or it was deleted."""
        pool = run.work_pool_name
        if pool and pool not in self.pool_types:
            with suppress(ObjectNotFound):
                self.pool_types[pool] = self.client.read_work_pool(pool).type
        return self.pool_types.get(pool, "")

    def silence_timeout(self, run: FlowRun) -> float:
        """Return the seconds of silence after which a run is dead: by pool type before it starts, then by heartbeat."""
        pool_type = self.pool_type(run)
        if run.state.type == StateType.PENDING:
            return START_TIMEOUTS.get(pool_type, DEFAULT_START_TIMEOUT)
        heartbeat = run.labels.get(HEARTBEAT_LABEL)
        if not isinstance(heartbeat, int | float):  # the run has not reported it yet
            configured = (
                get_current_settings().flows.heartbeat_frequency or 0
            )  # the same for all agents of this project
            heartbeat = configured if pool_type == PROCESS_POOL else DEFAULT_HEARTBEAT
        return MISSED_HEARTBEATS * heartbeat + DELIVERY_DELAY if heartbeat else math.inf

    def end_if_silent(self, run: FlowRun) -> None:
        """Set a run that has been silent for too long to Crashed, or to Cancelled if it was being cancelled."""
        silent = self.seen[run.id].silent
        if silent <= self.silence_timeout(run):
            return
        if run.state.type == StateType.PENDING:
            self.set_state(run, Crashed(message=f"Submitted by a worker, but not started within {silent:.0f} s."))
        elif run.state.type == StateType.CANCELLING:
            self.set_state(run, Cancelled(message=f"Crashed while being cancelled: no heartbeat for {silent:.0f} s."))
        else:
            self.set_state(run, Crashed(message=f"No heartbeat for {silent:.0f} s: its process or host died."))

    def reschedule(self, run: FlowRun) -> None:
        """Schedule a crashed run again; set it to Cancelled or Failed if a retry is pointless."""
        if run.id in self.ignored or self.seen[run.id].silent < RESCHEDULE_DELAY:
            return
        if self.has_dead_parent(run):
            self.set_state(run, Cancelled(message="The run that started it has failed or was cancelled."))
            return
        counts = Counter(state.type for state in self.client.read_flow_run_states(run.id))
        if counts[StateType.CANCELLING] > counts[StateType.CANCELLED]:
            self.set_state(run, Cancelled(message="Crashed while being cancelled."))
            return
        crashes = counts[StateType.CRASHED]
        if crashes <= max_restarts():
            self.set_state(
                run, AwaitingRetry(message=f"Rescheduled after a crash: restart {crashes} of {max_restarts()}.")
            )
        else:
            self.fail(run, f"Crashed {crashes} times. Last crash: {run.state.message or 'unknown'}")

    def fail(self, run: FlowRun, message: str) -> None:
        """Set a run to Failed, notify, and end the runs that it has started."""
        self.set_state(run, Failed(message=message))
        notifications.notify("failed", message, run=run.name, link=notifications.flow_run_url(run.id))
        cancel_children(self.client, run.id)

    def has_dead_parent(self, run: FlowRun) -> bool:
        """Return whether the run that started this one has failed or was cancelled."""
        for parent in filter(None, map(parent_from_tag, run.tags)):
            with suppress(ObjectNotFound):
                if self.client.read_flow_run(parent).state.type in UNSUCCESSFUL:
                    return True
        return False

    def cancel_missed_schedules(self, scheduled: Iterable[FlowRun]) -> None:
        """Keep the latest of a deployment's late scheduled runs and cancel the earlier ones.

        Args:
            scheduled: latest expected start first.
        """
        served: set[UUID] = set()
        for run in scheduled:
            if not (run.auto_scheduled and run.state_name == "Late"):
                continue
            if run.deployment_id in served:
                self.set_state(run, Cancelled(message="Missed; a later scheduled run replaces it."))
            served.add(run.deployment_id)

    def set_state(self, run: FlowRun, state: State) -> None:
        # Prefect's orchestration rules reject Crashed -> Failed.
        self.client.set_flow_run_state(run.id, state, force=state.is_failed())
        log.info("%s: %s: %s", run.name, state.name, state.message)


@entry_point
def main() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    wait_for_server()
    with get_client(sync_client=True) as client:
        check_forever(Keeper(client))


def check_forever(keeper: Keeper) -> NoReturn:
    """Check all runs at every POLL_INTERVAL; after an outage of the server, restart all timeouts."""
    last_check, outage = time.monotonic(), 0.0
    while True:
        try:
            keeper.check_runs(min(time.monotonic() - last_check, 2 * POLL_INTERVAL))
            outage = 0.0
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            log.warning("The server does not answer (%s); timeouts are suspended.", type(error).__name__)
            outage += POLL_INTERVAL
            if outage >= OUTAGE_AFTER:
                keeper.reset_silence()
        last_check = time.monotonic()
        time.sleep(POLL_INTERVAL)


if __name__ == "__main__":
    main()
