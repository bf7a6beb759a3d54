"""Prefect's API server and UI, for the site's own pages and programs: ``python -m flows.api_server --port 4200``.

It is what ``prefect server start`` starts, behind :class:`flows.access.SiteOnly`, and never without the password of
``PREFECT_SERVER_API_AUTH_STRING``. ``TUNELINE_ORIGINS`` lists further addresses of the server, such as
``http://gpu-host:4200,https://tuneline.example``.
"""

import argparse
import os

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import (
    PREFECT_SERVER_API_HOST,
    PREFECT_SERVER_API_KEEPALIVE_TIMEOUT,
    PREFECT_SERVER_API_PORT,
    PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL,
    PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    PREFECT_SERVER_LOGGING_LEVEL,
    temporary_settings,
)

from flows.access import DEFAULT_PORT, LOGIN, ORIGINS, SiteOnly, origins_of, refuse_bad_login
from models.command_line import entry_point


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Prefect's API server and UI, for this site alone.")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens (127.0.0.1)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"({DEFAULT_PORT})")
    arguments = parser.parse_args()
    refuse_bad_login(os.environ.get(LOGIN, ""))
    origins = origins_of(arguments.host, arguments.port, os.environ.get(ORIGINS, ""))
    settings = {
        PREFECT_SERVER_API_HOST: arguments.host,
        PREFECT_SERVER_API_PORT: arguments.port,
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(origins),
    }
    with temporary_settings(settings):
        uvicorn.run(  # as `prefect server start` does
            SiteOnly(create_app(final=True), origins),
            host=arguments.host,
            port=arguments.port,
            timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
            ws_ping_interval=PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL.value(),
            ws_ping_timeout=PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT.value(),
            log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower(),
        )


if __name__ == "__main__":
    main()
