"""Mask credentials in text that is shown: messages, logs, states, artifacts, webhooks, and what programs print.

Run as a program (``python -I -S models/credentials.py SOURCE:TARGET …``) it copies open files and masks every line:
DVC names a remote by its whole address. It imports the standard library alone, and outlives whatever started it for as
long as something writes, so that a training whose flow has died does not lose its terminal.
"""

import os
import re
import signal
import sys
import threading
from contextlib import suppress

MASK = "***"
LONGEST = 2**16  # bytes of a line that are held back while its end is awaited

# The user of an address is shown where it is no secret: https://token@host has nothing but a token there.
_USER_IS_SHOWN = re.compile(r"(?:ssh|sftp|scp)\Z", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[]*)(?::\d+)?")  # with or without a port
_END_OF_HOST = re.compile(r"[/?#]")
_SCP = re.compile(r"[\"'`(\[<]*+[\w.+-]++:")  # user:password@host:path, which has no scheme
_SCP_HOST = re.compile(r"[\w.-]++[:/\\]")
_PARAMETER = re.compile(r"([?&;#])([\w.%-]++)=([^&;#\s'\"<>]*+)")
_SECRET_PARAMETER = re.compile(r"token|secret|passw|pwd|sig|credential|key|auth|session", re.IGNORECASE)
_SETTING = re.compile(
    r"""((?:passw(?:or)?d|passphrase|secret|(?:access|account|api|secret)_?key(?:_?id)?|connection_?string|
    (?:session|security|access|auth|oauth|refresh|private|sas|api|hf)_?token|shared_?access_?signature)
    ["']?\s*+[=:]\s*+)("[^"\n]*+"?|'[^'\n]*+'?|[^\s"',;&)}\]]++)""",
    re.IGNORECASE | re.VERBOSE,
)
_AUTHORIZATION = re.compile(
    r"""(\bauthorization["']?\s*+[=:]\s*+["']?(?:(?:basic|bearer|token)\s++)?|\bbearer\s++(?=[\w.~+/=-]{16}))
    [\w.~+/=-]++""",
    re.IGNORECASE | re.VERBOSE,
)
_KEY = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[opsur]_\w{20,255}|github_pat_\w{20,255}|glpat-[\w-]{20,255}|hf_[A-Za-z0-9]{30,255})"
)


def mask_credentials(text: str) -> str:
    """The text without passwords, tokens and keys: of addresses, their parameters, and settings such as DVC's.

    Runs in linear time. A user's name stays where it is no secret: ``ssh://git@host``.
    """
    text = re.sub(r"\S+", _mask_addresses, text)
    text = _PARAMETER.sub(_mask_parameter, text)
    text = _SETTING.sub(rf"\g<1>{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\g<1>{MASK}", text)
    return _KEY.sub(MASK, text)


def _mask_addresses(match: re.Match) -> str:
    """A word without the ``user:password@`` of the addresses in it."""
    word, last = match[0], match[0].rfind("@")
    if last < 0:
        return word
    if "://" not in word:
        return word[last + 1 :] if _SCP.match(word, 0, last) and _SCP_HOST.match(word, last + 1) else word
    shown, position = [], 0
    while (mark := word.find("://", position)) >= 0:
        start = mark + 3
        shown.append(word[position:start])
        position = _end_of_user(word, start, last)
        if _USER_IS_SHOWN.search(word, max(0, mark - 8), mark) and ":" not in word[start:position]:
            shown.append(word[start:position])
    return "".join(shown) + word[position:]


def _end_of_user(word: str, start: int, last: int) -> int:
    """Where the host of an address begins, whose user, if any, begins at ``start``; ``last`` is the last ``@``."""
    end = _END_OF_HOST.search(word, start)
    stop = end.start() if end else len(word)
    begin = max(start, word.rfind("@", start, stop) + 1)
    # A password that holds a stroke, which its user should have encoded: the host seems to have a port of letters.
    return last + 1 if last >= stop and not _HOST.fullmatch(word, begin, stop) else begin


def _mask_parameter(match: re.Match) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={MASK}" if value and _SECRET_PARAMETER.search(name) else match[0]


# As a program --------------------------------------------------------------------------------------


def copy_masked(source: int, target: int) -> None:
    """Copy an open file to another, line by line and masked, until its writers have closed it."""
    held = b""
    while chunk := _read(source):
        *lines, held = re.split(rb"(?<=[\r\n])", held + chunk)  # a progress bar ends its lines with \r
        if len(held) > LONGEST:
            lines, held = [*lines, held], b""
        _write(target, b"".join(lines))
    _write(target, held)


def _read(source: int) -> bytes:
    try:
        return os.read(source, 2**16)
    except OSError:  # a terminal whose programs have ended
        return b""


def _write(target: int, lines: bytes) -> None:
    shown = memoryview(mask_credentials(lines.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))
    with suppress(OSError):  # the reader is gone; the writer must not block
        while shown:
            shown = shown[os.write(target, shown) :]


def main() -> None:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # last words are copied, too
    pairs = [map(int, pair.split(":")) for pair in sys.argv[1:]]
    copies = [threading.Thread(target=copy_masked, args=tuple(pair)) for pair in pairs]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join()


if __name__ == "__main__":
    main()
