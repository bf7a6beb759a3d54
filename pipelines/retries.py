"""Retries with backoff while a remote is unavailable."""

import time

from tenacity import RetryCallState, retry, retry_if_exception_type

from pipelines.processes import RemoteUnavailable
from texts import translate

PAUSES = (10, 30, 60, 300, 900, 1800)  # backoff: seconds between attempts, 52 minutes in total


def _pause(state: RetryCallState) -> float:
    return PAUSES[state.attempt_number - 1] if state.attempt_number <= len(PAUSES) else 0


def _log_retry(state: RetryCallState) -> None:
    print(state.outcome.exception(), translate("Retry in {seconds} s.", seconds=_pause(state)))


# Decorator for functions that access DVC's remote or the origin. Decorate only the innermost function: in nested
# decorated functions, every outer attempt repeats the whole backoff of the inner ones.
retry_while_unavailable = retry(
    retry=retry_if_exception_type(RemoteUnavailable),
    wait=_pause,
    stop=lambda state: state.attempt_number > len(PAUSES),
    before_sleep=_log_retry,
    sleep=lambda seconds: time.sleep(seconds),
    reraise=True,
)
