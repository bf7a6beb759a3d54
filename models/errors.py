"""Errors that the user can correct; programs report them as one message and an exit code, without a traceback."""

from models.credentials import mask_credentials


class UserError(Exception):
    """An error that the user can correct; the message names the problem, its place, and the remedy.

    Credentials in the message are masked, because it is logged and shown in run states and webhooks.

    Attributes:
        exit_code: 1 for a usage or environment error.
    """

    exit_code = 1

    def __init__(self, *arguments: object):
        super().__init__(*(mask_credentials(part) if isinstance(part, str) else part for part in arguments))


class PeerLost(UserError):
    """Another rank has ended; its own error message, or the launcher's, names the cause."""


class DataBlocked(UserError):
    """The data gate rejected the data."""

    exit_code = 2
