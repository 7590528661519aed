"""What an experiment starts ends with it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from experiments.searches import run_module

ROOT = Path(__file__).parents[1]


def test_the_status_of_a_failed_process_is_passed_on():
    run_module("compileall", ["-q", "no-such-file", "--help"])
    with pytest.raises(SystemExit, match="2"):
        run_module("compileall", ["--no-such-option"])


def _living(text):
    """How many processes have a text among their arguments."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (path / "cmdline").read_bytes()
            found += text.encode() in arguments and b"Z" not in (path / "stat").read_bytes().split()
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_ends_what_was_started_too(number, tmp_path):
    mark = str(tmp_path)
    program = (
        "import os; from experiments.searches import run_module as r; print(flush=True);"
        "r('http.server', ['0', '--directory', os.environ['MARK']])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(number)
        # Where the signal came before it was waited for, the process ends by it.
        assert process.wait(timeout=30) in (128 + number, -number, 1)
    assert _living(mark) == 0
