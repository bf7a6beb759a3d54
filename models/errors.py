"""A user's mistake: one clear sentence and an exit code, never a traceback."""

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

log = logging.getLogger("tuneline")
LAST_WORDS = "TUNELINE_LAST_WORDS"  # an empty file for the sentence that a program ends with, beside standard error


class UserError(Exception):
    """Something that the user can put right; the message says what was wrong, where, and what to do.

    The message becomes a run's state, a log line and a webhook's text, so credentials in it are masked.

    Attributes:
        exit_code: 1 for a usage or environment error.
    """

    exit_code = 1

    def __init__(self, *arguments: object):
        super().__init__(*(mask_credentials(part) if isinstance(part, str) else part for part in arguments))


class PeerLost(UserError):
    """Another of several processes is gone; whoever started them knows more, and says it."""


class DataBlocked(UserError):
    """The data are too dirty to go on."""

    exit_code = 2


class _MaskedLines(logging.Formatter):
    """Log lines, and tracebacks below them, with their credentials masked."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_credentials(super().format(record))


def program(main):
    """Wrap a program's ``main``: it logs plainly, and a UserError ends it with its sentence on standard error.

    So does what the system refuses: a file that may not be read, a full disk. SIGTERM ends it as an
    exception would, so that it clears up behind itself.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_MaskedLines("%(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        logging.getLogger("tuneline").setLevel(logging.INFO)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return main(*args, **kwargs)
        except UserError as error:
            _let_others_speak_first(error)
            _say(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read the output has left. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _say(f"{where}{error.strerror or error}; check the path, its rights and the disk.")
            log.debug("where it happened:", exc_info=True)
            sys.exit(1)

    return run


def _say(sentence: str) -> None:
    """Of several programs that end, as the processes of a training do, the first knows why."""
    sentence = mask_credentials(sentence)
    print(f"error: {sentence}", file=sys.stderr)
    if path := os.environ.get(LAST_WORDS):
        with suppress(OSError):  # whoever wanted to know may be gone
            if Path(path).stat().st_size == 0:
                Path(path).write_text(sentence, encoding="utf-8")


def _let_others_speak_first(error: UserError) -> None:
    """Of several processes that train together, all meet the same mistake; who waits is ended before it repeats it."""
    if int(os.environ.get("RANK", 0)) > 0 or isinstance(error, PeerLost):
        time.sleep(2)
