import subprocess
import sys

import pytest
from shared_data import ROOT

PROGRAM = """
from models.command_line import entry_point
from models.errors import DataBlocked, UserError

@entry_point
def main():
    {body}

main()
"""


def run(body: str, **options) -> subprocess.CompletedProcess:
    source = PROGRAM.format(body=body)
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise UserError('no such file; make it')", 1, "error: no such file; make it\n"),
        ("raise DataBlocked('too dirty')", 2, "error: too dirty\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("pass", 0, ""),
    ],
)
def test_exit_codes_and_messages(body, code, message):
    done = run(body)
    assert (done.returncode, done.stderr) == (code, message)


def test_other_exceptions_print_a_traceback():
    assert "Traceback" in run("raise KeyError('a')").stderr


def test_a_closed_pipe_prints_no_error():
    source = PROGRAM.format(body="print('x' * 70000, flush=True); print('y' * 70000, flush=True)")
    pipe = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -c 1', sys.executable, source],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert pipe.stdout == "x"
    assert pipe.stderr == ""
