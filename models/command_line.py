"""What all commands share: the decorator of ``main`` (logging, errors, exit codes, signals), and an argument type."""

import argparse
import functools
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from models.credentials import mask_credentials
from models.errors import PeerLost, UserError

log = logging.getLogger("tuneline")
ERROR_FILE = "TUNELINE_ERROR_FILE"  # environment variable: path of an empty file that receives the error message


class _MaskingFormatter(logging.Formatter):
    """Formatter that masks credentials in messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_credentials(super().format(record))


def entry_point(main):
    """Decorate the ``main`` function of a command: configure logging and turn errors into a message and an exit code.

    A :class:`UserError` or an OSError (no permission, disk full) prints one message to standard error. SIGTERM raises
    SystemExit, so that ``finally`` blocks and context managers run.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        _configure_logging()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return main(*args, **kwargs)
        except UserError as error:
            _wait_for_rank_0(error)
            _report(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # The reader closed the pipe. Without this, Python reports a second error when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _report(f"{where}{error.strerror or error}; check the path, its permissions and the disk.")
            log.debug("Traceback of the OSError:", exc_info=True)
            sys.exit(1)

    return run


def parse_positive_int(text: str) -> int:
    """Return an argument of a command as an integer of at least 1; a ``type`` for ``argparse``."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _configure_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MaskingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tuneline").setLevel(logging.INFO)


def _report(message: str) -> None:
    """Print an error message; the first of several processes also writes it to the caller's error file."""
    message = mask_credentials(message)
    print(f"error: {message}", file=sys.stderr)
    if path := os.environ.get(ERROR_FILE):
        with suppress(OSError):  # the caller may have ended and removed the file
            if Path(path).stat().st_size == 0:
                Path(path).write_text(message, encoding="utf-8")


def _wait_for_rank_0(error: UserError) -> None:
    """All ranks raise the same error; non-zero ranks wait so that rank 0 reports it and the launcher stops the rest."""
    if int(os.environ.get("RANK", 0)) > 0 or isinstance(error, PeerLost):
        time.sleep(2)
