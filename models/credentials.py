"""Mask credentials in messages, logs, run states, artifacts, webhooks and the output of programs.

As a program (``python -I -S models/credentials.py SOURCE:TARGET …``) it copies open files and masks every line, because
DVC prints the URL of a remote with its password. The program imports the standard library only. It runs until all
writers have closed the source, even if the process that started it was killed, so that a training run that survives its
flow can still write its output.
"""

import os
import re
import signal
import sys
import threading
from contextlib import suppress

MASK = "***"
MAX_LINE_BYTES = 2**16  # a longer line is masked and written in parts

# Schemes whose user name is not secret. For https it may be a token: https://token@host.
_PUBLIC_USER_SCHEME = re.compile(r"(?:ssh|sftp|scp)\Z", re.IGNORECASE)
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
    """Mask passwords, tokens and keys in URLs, query parameters, settings such as DVC's, and headers, in linear time.

    User names that are not secret stay: ``ssh://git@host``.
    """
    text = re.sub(r"\S+", _mask_urls, text)
    text = _PARAMETER.sub(_mask_parameter, text)
    text = _SETTING.sub(rf"\g<1>{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\g<1>{MASK}", text)
    return _KEY.sub(MASK, text)


def _mask_urls(match: re.Match) -> str:
    """Remove ``user:password@`` from the URLs in a word."""
    word, last = match[0], match[0].rfind("@")
    if last < 0:
        return word
    if "://" not in word:
        return word[last + 1 :] if _SCP.match(word, 0, last) and _SCP_HOST.match(word, last + 1) else word
    parts, position = [], 0
    while (mark := word.find("://", position)) >= 0:
        start = mark + 3
        parts.append(word[position:start])
        position = _start_of_host(word, start, last)
        if _PUBLIC_USER_SCHEME.search(word, max(0, mark - 8), mark) and ":" not in word[start:position]:
            parts.append(word[start:position])
    return "".join(parts) + word[position:]


def _start_of_host(word: str, start: int, last: int) -> int:
    """Return the start of a URL's host.

    Args:
        start: position after ``://``.
        last: position of the last ``@`` in the word.
    """
    end = _END_OF_HOST.search(word, start)
    stop = end.start() if end else len(word)
    host = max(start, word.rfind("@", start, stop) + 1)
    # A password with an unencoded slash ends the host early, which then seems to have a port with letters.
    return last + 1 if last >= stop and not _HOST.fullmatch(word, host, stop) else host


def _mask_parameter(match: re.Match) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={MASK}" if value and _SECRET_PARAMETER.search(name) else match[0]


# As a program --------------------------------------------------------------------------------------


def copy_masked(source: int, target: int) -> None:
    """Copy an open file to another and mask each line, until all writers have closed the source.

    Args:
        source, target: file descriptors.
    """
    incomplete = b""
    while chunk := _read(source):
        *lines, incomplete = re.split(rb"(?<=[\r\n])", incomplete + chunk)  # progress bars end lines with \r
        if len(incomplete) > MAX_LINE_BYTES:
            lines, incomplete = [*lines, incomplete], b""
        _write(target, b"".join(lines))
    _write(target, incomplete)


def _read(source: int) -> bytes:
    try:
        return os.read(source, 2**16)
    except OSError:  # EIO: all programs of a pseudo-terminal have ended
        return b""


def _write(target: int, lines: bytes) -> None:
    text = lines.decode("utf-8", "surrogateescape")
    masked = memoryview(mask_credentials(text).encode("utf-8", "surrogateescape"))
    with suppress(OSError):  # the target is closed; keep reading, so that the writers do not block
        while masked:
            masked = masked[os.write(target, masked) :]


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # to copy the writers' last output
    pairs = [map(int, pair.split(":")) for pair in sys.argv[1:]]
    threads = [threading.Thread(target=copy_masked, args=tuple(pair)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
