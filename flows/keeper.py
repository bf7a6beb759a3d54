"""The keeper: takes up what died. ``python -m flows.keeper``, one beside each server; a second one does no harm.

Prefect's workers report a flow whose process died, and nobody reports a worker or a host that died; nor does Prefect
start any of them again. The keeper does: a run that gives no sign of life is declared crashed, and one that crashed is
scheduled again, so often as ``TUNELINE_RESTARTS`` says; then it has failed, as :mod:`flows.notifications` tells.
The keeper goes by its own steady clock and by whether signs change, not by the times in them: clocks of hosts differ
and jump. While the server is away, and for a while behind it, nobody is declared dead.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed

from flows import notifications
from flows.agent import PROCESS, wait_for_server
from flows.runs import BAD, HEARTBEAT, OURS, end_children, restarts, starter_in
from models.command_line import entry_point

TICK = 5.0  # seconds between two rounds
BEATS = 2  # heartbeats that may be missed
DELIVERY = 20.0  # seconds that a heartbeat may take to be heard of
# Seconds between the heartbeats of a run that has not said its own: Prefect's default, which a container may have.
UNKNOWN_HEARTBEAT = 180.0
AFTER_AN_OUTAGE = 120.0  # seconds more: a server whose database was away drops signs, and takes a while to go on
OUTAGE = 15.0  # seconds for which a server may be slow to answer before that counts as away
# Seconds from taking a run to its first sign, by type of pool: images are pulled, and pods wait for a free node.
STARTING = {PROCESS: 90.0, "docker": 1800.0}
STARTING_ELSEWHERE = 3600.0  # Kubernetes, and other types
REST = 15.0  # seconds between a crash and the next attempt: a worker may still hold the place of the first
RECENT = 86_400.0  # seconds: what had crashed before, when the keeper began, is history
SIGN = "prefect.flow-run.heartbeat"
# Prefect looks at events of the past alone, by the server's clock; a host's may be ahead.
AT_ANY_TIME = {"since": "1970-01-01T00:00:00Z", "until": "9999-01-01T00:00:00Z"}

log = logging.getLogger("tuneline.keeper")


@dataclass
class Seen:
    """The last sign of a run, and how long the keeper has listened in vain since."""

    sign: str
    silent: float = 0.0


@dataclass
class Keeper:
    """What it knows between two rounds: of each run, its last sign; and which are history."""

    client: SyncPrefectClient
    seen: dict[UUID, Seen] = field(default_factory=dict)
    history: set[UUID] | None = None
    kinds: dict[str, str] = field(default_factory=dict)  # of pools, by name; read anew in each round

    def round(self, seconds: float) -> None:
        """Look at every run once.

        Args:
            seconds: for which the server could be heard since the last round.
        """
        self.kinds.clear()  # a pool may have been made anew, of another type
        alive = self.runs(StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
        crashed = self.runs(StateType.CRASHED)
        if self.history is None:
            self.history = {run.id for run in crashed if time.time() - run.state.timestamp.timestamp() > RECENT}
        self.history -= {run.id for run in alive}  # somebody took it up by hand
        self.listen([*alive, *crashed], seconds)
        for run in alive:
            self.bury_if_dead(run)
        for run in crashed:
            self.take_up(run)
        self.drop_missed_ticks(self.runs(StateType.SCHEDULED))

    def runs(self, *types: StateType) -> list[FlowRun]:
        """Runs of our deployments in such a state, those expected last first."""
        chosen = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[OURS]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        )
        found = self.client.read_flow_runs(flow_run_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
        return [run for run in found if run.deployment_id is not None]

    def listen(self, runs: Iterable[FlowRun], seconds: float) -> None:
        signs = {run.id: self.sign_of(run) for run in runs}
        for run, sign in signs.items():
            if run not in self.seen or self.seen[run].sign != sign:
                self.seen[run] = Seen(sign)
            else:
                self.seen[run].silent += seconds
        self.seen = {run: seen for run, seen in self.seen.items() if run in signs}

    def forgive(self) -> None:
        """The server could not be heard: whatever silence there was is nobody's fault."""
        for seen in self.seen.values():
            seen.silent = -AFTER_AN_OUTAGE

    def sign_of(self, run: FlowRun) -> str:
        """Its state and the number of its heartbeats: what changes while it lives, whatever its clock shows."""
        wanted = {"event": {"name": [SIGN]}, "any_resource": {"id": [f"prefect.flow-run.{run.id}"]}}
        body = {"filter": wanted | {"occurred": AT_ANY_TIME}, "limit": 1}
        return f"{run.state_id} {self.client.request('POST', '/events/filter', json=body).json()['total']}"

    def kind_of(self, run: FlowRun) -> str:
        """The type of the pool that a run is in, such as ``process``; empty if it is in none."""
        pool = run.work_pool_name
        if pool and pool not in self.kinds:
            with suppress(ObjectNotFound):
                self.kinds[pool] = self.client.read_work_pool(pool).type
        return self.kinds.get(pool, "")

    def patience_with(self, run: FlowRun) -> float:
        """Seconds of silence after which a run is dead: by its pool before it begins, then by its own heartbeat."""
        kind = self.kind_of(run)
        if run.state.type == StateType.PENDING:
            return STARTING.get(kind, STARTING_ELSEWHERE)
        heartbeat = run.labels.get(HEARTBEAT)
        if not isinstance(heartbeat, int | float):  # the run has not come to say it yet
            own = get_current_settings().flows.heartbeat_frequency or 0  # which agents of this project have, too
            heartbeat = own if kind == PROCESS else UNKNOWN_HEARTBEAT
        return BEATS * heartbeat + DELIVERY if heartbeat else math.inf

    def bury_if_dead(self, run: FlowRun) -> None:
        silent = self.seen[run.id].silent
        if silent <= self.patience_with(run):
            return
        if run.state.type == StateType.PENDING:
            self.set(run, Crashed(message=f"Taken by a worker, and not begun for {silent:.0f} s."))
        elif run.state.type == StateType.CANCELLING:
            self.set(run, Cancelled(message=f"Crashed while being cancelled: no heartbeat for {silent:.0f} s."))
        else:
            self.set(run, Crashed(message=f"No sign of life for {silent:.0f} s: its process or host is gone."))

    def take_up(self, run: FlowRun) -> None:
        """Schedule a run again that crashed; one that was to end has ended, one that crashed too often failed."""
        if run.id in self.history or self.seen[run.id].silent < REST:
            return
        if self.is_orphan(run):
            self.set(run, Cancelled(message="What had started it has failed or was cancelled."))
            return
        times = Counter(state.type for state in self.client.read_flow_run_states(run.id))
        if times[StateType.CANCELLING] > times[StateType.CANCELLED]:
            self.set(run, Cancelled(message="It was to be cancelled, and died of it."))
            return
        crashes = times[StateType.CRASHED]
        if crashes <= restarts():
            self.set(run, AwaitingRetry(message=f"Taken up again, {crashes} of at most {restarts()} times."))
        else:
            said = f"It died {crashes} times, the last time so: {run.state.message or 'unknown'}"
            self.set(run, Failed(message=said))
            notifications.tell("failed", said, run=run.name, link=notifications.link_of(run.id))
            end_children(self.client, run.id)

    def is_orphan(self, run: FlowRun) -> bool:
        """Whether nobody waits for it, since the run that had started it has failed or was cancelled."""
        for parent in filter(None, map(starter_in, run.tags)):
            with suppress(ObjectNotFound):
                if self.client.read_flow_run(parent).state.type in BAD:
                    return True
        return False

    def drop_missed_ticks(self, scheduled: Iterable[FlowRun]) -> None:
        """Of ticks of a schedule that nobody served, one is enough: the latest."""
        served: set[UUID] = set()
        for run in scheduled:
            if not (run.auto_scheduled and run.state_name == "Late"):
                continue
            if run.deployment_id in served:
                self.set(run, Cancelled(message="Missed, and a later one stands for it."))
            served.add(run.deployment_id)

    def set(self, run: FlowRun, state) -> None:
        self.client.set_flow_run_state(run.id, state, force=state.is_failed())  # no rule leads from crashed to failed
        log.info("%s: %s: %s", run.name, state.name, state.message)


@entry_point
def main() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    wait_for_server()
    with get_client(sync_client=True) as client:
        keeper, heard, away = Keeper(client), time.monotonic(), 0.0
        while True:
            try:
                keeper.round(min(time.monotonic() - heard, 2 * TICK))
                away = 0.0
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                log.warning("The server does not answer (%s); nobody is declared dead.", type(error).__name__)
                away += TICK
                if away >= OUTAGE:
                    keeper.forgive()
            heard = time.monotonic()
            time.sleep(TICK)


if __name__ == "__main__":
    main()
