"""Commands of the project, run by a fork of the test's process, which has imported the slow libraries already."""

import contextlib
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from shared_data import ROOT

from pipelines import processes


def check(*arguments: object, prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess:
    """Run ``python -m pipelines.check``; its stages run in forks as well.

    Args:
        prepare: function that the process of the command calls first.
    """

    def run_stages_in_forks() -> None:
        processes.run_module = lambda module, *options: run_forked(module, *options)
        if prepare:
            prepare()

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        code = run_forked("pipelines.check", *arguments, prepare=run_stages_in_forks, outputs=(out, errors))
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess(["pipelines.check", *map(str, arguments)], code, *texts)


def run_forked(
    module: str,
    *arguments: object,
    prepare: Callable[[], None] | None = None,
    outputs: tuple = (sys.__stdout__, sys.__stderr__),
    folder: Path = ROOT,
) -> int:
    """Run ``python -m MODULE`` in a fork of this process, and return its exit code.

    Args:
        prepare: function that the fork calls first.
        outputs: files of its standard output and standard error.
        folder: working directory of the fork.
    """
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        _replace_streams(*outputs)
        os.chdir(folder)
        sys.argv = [module, *map(str, arguments)]
        if prepare:
            prepare()
        code = _run_as_main(module)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _replace_streams(out, errors) -> None:
    """Give the process the streams, log handlers and signal handlers of a new one."""
    for number, file in ((1, out), (2, errors)):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    logging.getLogger().handlers.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _run_as_main(module: str) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy warns of modules that are imported already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
