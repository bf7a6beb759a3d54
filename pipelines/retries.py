"""Retries with growing pauses while a remote is unavailable."""

import time

from tenacity import RetryCallState, retry, retry_if_exception_type

from pipelines.processes import RemoteUnavailable
from texts import translate

PAUSES = (10, 30, 60, 300, 900, 1800)  # seconds between attempts: 52 minutes in all


def _pause(state: RetryCallState) -> float:
    return PAUSES[state.attempt_number - 1] if state.attempt_number <= len(PAUSES) else 0


def _log_retry(state: RetryCallState) -> None:
    print(state.outcome.exception(), translate("Retry in {seconds} s.", seconds=_pause(state)))


# A decorator for functions that call DVC's remote or the origin. Decorate only the function that makes the call:
# where one decorated function calls another, the pauses multiply.
retry_while_unavailable = retry(
    retry=retry_if_exception_type(RemoteUnavailable),
    wait=_pause,
    stop=lambda state: state.attempt_number > len(PAUSES),
    before_sleep=_log_retry,
    sleep=lambda seconds: time.sleep(seconds),
    reraise=True,
)
