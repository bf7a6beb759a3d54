"""The environment that git and DVC run in: their messages in English, no questions, no endless transfers."""

import os
import sys
from pathlib import Path

QUIET = {"DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
# git's messages are parsed, and it translates them: LANGUAGE is heeded by some C libraries even beside LC_ALL.
ENGLISH = {"LC_ALL": "C", "LANGUAGE": "C"}
SLOWEST, SLOW_SECONDS = "100", "120"  # bytes/s by HTTP over so many seconds, below which git gives up


def program_environment(**more: str) -> dict[str, str]:
    """The environment of this process as git and DVC get it, with ``more`` besides.

    Nobody sits at an agent's terminal, so nothing asks for a password: git and ssh fail instead. A helper of the user's
    that answers without a person, such as GIT_ASKPASS or a credential helper, is kept. So are the user's own limits.
    """
    own = {name: value for name, value in os.environ.items() if name != "SSH_ASKPASS" or _answers_by_itself()}
    limits = {"GIT_HTTP_LOW_SPEED_LIMIT": SLOWEST, "GIT_HTTP_LOW_SPEED_TIME": SLOW_SECONDS}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**limits, **own, **QUIET, **ENGLISH, "GIT_TERMINAL_PROMPT": "0", "PATH": path, **more}


def _answers_by_itself() -> bool:
    """Whether SSH_ASKPASS is meant to be asked without a terminal; a desktop sets it to a window."""
    return os.environ.get("SSH_ASKPASS_REQUIRE") == "force"
