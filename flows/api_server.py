"""Prefect's API server and UI behind access control: ``python -m flows.api_server --port 4200``.

Starts the application of ``prefect server start`` behind :class:`flows.access.OriginCheckMiddleware`. The login in
``PREFECT_SERVER_API_AUTH_STRING`` is mandatory. ``TUNELINE_ORIGINS`` lists additional origins of the server, such as
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
    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    PREFECT_SERVER_LOGGING_LEVEL,
    temporary_settings,
)

from flows import lease_storage
from flows.access import (
    DEFAULT_PORT,
    LOGIN_VARIABLE,
    ORIGINS_VARIABLE,
    OriginCheckMiddleware,
    allowed_origins,
    validate_login,
)
from models.command_line import entry_point


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Start Prefect's API server and UI with checks of login, host and origin."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"port to listen on (default: {DEFAULT_PORT})")
    arguments = parser.parse_args()
    validate_login(os.environ.get(LOGIN_VARIABLE, ""))
    origins = allowed_origins(arguments.host, arguments.port, os.environ.get(ORIGINS_VARIABLE, ""))
    settings = {
        PREFECT_SERVER_API_HOST: arguments.host,
        PREFECT_SERVER_API_PORT: arguments.port,
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(origins),
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: lease_storage.__name__,
    }
    with temporary_settings(settings):
        uvicorn.run(  # with the options of `prefect server start`
            OriginCheckMiddleware(create_app(final=True), origins),
            host=arguments.host,
            port=arguments.port,
            timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
            ws_ping_interval=PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL.value(),
            ws_ping_timeout=PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT.value(),
            log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower(),
        )


if __name__ == "__main__":
    main()
