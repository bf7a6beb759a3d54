"""Errors that a user can correct: each is reported as a single message and an exit code, never as a traceback."""

from models.credentials import mask_credentials


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
