"""Tell the outside what happened: an HTTP address of the user's own, or a program.

``TUNELINE_WEBHOOK`` gets a POST of a small JSON, ``TUNELINE_COMMAND`` the same on its standard input. Both stand in
the environment of agents and keeper and nowhere else: no data file and no setting under version control can name them.
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
from pipelines.processes import feed

EVENTS = ("blocked", "failed", "promoted", "drift")
SECONDS = 10.0


def tell(event: str, text: str, **more) -> None:
    """Tell one event. What cannot be told is logged, and stops nothing.

    Args:
        event: one of :data:`EVENTS`.
        more: values for JSON, also such as replace what is said here of the run that calls. No sample text: whoever
            listens may keep it.
    """
    text = mask_credentials(text)
    body = {"event": event, "text": text, "run": runtime.flow_run.name, "link": link_of(runtime.flow_run.id), **more}
    if address := os.environ.get("TUNELINE_WEBHOOK"):
        try:
            post(address, body)
        # Their texts would show the address, which may hold a key. ValueError: a host name that is none.
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            print(f"The webhook was not told that {event}: {type(error).__name__}.")
    if command := os.environ.get("TUNELINE_COMMAND", "").strip():
        try:
            feed(json.dumps(body, ensure_ascii=False), SECONDS, *shlex.split(command))
        except (UserError, ValueError) as error:  # the second for a quotation mark without another
            print(f"The command was not told that {event}: {error}")


def post(address: str, body: dict) -> None:
    """POST a JSON body, within ``SECONDS`` from name resolution to the status of the answer, which is not read.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, ValueError: it was not taken; TimeoutException if it took longer.
    """
    failures: list[Exception] = []

    def send(client: httpx.Client) -> None:
        try:
            with client.stream("POST", address, json=body) as answer:
                answer.raise_for_status()
        except Exception as error:
            failures.append(error)

    # httpx's timeout starts anew with every byte, and name resolution has none: the caller stops waiting instead.
    with httpx.Client(timeout=SECONDS) as client:
        sender = threading.Thread(target=send, args=(client,), daemon=True)
        sender.start()
        sender.join(SECONDS)
        if sender.is_alive():  # closing the client ends it at the next byte
            raise httpx.TimeoutException(f"no answer within {SECONDS:.0f} s")
    if failures:
        raise failures[0]


def link_of(run: UUID | str | None) -> str | None:
    """Where Prefect's UI shows a run."""
    ui = PREFECT_UI_URL.value()
    return f"{ui}/runs/flow-run/{run}" if run and ui else None
