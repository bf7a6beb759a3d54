"""Notifications of events: a webhook, or a command of the user.

``TUNELINE_WEBHOOK`` receives a POST with a small JSON body, ``TUNELINE_COMMAND`` the same JSON on standard input. Both
are read from the environment of agents and keeper only, so that no data file and no versioned setting can set them.
"""

import json
import os
import shlex
import threading
from uuid import UUID

import httpx
from prefect import runtime
from prefect.settings import PREFECT_UI_URL

from models.credentials import mask_credentials
from models.errors import UserError
from pipelines.processes import run_with_input

EVENTS = ("blocked", "failed", "promoted", "drift")
TIMEOUT = 10.0  # seconds


def notify(event: str, text: str, **fields) -> None:
    """Send one event to webhook and command. A failure is printed, and never raised.

    Args:
        event: one of :data:`EVENTS`.
        fields: further JSON fields; they override ``run`` and ``link`` of the calling run. No sample text, since the
            receiver may store it.
    """
    text = mask_credentials(text)
    body = {
        "event": event,
        "text": text,
        "run": runtime.flow_run.name,
        "link": flow_run_url(runtime.flow_run.id),
        **fields,
    }
    if url := os.environ.get("TUNELINE_WEBHOOK"):
        try:
            post_json(url, body)
        # Print only the exception type: the message contains the URL, which may hold a key.
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: invalid host name
            print(f"Webhook notification of event {event!r} failed: {type(error).__name__}.")
    if command := os.environ.get("TUNELINE_COMMAND", "").strip():
        try:
            run_with_input(json.dumps(body, ensure_ascii=False), TIMEOUT, *shlex.split(command))
        except (UserError, ValueError) as error:  # ValueError: unbalanced quotes
            print(f"Command notification of event {event!r} failed: {error}")


def post_json(url: str, body: dict) -> None:
    """POST a JSON body and wait at most ``TIMEOUT`` for the status; the response body is not read.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, ValueError: the request failed.
        httpx.TimeoutException: no status within ``TIMEOUT``.
    """
    failures: list[Exception] = []

    def send(client: httpx.Client) -> None:
        try:
            with client.stream("POST", url, json=body) as response:
                response.raise_for_status()
        except Exception as error:
            failures.append(error)

    # httpx's timeout restarts with every byte and excludes name resolution, so the request runs in a thread joined with
    # a timeout.
    with httpx.Client(timeout=TIMEOUT) as client:
        sender = threading.Thread(target=send, args=(client,), daemon=True)
        sender.start()
        sender.join(TIMEOUT)
        if sender.is_alive():  # closing the client ends the thread at the next byte
            raise httpx.TimeoutException(f"no answer within {TIMEOUT:.0f} s")
    if failures:
        raise failures[0]


def flow_run_url(run: UUID | str | None) -> str | None:
    """Return the URL of a run in Prefect's UI; None without a run or a UI."""
    ui = PREFECT_UI_URL.value()
    return f"{ui}/runs/flow-run/{run}" if run and ui else None
