"""Environment variables for git and DVC: messages in English, no password prompts, a limit for stalled transfers."""

import os
import sys
from pathlib import Path

QUIET = {"DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
# git's messages are parsed, so they must not be translated. Some C libraries prefer LANGUAGE even if LC_ALL is set.
ENGLISH = {"LC_ALL": "C", "LANGUAGE": "C"}
# git aborts an HTTP transfer that stays below this rate, in bytes/s, for this many seconds.
LOW_SPEED_LIMIT, LOW_SPEED_SECONDS = "100", "120"


def program_environment(**more: str) -> dict[str, str]:
    """Return this process's environment, adapted for git and DVC.

    git and ssh fail instead of prompting for a password, because an agent has no terminal. Helpers that need no
    terminal, such as GIT_ASKPASS and credential helpers, stay in effect, and so do the user's own transfer limits.

    Args:
        more: variables to add or replace.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "SSH_ASKPASS" or _is_askpass_forced()}
    limits = {"GIT_HTTP_LOW_SPEED_LIMIT": LOW_SPEED_LIMIT, "GIT_HTTP_LOW_SPEED_TIME": LOW_SPEED_SECONDS}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**limits, **inherited, **QUIET, **ENGLISH, "GIT_TERMINAL_PROMPT": "0", "PATH": path, **more}


def _is_askpass_forced() -> bool:
    """Whether ssh uses SSH_ASKPASS without a terminal; desktops set SSH_ASKPASS to a dialog window."""
    return os.environ.get("SSH_ASKPASS_REQUIRE") == "force"
